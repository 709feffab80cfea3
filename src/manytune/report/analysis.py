"""ReportData → one analysis for each task and backbone: what the page, the tables and the figures are made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.data.metrics import Metric, is_constant
from manytune.data.tasks import Task
from manytune.report.guard import attempt
from manytune.report.report_data import ReportData
from manytune.report.task_table import MethodRow, TaskTable, tabulate
from manytune.stats import (
    LEVEL,
    Comparison,
    Configuration,
    Standing,
    bootstrap_weights,
    compare_all,
    metric_draws,
    standings,
)
from manytune.storage.artifacts import Examples, Structure
from manytune.storage.directory import PENDING, RunStatus
from manytune.storage.record import HistoryRow, RunRecord

__all__ = ["Analysis", "analyse", "score_of"]

Array = NDArray[Any]

_LONGEST_KEY = 80  # a file's name may have 255 bytes, and some have the key and more
_CLOSE = 1e-3  # a kept score and one computed from kept logits differ by rounding alone


@dataclass(frozen=True, eq=False)
class Analysis:
    """One task on one backbone, over all of its methods and seeds."""

    key: str
    """Safe as a file name and as an anchor; unique in the report."""
    table: TaskTable
    """Records grouped by configuration."""
    task: Task | None
    """The task; None if no study of the report has it."""
    pending: tuple[RunStatus, ...]
    """Planned runs that have not ended."""
    histories: Mapping[str, tuple[HistoryRow, ...]]
    """Run id → its evaluations."""
    predictions: Mapping[str, Array]
    """Run id → [N] class indices or numbers on dev, of runs whose kept logits fit their record."""
    misfits: tuple[str, ...]
    """Runs whose kept logits do not give the score of their record; they are left out."""
    examples: Examples | None
    """The dev rows."""
    structure: Structure | None
    """The module tree and what trains."""
    comparisons: tuple[Comparison, ...]
    """Every pair of methods, the best method's first."""
    standings: Mapping[str, Standing]
    """Label → whether the configuration may be the best."""
    intervals: Mapping[str, tuple[float, float]]
    """Label → 95 % bootstrap interval of its mean score over dev examples."""
    problems: tuple[str, ...] = ()
    """What could not be computed, and why."""

    @property
    def title(self) -> str:
        """What to call the task."""
        return self.table.title

    @property
    def metric(self) -> Metric:
        """The metric that ranks."""
        return self.table.rows[0].primary.metric

    @property
    def rows(self) -> tuple[MethodRow, ...]:
        """The configurations, in the studies' order."""
        return self.table.rows

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the studies' order."""
        return tuple(dict.fromkeys(row.runs[0].method for row in self.rows))

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """All runs that have ended."""
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def selections(self) -> tuple[str, ...]:
        """What selected the snapshots: dev or train-split; more than one only where studies were put together."""
        return tuple(dict.fromkeys(run.selection or "unknown" for run in self.records))

    def row(self, label: str) -> MethodRow:
        """The configuration that is called so."""
        return next(row for row in self.rows if row.label == label)

    def mean(self, row: MethodRow) -> float | None:
        """Mean best score of a configuration."""
        return row.primary.best.mean

    @property
    def ranked(self) -> tuple[MethodRow, ...]:
        """Configurations with a mean, the best first."""
        sign = 1 if self.metric.higher_is_better else -1
        known = [(mean, row) for row in self.rows if (mean := self.mean(row)) is not None]
        return tuple(row for _, row in sorted(known, key=lambda one: -sign * one[0]))

    @property
    def best_rows(self) -> tuple[MethodRow, ...]:
        """The best configuration of each method, the best method first."""
        best: dict[str, MethodRow] = {}
        for row in self.ranked:
            best.setdefault(row.runs[0].method, row)
        return tuple(best.values())


def score_of(run: RunRecord, metric: str) -> float | None:
    """A metric of the run's best snapshot."""
    return run.best_score if metric == run.primary_metric else run.scores.get(metric)


def analyse(data: ReportData, problems: list[str] | None = None) -> tuple[Analysis, ...]:
    """One analysis for each task and backbone, in the records' order.

    Args:
        data: What study directories hold.
        problems: Gets a sentence for each task that cannot be analysed, and is left out.

    Warns:
        ReportWarning: A task, or a part of its analysis, is left out.
    """
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in data.records:
        groups.setdefault((record.task, record.model), []).append(record)
    problems = [] if problems is None else problems
    found: list[Analysis] = []
    for (task, model), own in groups.items():
        alone = sum(name == task for name, _ in groups) == 1
        key = _key(task if alone else f"{task}-{model}", [each.key for each in found])
        said = f"Without {task} on {model}"
        found += attempt(said, partial(_analyse_records, key, own, data), (), problems)
    return tuple(found)


def _analyse_records(key: str, records: Sequence[RunRecord], data: ReportData) -> tuple[Analysis, ...]:
    return tuple(_analyse(key, table, data) for table in tabulate(records))


def _key(name: str, taken: Iterable[str]) -> str:
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_KEY] or "task"
    used = set(taken)
    return next(each for each in (key, *(f"{key}-{n}" for n in range(2, len(used) + 3))) if each not in used)


def _analyse(key: str, table: TaskTable, data: ReportData) -> Analysis:
    runs = [run for row in table.rows for run in row.runs]
    examples = data.examples.get(table.task)
    kept = {run.run_id: data.logits[run.run_id] for run in runs if run.run_id in data.logits}
    task = data.tasks.get(table.task)
    problems: list[str] = []
    nothing: tuple[dict[str, Array], tuple[str, ...]] = ({}, ())
    predictions, misfits = attempt(
        "Dev predictions could not be used", lambda: _predictions(task, runs, kept, examples), nothing, problems
    )
    draws: dict[str, Array] = attempt(
        "Uncertainty over dev examples is unknown", lambda: _draws(table, predictions, examples), {}, problems
    )
    metric = table.rows[0].primary.metric
    sign = 1 if metric.higher_is_better else -1
    configurations = [
        Configuration(
            row.runs[0].method,
            row.label,
            {run.seed: sign * score for run in row.finished if (score := run.best_score) is not None},
            None if row.label not in draws else sign * draws[row.label],
        )
        for row in table.rows
    ]
    labels = {row.label for row in table.rows}
    pending = tuple(
        replace(run, label=run.label + study.label_suffix) if run.label + study.label_suffix in labels else run
        for study in data.studies
        for run in study.status.runs
        if run.state == PENDING and (run.task, run.model) == (table.task, table.model)
    )
    tails = [LEVEL / 2, 1 - LEVEL / 2]
    return Analysis(
        key=key,
        table=table,
        task=task,
        pending=pending,
        histories={run.run_id: data.histories[run.run_id] for run in runs if run.run_id in data.histories},
        predictions=predictions,
        misfits=misfits,
        examples=examples,
        structure=data.structures.get((table.task, table.model)),
        comparisons=attempt(
            "Methods could not be compared over seeds", lambda: compare_all(configurations), (), problems
        ),
        standings={
            each.label: each
            for each in attempt(
                "What may be the best is unknown", lambda: tuple(standings(configurations)), (), problems
            )
        },
        intervals={label: tuple(np.quantile(each, tails).tolist()) for label, each in draws.items()},
        problems=tuple(problems),
    )


def _predictions(
    task: Task | None, runs: Sequence[RunRecord], logits: Mapping[str, Array], examples: Examples | None
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Predictions of the runs whose logits give the score of their record, and the ids of the others."""
    if examples is None or task is None:
        return {}, ()
    labels = np.array(examples.labels)
    once = np.ones((1, len(labels)))
    found: dict[str, Array] = {}
    misfits = []
    for run in runs:
        own = logits.get(run.run_id)
        if own is None or run.best_score is None:
            continue
        said = None
        if own.shape == (len(labels), task.num_outputs) and np.isfinite(own).all():
            said = own.argmax(-1) if task.kind == "classification" else own[:, 0].astype(float)
        if said is not None and _fits(run.primary_metric, said, labels, once, run.best_score):
            found[run.run_id] = said
        else:
            misfits.append(run.run_id)
    return found, tuple(misfits)


def _fits(metric: str, said: Array, labels: Array, once: Array, recorded: float) -> bool:
    score = metric_draws(metric, said[None], labels, once)
    # Numbers that are one but for rounding have a correlation that means nothing; their record says 0.
    return score is None or abs(float(score[0, 0]) - recorded) < _CLOSE or (is_constant(said) and recorded == 0)


def _draws(table: TaskTable, predictions: Mapping[str, Array], examples: Examples | None) -> dict[str, Array]:
    """Label → [draws] mean score of a configuration in resampled dev sets, where all of its runs are known."""
    rows = [row for row in table.rows if row.finished and all(run.run_id in predictions for run in row.finished)]
    if examples is None or not rows:
        return {}
    labels = np.array(examples.labels)
    everything = np.stack([predictions[run.run_id] for row in rows for run in row.finished])
    metric = table.rows[0].primary.metric.name
    drawn = metric_draws(metric, everything, labels, bootstrap_weights(len(labels)))
    if drawn is None:
        return {}
    ends = np.cumsum([len(row.finished) for row in rows])[:-1]
    return {row.label: part.mean(1) for row, part in zip(rows, np.split(drawn, ends, axis=1), strict=True)}
