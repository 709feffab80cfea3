"""The average over GLUE's nine tasks, where all of them are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from manytune.data.tasks import GLUE
from manytune.report.analysis import Analysis, score_of
from manytune.report.answer import configuration_title, method_title
from manytune.report.sheets import Cell, Column, Sheet
from manytune.report.task_table import MethodRow

__all__ = ["glue_sheet"]


def glue_sheet(analyses: Sequence[Analysis]) -> Sheet | None:
    """A row for each backbone and method with a score on each of GLUE's tasks; None where there is none.

    A task with several metrics counts by their mean, as on GLUE's leaderboard, and every task counts the same:
    Wang et al. 2018, https://arxiv.org/abs/1804.07461, section 4.
    """
    found: dict[tuple[str, str], dict[str, Analysis]] = {}
    for analysis in analyses:
        for row in analysis.best_rows:
            found.setdefault((analysis.table.model, row.runs[0].method), {})[analysis.table.task] = analysis
    rows = [_row(model, method, tasks) for (model, method), tasks in found.items() if set(GLUE) <= tasks.keys()]
    if not rows:
        return None
    columns = (
        Column("model", "model"),
        Column("method", "method"),
        Column("average", "average", "score"),
        *(Column(name, task.title, "score") for name, task in GLUE.items()),
        Column("configurations", "configuration by task"),
    )
    caption = (
        "Mean over the nine tasks of GLUE; a task's score is the mean of its metrics over the seeds that finished, on "
        "dev (the leaderboard's is on test). Each method by its best configuration on each task, chosen on dev: the "
        "more configurations it had, the more its average owes to that choice."
    )
    rows.sort(key=lambda row: -float(row[2] or 0.0))
    return Sheet("glue-average", "GLUE average", caption, columns, tuple(rows))


def _row(model: str, method: str, tasks: Mapping[str, Analysis]) -> tuple[Cell, ...]:
    best = {name: next(row for row in tasks[name].best_rows if row.runs[0].method == method) for name in GLUE}
    scores = {name: _score(row, GLUE[name].all_metrics) for name, row in best.items()}
    known = [score for score in scores.values() if score is not None]
    average = fmean(known) if len(known) == len(scores) else None
    chosen = "; ".join(f"{GLUE[name].title}: {configuration_title(row)}" for name, row in best.items())
    return (model, method_title(method), average, *scores.values(), chosen)


def _score(row: MethodRow, metrics: Sequence[str]) -> float | None:
    means = []
    for metric in metrics:
        values = [score for run in row.finished if (score := score_of(run, metric)) is not None]
        if not values:
            return None
        means.append(fmean(values))
    return fmean(means)
