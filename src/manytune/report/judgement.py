"""Rows of a task's table → what the statistics say of them."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from manytune.data.metrics import default_margin
from manytune.report.report_data import StudyFacts
from manytune.report.task_table import MethodRow, TaskTable, floor_of
from manytune.stats.claims import Configuration, Judging
from manytune.stats.looks import SeedPlan
from manytune.storage.record import RunRecord

Array = NDArray[Any]


def given_margin(task: str, studies: Iterable[StudyFacts]) -> float | None:
    """The margin that users gave, the narrowest of several; None: the default."""
    margins = (one.study.margin_of(task) for one in studies)
    return min((margin for margin in margins if margin is not None), default=None)


def seed_plan(studies: Iterable[StudyFacts]) -> SeedPlan:
    """When studies were looked at; those that were planned in different ways have no plan together."""
    plans = {SeedPlan.of(one.growth) for one in studies}
    return plans.pop() if len(plans) == 1 else SeedPlan(grown=any(plan.grown or plan.looks for plan in plans))


def at_look(
    records: Sequence[RunRecord], planned: Iterable[int], pending: Container[int], plan: SeedPlan
) -> list[RunRecord]:
    """The runs that a report is about: where looks were planned, those of the seeds of the last one that was reached.

    It is reached when no run of its seeds is `pending`; `planned` are the study's seeds, in its order. What has ended
    beyond it waits for the next look, and is shown as little as it is judged.
    """
    ended = list(itertools.takewhile(lambda seed: seed not in pending, dict.fromkeys(planned)))
    if plan.reached(len(ended)) is None:
        return list(records)
    kept = set(plan.kept(ended))
    return [run for run in records if run.seed in kept]


def judging_of(table: TaskTable, studies: Sequence[StudyFacts]) -> Judging:
    """What the verdict on a task depends on besides its scores."""
    metric = table.rows[0].primary.metric
    sign, floor = metric.sign, floor_of(metric.name, table.baselines)
    margin = given_margin(table.task, studies)
    if margin is None:
        # Before baselines were kept, a constant's error was not known.
        means = [row.mean for row in table.rows if row.mean is not None]
        margin = default_margin(metric.name, min(means, default=0.0) if floor is None else floor) or 0.0
    seeds = seed_plan(studies)
    # Every metric here that is to be high is at most 1, and no error is below 0.
    ceiling = 1.0 if metric.higher_is_better else 0.0
    return Judging(margin, None if floor is None else sign * floor, ceiling, seeds)


def configurations_of(rows: Iterable[MethodRow], draws: Mapping[str, Array] | None = None) -> list[Configuration]:
    """The rows as `judge` takes them.

    `draws` is label → [draws, seeds] scores of the runs that trained in resampled dev sets.
    """
    found = []
    for row in rows:
        metric = row.primary.metric
        sign, drawn = metric.sign, (draws or {}).get(row.label)
        found.append(
            Configuration(
                row.method,
                row.label,
                {run.seed: sign * score for run, score in row.scored(metric.name)},
                {run.seed: None if run.best_score is None else sign * run.best_score for run in row.failures},
                None if drawn is None else sign * drawn,
                order=tuple(run.seed for run in row.runs),
                parameters=row.trainable,
            )
        )
    return found
