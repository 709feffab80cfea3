"""A Markdown table of a study beside Trainer's runs of the same study.

    python benchmarks/compare_with_trainer.py STUDY_DIR reference.jsonl

Scores are the primary metric of the best evaluation, mean ± standard deviation over seeds. `manytune` is the snapshot
scored once more alone in fp32; `while training` is the highest score that an evaluation saw, which is how Trainer's is
found, and the one that the choice among evaluations favours in the same way. `collapsed` counts the runs whose best
evaluation predicts one constant; they are in the mean with their score of 0 here, on both sides, so that the comparison
leaves nothing out. The difference is that of the scores while training, ours minus Trainer's, beside the larger of the
two spreads.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manytune.storage.directory import Store


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
    seen: dict[tuple[str, str], Side] = defaultdict(Side)
    store = Store.open(options.study_dir)
    for record in store.finished_runs().values():
        metrics[record.task] = record.primary_metric
        if record.best_score is not None:
            collapsed = record.state == "collapsed"
            ours[record.task, record.label].add(record.best_score, record.cost.samples_per_second, collapsed)
            known = [row.metrics[record.primary_metric] for row in store.read_history(record.run_id)]
            seen[record.task, record.label].add(max(s for s in known if s is not None), None, False)
    for line in options.reference.read_text().splitlines():
        row = json.loads(line)
        score = row["best"][metrics[row["task"]]]
        theirs[row["task"], row["label"]].add(score, row["samples_per_second"], bool(row["best"]["collapsed"]))

    columns = ("manytune", "while training", "Trainer", "difference", "larger spread", "samples/s", "Trainer's")
    print(f"| task | method | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (task, label), side in ours.items():
        other, training = theirs[task, label], seen[task, label]
        difference = spread = "–"
        if other.scores:
            difference = f"{statistics.mean(training.scores) - statistics.mean(other.scores):+.4f}"
            spread = f"{max(training.spread, other.spread):.4f}"
        measured = (difference, spread, side.speed(), other.speed())
        cells = (task, label, side.cell(), training.cell(), other.cell(), *measured)
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
