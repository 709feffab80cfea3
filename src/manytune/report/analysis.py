"""ReportData → one analysis for each task and backbone, from which page, tables and figures are made."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.data.metrics import Metric, is_constant
from manytune.data.tasks import Task
from manytune.report.guard import attempt
from manytune.report.judgement import at_look, configurations_of, judging_of, seed_plan
from manytune.report.names import file_key
from manytune.report.report_data import ReportData, StudyFacts
from manytune.report.sheets import Field, Sheet, sheet_of
from manytune.report.task_table import MethodRow, TaskTable, tabulate
from manytune.stats.claims import LEVEL, TaskVerdict
from manytune.stats.examples import bootstrap_weights, metric_draws
from manytune.stats.verdict import judge
from manytune.storage.artifacts import Examples, Structure
from manytune.storage.directory import PENDING, RunStatus
from manytune.storage.record import HistoryRow, RunRecord

Array = NDArray[Any]

_CLOSE = 1e-3  # a recorded score and the one that kept logits give differ by rounding alone


@dataclass(frozen=True, eq=False)
class Analysis:
    """One task on one backbone, over all of its methods and seeds."""

    key: str
    """Safe as a file name and as an anchor; unique in the report."""
    table: TaskTable
    task: Task | None
    """None if no study of the report has it."""
    pending: tuple[RunStatus, ...]
    """Planned runs that have not ended."""
    histories: Mapping[str, tuple[HistoryRow, ...]]
    """Run id → its evaluations."""
    predictions: Mapping[str, Array]
    """Run id → [N] class indices or numbers on dev, of runs whose kept logits fit their record."""
    misfits: tuple[str, ...]
    """Runs whose kept logits do not give the score of their record; they are left out."""
    examples: Examples | None
    structure: Structure | None
    verdict: TaskVerdict
    """What is claimed; its scores are turned around where less is better."""
    draws: Mapping[str, Array]
    """Label → [draws, seeds] scores in resampled dev sets, of configurations with predictions of all runs that trained.
    """
    problems: tuple[str, ...] = ()
    """What could not be computed, and why."""
    studies: tuple[StudyFacts, ...] = ()
    """The studies that have runs of this task on this backbone."""
    waits: int = 0
    """Seeds of which runs have ended beyond the last planned look: they are in nothing here."""

    def extending(self, more: int) -> str:
        """A sentence with the command that adds `more` seeds; empty where runs are to come, or several studies are."""
        if self.pending or len(self.studies) != 1 or more < 1:
            return ""
        (one,) = self.studies
        return self.extending_to(len(one.study.seeds) + more)

    def extending_to(self, seeds: int) -> str:
        """The same for so many seeds in all."""
        if self.pending or len(self.studies) != 1 or seeds <= len(self.studies[0].study.seeds):
            return ""
        (one,) = self.studies
        return f" To add them: `manytune extend {shlex.quote(one.status.directory)} --seeds {seeds}`."

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
    def records(self) -> tuple[RunRecord, ...]:
        """All runs that have ended."""
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def selections(self) -> tuple[str, ...]:
        """What selected the snapshots: dev or train-split; more than one only in a report of several studies."""
        return tuple(dict.fromkeys(run.selection or "unknown" for run in self.records))

    @property
    def sign(self) -> int:
        """1 where a higher score is better, -1 where a lower one is: what the verdict's scores are multiplied by."""
        return self.metric.sign

    @property
    def leader(self) -> MethodRow | None:
        """The configuration with the best mean among runs that trained."""
        return None if self.verdict.leader is None else self.row(self.verdict.leader)

    @property
    def examples_intervals(self) -> dict[str, tuple[float, float]]:
        """Label → 95 % bootstrap interval of the mean over seeds, for other dev examples."""
        tails = [LEVEL / 2, 1 - LEVEL / 2]
        return {label: tuple(np.quantile(each.mean(1), tails).tolist()) for label, each in self.draws.items()}

    def seed_interval(self, label: str) -> tuple[float, float] | None:
        """95 % interval of a configuration's mean for new seeds, in the metric's own direction; None if unknown."""
        found = self.verdict.intervals.get(label)
        return None if found is None else (min(ends := [self.sign * end for end in found]), max(ends))

    def row(self, label: str) -> MethodRow:
        """The configuration with this label."""
        return next(row for row in self.rows if row.label == label)

    def predicted(self, row: MethodRow) -> list[tuple[RunRecord, Array]]:
        """The configuration's runs that trained and whose predictions are known, with these."""
        return [(run, self.predictions[run.run_id]) for run in row.trained if run.run_id in self.predictions]

    def sheet(
        self,
        stem: str,
        title: str,
        caption: str,
        fields: Sequence[Field],
        items: Iterable[Any],
        more: Sequence[Field] = (),
    ) -> Sheet:
        """A table of this task, as `sheet_of` makes it."""
        return sheet_of(f"{self.key}-{stem}", f"{self.title}: {title}", caption, fields, items, self.table.names, more)

    @property
    def ranked(self) -> tuple[MethodRow, ...]:
        """Configurations with a mean, best first."""
        return tuple(row for row in self.table.by_mean if row.mean is not None)

    @property
    def best_rows(self) -> tuple[MethodRow, ...]:
        """The best configuration of each method, the best method first."""
        best: dict[str, MethodRow] = {}
        for row in self.ranked:
            best.setdefault(row.method, row)
        return tuple(best.values())


def analyse(data: ReportData, problems: list[str] | None = None) -> tuple[Analysis, ...]:
    """One analysis for each task and backbone, in the records' order.

    A part that fails is left out, with a ReportWarning; where a whole task is, `problems` gets a sentence.
    """
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in data.records:
        groups.setdefault((record.task, record.model), []).append(record)
    models = Counter(task for task, _ in groups)
    problems = [] if problems is None else problems
    found: list[Analysis] = []
    for (task, model), records in groups.items():
        key = file_key(task if models[task] == 1 else f"{task}-{model}", {each.key for each in found})
        made = attempt(f"Without {task} on {model}", partial(_analyse, key, records, data), None, problems)
        found += [] if made is None else [made]
    return tuple(found)


def _analyse(key: str, records: Sequence[RunRecord], data: ReportData) -> Analysis:
    """The analysis of the records of one task on one backbone."""
    about = (records[0].task, records[0].model)
    waiting = [
        (study, run)
        for study in data.studies
        for run in study.status.runs
        if run.state == PENDING and (run.task, run.model) == about
    ]
    studies = tuple(study for study in data.studies if any((run.task, run.model) == about for run in study.status.runs))
    seeds = [seed for one in studies for seed in one.study.seeds]
    judged = at_look(records, seeds, {run.seed for _, run in waiting}, seed_plan(studies))
    (table,) = tabulate(judged, data.baselines)
    runs = [run for row in table.rows for run in row.runs]
    task, examples, problems = data.tasks.get(table.task), data.examples.get(table.task), list[str]()
    nothing: tuple[dict[str, Array], tuple[str, ...]] = ({}, ())
    failure = "Dev predictions could not be used"
    predictions, misfits = attempt(failure, lambda: _predictions(task, runs, data.logits, examples), nothing, problems)
    failure = "Uncertainty over dev examples is unknown"
    draws: dict[str, Array] = attempt(failure, lambda: _draws(table, predictions, examples), {}, problems)
    labels = {row.label for row in table.rows}
    pending = tuple(
        replace(run, label=run.label + study.label_suffix) if run.label + study.label_suffix in labels else run
        for study, run in waiting
    )
    waits = len({run.seed for run in records}) - len({run.seed for run in judged})
    judging = judging_of(table, studies)
    failure, none = "Methods could not be compared over seeds", TaskVerdict(judging, LEVEL, None)
    verdict = attempt(failure, lambda: judge(configurations_of(table.rows, draws), judging), none, problems)
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
        verdict=verdict,
        draws=draws,
        problems=tuple(problems),
        studies=studies,
        waits=waits,
    )


def _predictions(
    task: Task | None, runs: Sequence[RunRecord], logits: Mapping[str, Array], examples: Examples | None
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Predictions of the runs whose logits give the score of their record, and the ids of the other runs."""
    if examples is None or task is None:
        return {}, ()
    labels = np.array(examples.labels)
    found: dict[str, Array] = {}
    scored = [(run, run.best_score) for run in runs if run.run_id in logits and run.best_score is not None]
    for run, recorded in scored:
        kept = logits[run.run_id]
        if kept.shape == (len(labels), task.num_outputs) and np.isfinite(kept).all():
            predicted = task.type.decode(kept)
            # None: a metric that is not computed here, whose recorded score is taken as it is.
            score = metric_draws(run.primary_metric, predicted[None], labels, np.ones((1, len(labels))))
            # The correlation of numbers that differ by rounding alone means nothing; their record says 0.
            constant = recorded == 0 and is_constant(predicted)
            if score is None or constant or abs(float(score[0, 0]) - recorded) < _CLOSE:
                found[run.run_id] = predicted
    return found, tuple(run.run_id for run, _ in scored if run.run_id not in found)


def _draws(table: TaskTable, predictions: Mapping[str, Array], examples: Examples | None) -> dict[str, Array]:
    """Label → [draws, seeds] scores in resampled dev sets, if all trained runs of a configuration have predictions."""
    metric = table.rows[0].primary.metric.name
    runs = {row.label: [run.run_id for run, _ in row.scored(metric)] for row in table.rows}
    runs = {label: ids for label, ids in runs.items() if ids and all(each in predictions for each in ids)}
    if examples is None or not runs:
        return {}
    labels = np.array(examples.labels)
    everything = np.stack([predictions[each] for ids in runs.values() for each in ids])
    drawn = metric_draws(metric, everything, labels, bootstrap_weights(len(labels)))
    if drawn is None:
        return {}
    ends = np.cumsum([len(ids) for ids in runs.values()])[:-1]
    return dict(zip(runs, np.split(drawn, ends, axis=1), strict=True))
