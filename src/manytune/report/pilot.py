"""What the runs of a study say about the next one: how far scores scatter over seeds, and what a seed costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manytune.report.judgement import configurations_of, judging_of
from manytune.report.names import method_title
from manytune.report.report_data import StudyFacts
from manytune.report.task_table import TaskTable, tabulate
from manytune.stats.claims import Configuration
from manytune.stats.looks import MINIMUM_SEEDS
from manytune.stats.planning import upper_deviation
from manytune.stats.verdict import by_method
from manytune.storage.directory import Store
from manytune.utils.errors import StoreError, StudyError, choices


@dataclass(frozen=True)
class Spread:
    """How far the scores of one run scatter over seeds."""

    method: str
    configurations: int
    seeds: int
    """Runs that trained, of all its configurations."""
    deviation: float | None
    """Standard deviation, pooled over the configurations; None where no configuration has two seeds."""
    degrees: int
    seconds: float | None
    """Training and evaluation of one run, on average; None where no record says."""


@dataclass(frozen=True)
class Pilot:
    """One task of a study, as the basis of a plan."""

    task: str
    metric: str
    margin: float
    spreads: tuple[Spread, ...]
    looks: tuple[int, ...]
    """The looks that the study planned."""
    seen: int | None
    """At how many seeds scores can be seen without a plan, so that more seeds cost more; None where that is free."""

    @property
    def widest(self) -> tuple[Spread, ...]:
        """The two methods whose scores scatter most, or the one that there is."""
        known = [spread for spread in self.spreads if spread.deviation is not None]
        return tuple(sorted(known, key=lambda spread: -(spread.deviation or 0.0))[:2])

    @property
    def deviation(self) -> tuple[float, float]:
        """Standard deviation of one run's score over the two widest, √((s₁² + s₂²) / 2), and its degrees of freedom.

        These are Satterthwaite's, as in `differences`.
        """
        squares = [((spread.deviation or 0.0) ** 2, spread.degrees) for spread in self.widest]
        total = sum(square for square, _ in squares)
        known = sum(square**2 / degrees for square, degrees in squares)
        return math.sqrt(total / len(squares)), total**2 / known if known else sum(each for _, each in squares)

    @property
    def upper(self) -> float:
        """Its upper 80 % bound, by which seeds are planned."""
        deviation, degrees = self.deviation
        return upper_deviation(deviation, degrees)

    @property
    def seconds_a_seed(self) -> float | None:
        """One more seed of all configurations, one run after the other."""
        each = [(spread.seconds, spread.configurations) for spread in self.spreads]
        return None if any(s is None for s, _ in each) else sum(s * count for s, count in each if s is not None)


def pilots(directory: Path, task: str | None) -> tuple[Pilot, ...]:
    """Each task of a study whose spread is known, or the one that is named; a StoreError where there is none."""
    store = Store.open(directory)
    facts = StudyFacts(store.study(), store.status(), "", store.looks())
    kept = {name: store.task_artifacts(name).baselines() for name in facts.study.task_names}
    baselines = {name: scores for name, scores in kept.items() if scores is not None}
    tables = tabulate(store.finished_runs().values(), baselines)
    if not tables:
        raise StoreError(f"No run of {directory} has ended, so that no spread is known. Give one: --sd.")
    if task is not None and task not in facts.study.task_names:
        raise StudyError(f"--task: {choices(task, facts.study.task_names)}")
    found = tuple(_pilot(table, facts) for table in tables if task in (None, table.task))
    known = tuple(pilot for pilot in found if pilot.widest)
    if not known:
        raise StoreError(
            f"{directory} has no configuration with two runs that trained{f' on {task}' if task else ''}, which a "
            f"spread takes. Add seeds (manytune extend {directory} --seeds {MINIMUM_SEEDS}), or give a spread: --sd."
        )
    return known


def _pilot(table: TaskTable, facts: StudyFacts) -> Pilot:
    groups = by_method([one for one in configurations_of(table.rows) if one.scores])
    seeds, judging = len(facts.study.seeds), judging_of(table, [facts])
    free = not judging.seeds.grown and (bool(judging.seeds.looks) or seeds < MINIMUM_SEEDS)
    return Pilot(
        task=table.task,
        metric=table.rows[0].primary.metric.title,
        margin=judging.margin,
        spreads=tuple(_spread(method, group, table) for method, group in groups.items()),
        looks=judging.seeds.looks,
        seen=None if free else seeds,
    )


def _spread(method: str, group: Sequence[Configuration], table: TaskTable) -> Spread:
    squares, degrees = 0.0, 0
    for one in group:
        scores = np.array([*one.scores.values()])
        squares += float(((scores - scores.mean()) ** 2).sum())
        degrees += len(scores) - 1
    labels = {one.label for one in group}
    costs = [run.cost for row in table.rows if row.label in labels for run in row.runs]
    seconds = [cost.seconds for cost in costs if cost.train_seconds is not None]
    return Spread(
        method_title(method),
        configurations=len(group),
        seeds=sum(len(one.scores) for one in group),
        deviation=math.sqrt(squares / degrees) if degrees else None,
        degrees=degrees,
        seconds=sum(seconds) / len(seconds) if seconds else None,
    )
