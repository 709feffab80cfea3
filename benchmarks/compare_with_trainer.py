"""A Markdown table of a study beside Trainer's runs of the same study.

    python benchmarks/compare_with_trainer.py STUDY_DIR reference.jsonl

Scores are the primary metric of the best evaluation, mean ± standard deviation over seeds. manytune's is the
snapshot scored once more alone in fp32; Trainer's is what it evaluated while training. `collapsed` counts the runs
whose best evaluation predicts one constant; they are in the mean with their score of 0 here, on both sides, so that
the comparison leaves nothing out. The difference is ours minus Trainer's, beside the larger of the two spreads.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manytune.store import Store


@dataclass
class Side:
    """One method's runs on one side."""

    scores: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    collapsed: int = 0

    def add(self, score: float, speed: float | None, collapsed: bool) -> None:
        self.scores.append(score)
        self.collapsed += collapsed
        if speed is not None:
            self.speeds.append(speed)

    @property
    def spread(self) -> float:
        return statistics.stdev(self.scores) if len(self.scores) > 1 else float("nan")

    def cell(self) -> str:
        if not self.scores:
            return "–"
        spread = f" ± {self.spread:.4f}" if len(self.scores) > 1 else ""
        collapsed = f", {self.collapsed} collapsed" if self.collapsed else ""
        return f"{statistics.mean(self.scores):.4f}{spread} ({len(self.scores)}{collapsed})"

    def speed(self) -> str:
        return f"{statistics.median(self.speeds):.0f}" if self.speeds else "–"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study_dir", type=Path)
    parser.add_argument("reference", type=Path)
    options = parser.parse_args(arguments)
    ours: dict[tuple[str, str], Side] = defaultdict(Side)
    theirs: dict[tuple[str, str], Side] = defaultdict(Side)
    metrics = {}
    for record in Store.open(options.study_dir).finished_runs().values():
        metrics[record.task] = record.primary_metric
        if record.best_score is not None:
            collapsed = record.state == "collapsed"
            ours[record.task, record.label].add(record.best_score, record.cost.samples_per_second, collapsed)
    for line in options.reference.read_text().splitlines():
        row = json.loads(line)
        score = row["best"][metrics[row["task"]]]
        theirs[row["task"], row["label"]].add(score, row["samples_per_second"], bool(row["best"]["collapsed"]))

    print("| task | method | manytune | Trainer | difference | larger spread | samples/s, ours | samples/s, Trainer |")
    print("|---|---|---|---|---|---|---|---|")
    for (task, label), side in ours.items():
        other = theirs[task, label]
        difference = spread = "–"
        if other.scores:
            difference = f"{statistics.mean(side.scores) - statistics.mean(other.scores):+.4f}"
            spread = f"{max(side.spread, other.spread):.4f}"
        cells = (task, label, side.cell(), other.cell(), difference, spread, side.speed(), other.speed())
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
