"""How predictions differ from labels: by class, or by the size of the target; for reports and `manytune evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.data.metrics import METRICS
from manytune.data.tasks import Task
from manytune.report.analysis import Analysis
from manytune.report.sheets import Column, Field, Sheet, sheet_of
from manytune.report.task_table import MethodRow
from manytune.stats.examples import metric_draws
from manytune.utils.text import shortened

Array = NDArray[Any]

_MOST_CLASSES = 12  # of a confusion matrix; of more, the commonest confusions can be read
_CONFUSIONS = 15  # that are listed then
_PARTS = 5  # of targets, by their size


@dataclass(frozen=True, eq=False)
class BestPredictions:
    """What the runs of a task's best configuration predict on dev."""

    task: Task
    row: MethodRow
    predictions: Array  # [R, N] class indices or numbers
    labels: Array  # [N]

    def scores(self) -> dict[str, float]:
        """Title of each metric that suits the task → its mean over the runs."""
        once = np.ones((1, len(self.labels)))
        drawn = {
            METRICS[name].title: metric_draws(name, self.predictions, self.labels, once)
            for name in self.task.type.metrics_of(self.task)
        }
        return {title: float(scores.mean()) for title, scores in drawn.items() if scores is not None}


def best_predictions(analysis: Analysis) -> BestPredictions | None:
    """The predictions of the configuration with the best mean; None where they, or the dev rows, were not kept."""
    if analysis.task is None or analysis.examples is None or not analysis.ranked:
        return None
    best = analysis.ranked[0]
    predicted = [prediction for _, prediction in analysis.predicted(best)]
    if not predicted:
        return None
    return BestPredictions(analysis.task, best, np.stack(predicted), np.array(analysis.examples.labels))


def breakdown_sheets(analysis: Analysis) -> tuple[Sheet, ...]:
    """The tables of `breakdown` for a task's best configuration; none where its predictions were not kept."""
    best = best_predictions(analysis)
    if best is None:
        return ()
    return breakdown(best.task, best.predictions, best.labels, f"{analysis.key}-", f"{analysis.title}: ")


def breakdown(task: Task, predictions: Array, labels: Array, stem: str, title: str) -> tuple[Sheet, ...]:
    """Tables of predictions `[R, N]` against labels `[N]`, means over the R runs; names and titles begin as given.

    Of classes a confusion matrix, and precision, recall and F1 of each; of numbers the errors by the target's size.
    """
    if task.type.has_classes:
        runs = np.stack([_confusion(each, labels.astype(int), len(task.labels)) for each in predictions.astype(int)])
        confused = _matrix_sheet if len(task.labels) <= _MOST_CLASSES else _confusions_sheet
        return confused(task, runs, stem, title), _class_sheet(task, runs, stem, title)
    return (_size_sheet(task, predictions, labels, stem, title),) if task.type.value_type is float else ()


def _confusion(predictions: Array, labels: Array, classes: int) -> Array:
    """`[classes, classes]`: rows of each label (first) by prediction (second)."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def _matrix_sheet(task: Task, runs: Array, stem: str, title: str) -> Sheet:
    counts = runs.mean(0)
    columns = (
        Column("label", "label"),
        *(Column(f"predicted_{name}", shortened(name, 24), "tally") for name in task.labels),
        Column("rows", "rows", "count"),
    )
    rows = tuple((name, *row.tolist(), int(row.sum())) for name, row in zip(task.labels, counts, strict=True))
    caption = f"A line a label, a column a prediction: numbers of rows{_over(runs)}, shaded by the share of the line."
    return Sheet(f"{stem}confusion", f"{title}confusion matrix", caption, columns, rows)


def _confusions_sheet(task: Task, runs: Array, stem: str, title: str) -> Sheet:
    counts = runs.mean(0)
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [(int(at // len(counts)), int(at % len(counts))) for at in order if wrong.flat[at] > 0]
    fields: list[Field] = [
        ("label", "label", "text", lambda pair: task.labels[pair[0]]),
        ("prediction", "predicted", "text", lambda pair: task.labels[pair[1]]),
        ("rows", "rows", "tally", lambda pair: float(counts[pair])),
        ("share", "of the label's rows", "percent", lambda pair: float(counts[pair] / counts[pair[0]].sum())),
    ]
    caption = f"The {len(pairs)} commonest confusions of {len(counts)} classes: numbers of rows{_over(runs)}."
    return sheet_of(f"{stem}confusion", f"{title}commonest confusions", caption, fields, pairs)


def _class_sheet(task: Task, runs: Array, stem: str, title: str) -> Sheet:
    right, predicted, support = runs.diagonal(axis1=1, axis2=2), runs.sum(1), runs.sum(2)

    def mean(part: Array, whole: Array, at: int) -> float | None:
        """Mean share over the runs in which there is a whole."""
        known = whole[:, at] > 0
        return float((part[known, at] / whole[known, at]).mean()) if known.any() else None

    fields: list[Field] = [
        ("class", "class", "text", lambda at: task.labels[at]),
        ("precision", "precision", "score", lambda at: mean(right, predicted, at)),
        ("recall", "recall", "score", lambda at: mean(right, support, at)),
        ("f1", "F1", "score", lambda at: mean(2 * right, predicted + support, at)),
        ("support", "support", "count", lambda at: int(support[0, at])),
    ]
    caption = "Support is the rows of the class. The precision of a class never predicted is unknown."
    caption += f" The figures are the mean over {len(runs)} runs." if len(runs) > 1 else ""
    return sheet_of(f"{stem}classes", f"{title}class by class", caption, fields, range(len(task.labels)))


def _size_sheet(task: Task, predictions: Array, labels: Array, stem: str, title: str) -> Sheet:
    order, errors = np.argsort(labels, kind="stable"), predictions - labels
    parts = [order, *(part for part in np.array_split(order, _PARTS) if len(part))]

    def span(part: Array) -> str:
        return "all" if part is order else f"{labels[part[0]]:.6g} to {labels[part[-1]]:.6g}"

    fields: list[Field] = [
        ("targets", "targets", "text", span),
        ("rows", "rows", "count", len),
        ("mean_target", "mean target", "score", lambda part: float(labels[part].mean())),
        ("mean_prediction", "mean prediction", "score", lambda part: float(predictions[:, part].mean())),
        ("mae", "MAE", "score", lambda part: float(np.abs(errors[:, part]).mean())),
        ("rmse", "RMSE", "score", lambda part: float(np.sqrt((errors[:, part] ** 2).mean(1)).mean())),
    ]
    caption = f"All rows, and each fifth of them by the size of the target{_over(predictions)}."
    return sheet_of(f"{stem}sizes", f"{title}errors by target", caption, fields, parts)


def _over(runs: Array) -> str:
    return f", mean over {len(runs)} runs" if len(runs) > 1 else ""
