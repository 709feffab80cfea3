"""Score runs on labelled rows: every metric of the task with an interval, and where the predictions go wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from manytune.data.baselines import fit_baselines
from manytune.data.labelled import LabelledRows
from manytune.data.metrics import METRICS, evaluate, is_constant, is_correlation
from manytune.data.splits import leaked
from manytune.data.tasks import Task
from manytune.inference.predictor import Predictor
from manytune.report.breakdown import breakdown
from manytune.report.sheets import Column, Sheet, show
from manytune.report.views import plain_table
from manytune.stats.examples import bootstrap_intervals
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.training.workload import fingerprint_of, load_splits, selection_rows
from manytune.utils.errors import ManytuneError
from manytune.utils.text import counted, listed, shortened

_AT_ONCE = 4096  # rows that go through the models before the next ones are encoded
_SHOWN = 5  # rows left out, in a list
_FEW = 30  # rows, of which a resampled set differs too little from them


@dataclass(frozen=True)
class Interval:
    """A score, and its 95 % bootstrap interval over the rows; None: undefined, or not known."""

    score: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.score is None:
            return "undefined"
        between = "" if self.low is None else f" ({show(self.low, 'score')} to {show(self.high, 'score')})"
        return show(self.score, "score") + between


@dataclass(frozen=True)
class LabelledScores:
    """What one run, the mean of several, or a baseline scores."""

    name: str
    kind: str
    """`run`, `ensemble` or `baseline`."""
    scores: Mapping[str, Interval]
    """Metric → its score."""


@dataclass(frozen=True, eq=False)
class LabelledResult:
    """Everything that is known of the runs on the rows."""

    task: Task
    rows: LabelledRows
    scored: tuple[LabelledScores, ...]
    notes: tuple[str, ...]
    whole: str
    """Name of what the sheets are of: the run, or the mean of several."""
    sheets: tuple[Sheet, ...]
    """Confusion matrix and classes, or errors by target."""

    def render(self) -> Iterator[RenderableType]:
        """As a terminal shows it."""
        yield f"{self.task.title}: {counted(len(self.rows.texts), 'row')} of {self.rows.source} scored."
        yield from _left_out(self.task, self.rows)
        yield from self.notes
        metrics = list(self.scored[0].scores)
        table = [(each.name, *(str(each.scores[name]) for name in metrics)) for each in self.scored]
        yield "Scores, with 95 % bootstrap intervals over the rows"
        yield plain_table(("", *(METRICS[name].title for name in metrics)), table)
        for sheet in self.sheets:
            yield f"{sheet.title[:1].upper()}{sheet.title[1:]}: {self.whole}"
            yield plain_table([column.title for column in sheet.columns], sheet.shown())

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "task": self.task.name,
            "source": self.rows.source,
            "rows": len(self.rows.texts),
            "left_out": list(self.rows.left_out),
            "unknown_labels": dict(self.rows.unknown),
            "notes": list(self.notes),
            "scored": [
                {"name": each.name, "kind": each.kind, "scores": {name: vars(one) for name, one in each.scores.items()}}
                for each in self.scored
            ],
            **{
                sheet.name: [
                    dict(zip([column.name for column in sheet.columns], row, strict=True)) for row in sheet.rows
                ]
                for sheet in self.sheets
            },
        }

    def to_sheet(self) -> Sheet:
        """Every figure in a line of its own."""
        found: list[tuple[str | float | None, ...]] = [
            ("score", each.name, name, one.score, one.low, one.high)
            for each in self.scored
            for name, one in each.scores.items()
        ]
        for sheet in self.sheets:
            for first, *others in sheet.rows:
                figures = zip(sheet.columns[1:], others, strict=True)
                found += [(sheet.name, first, column.name, cell, None, None) for column, cell in figures]
        names = ("part", "name", "figure", "value", "low", "high")
        kinds = ("text", "text", "text", "score", "score", "score")
        columns = tuple(Column(name, name, kind) for name, kind in zip(names, kinds, strict=True))
        return Sheet("evaluation", self.task.title, "", columns, tuple(found))


def evaluate_runs(store: Store, predictor: Predictor, rows: LabelledRows) -> LabelledResult:
    """Score a predictor's runs, the mean of several, and baselines on labelled rows."""
    task, texts = predictor.task, rows.texts
    parts = [predictor.logits(texts[at : at + _AT_ONCE]) for at in range(0, len(texts), _AT_ONCE)]
    logits = np.concatenate(parts, axis=1)
    records = predictor.records
    predicted = [(record.run_id, "run", task.type.decode(own)) for record, own in zip(records, logits, strict=True)]
    if len(records) > 1:
        mean = task.type.combine(logits.astype(np.float64))[0]
        predicted.append((f"mean of the {len(records)} runs", "ensemble", mean))
    baselines, notes = _baselines(store, task, records, rows)
    if len(texts) < _FEW:
        notes.append(f"{counted(len(texts), 'row')} are few: bootstrap intervals of so few are too narrow.")
    everything = [*predicted, *baselines]
    return LabelledResult(
        task,
        rows,
        tuple(_scored(task, everything, rows.labels)),
        (*predictor.notes, *notes),
        predicted[-1][0],
        breakdown(task, predicted[-1][2][None], rows.labels, "", ""),
    )


def _scored(
    task: Task, predicted: Sequence[tuple[str, str, NDArray[Any]]], labels: NDArray[Any]
) -> Iterator[LabelledScores]:
    metrics = task.type.metrics_of(task)
    every = replace(task, metrics=metrics)
    intervals = bootstrap_intervals(metrics, np.stack([values for *_, values in predicted]), labels)
    for at, (name, kind, values) in enumerate(predicted):
        constant = is_constant(values, task.scale)
        scores: dict[str, Interval] = {}
        for metric, score in evaluate(every, values, labels).items():
            if not np.isfinite(score) or (constant and is_correlation(metric)):
                scores[metric] = Interval(None, None, None)
            else:
                low, high = (None, None) if metric not in intervals else map(float, intervals[metric][:, at])
                scores[metric] = Interval(score, low, high)
        yield LabelledScores(name, kind, scores)


def _baselines(
    store: Store, task: Task, records: Sequence[RunRecord], rows: LabelledRows
) -> tuple[list[tuple[str, str, NDArray[Any]]], list[str]]:
    """Name, kind and predictions of baselines that learn from the first run's training rows, and notes."""
    study = store.study()
    try:
        _, splits = load_splits(study, task.name)
    except ManytuneError as error:
        return [], [f"Without baselines: their training rows cannot be had. {shortened(error, 300)}"]
    if records[0].provenance.data_fingerprint not in (None, fingerprint_of(splits)):
        return [], ["Without baselines: the training rows are no longer those that the run was trained on."]
    train, dev = splits["train"], splits["dev"]
    own = replace(train, texts=rows.texts, labels=rows.labels)
    notes = []
    if shared := leaked(train, own):
        notes.append(
            f"{counted(len(shared), 'row', 'has|have', of=len(own))} the text of a training row, so scores are too "
            "high."
        )
    if study.selection == "dev" and (seen := leaked(dev, own)):
        notes.append(
            f"{counted(len(seen), 'row', 'has|have', of=len(own))} the text of a dev row, by which each run's "
            "snapshot was chosen, so these scores are optimistic."
        )
    used, _ = selection_rows(study, train.labels, len(dev), records[0].seed)
    fitted = fit_baselines(task, train, used)
    notes += [f"Baseline, {each.title}: {each.note}." for each in fitted if each.note]
    return [(each.title, "baseline", each.predict(task, rows.texts)) for each in fitted], notes


def _left_out(task: Task, rows: LabelledRows) -> Iterator[str]:
    if not rows.left_out:
        return
    yield f"{counted(len(rows.left_out), 'row')} left out:"
    yield from (f"  {shortened(each, 200)}" for each in rows.left_out[:_SHOWN])
    if len(rows.left_out) > _SHOWN:
        yield f"  and {len(rows.left_out) - _SHOWN} more"
    if rows.unknown:
        names = [f"{shortened(name, 60)} ({counted(count, 'row')})" for name, count in rows.unknown.items()]
        yield f"Labels that {task.name} does not know: {listed(names)}."
