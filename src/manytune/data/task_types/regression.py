"""Regression: each row has one number."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from manytune.data.cells import target_of
from manytune.data.task_types.base import UNLABELLED_ROW, Array, Scale, TaskType
from manytune.utils.errors import DataError
from manytune.utils.text import markdown

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.data.splits import Split
    from manytune.data.tasks import Task

_LARGEST, _SMALLEST = 1e18, 1e-18  # scaled targets: fp32 must hold their squares, for the loss
_LOST = 1e-3  # most that rounding to fp32 may move a target, in standard deviations of the targets


class Regression(TaskType):
    """One number a row, its target. The loss is the squared error, of scaled targets where the task has a scale."""

    name = "regression"
    metrics = ("pearson", "spearman", "rmse", "mae")
    default_metrics = ("pearson", "spearman")
    scales = True
    label_word = "target"
    value_type = float
    problem_type = "regression"
    right_or_wrong = False
    error_title = "mean absolute error"
    constant_title = "the mean target"

    def parser(self, task: Task) -> Callable[[object], float]:

        def parse(cell: object) -> float:
            try:
                value = target_of(cell)
            except ValueError as error:
                raise ValueError(f"{task.label_column} {error}") from None
            low, high = task.target_range or (-math.inf, math.inf)
            if math.isfinite(value) and (task.own is not None or low <= value <= high):
                return value
            if value == -1.0 and task.own is None:
                raise ValueError(UNLABELLED_ROW)
            wanted = f"between {low:g} and {high:g}"
            if task.own is not None:
                wanted = "a finite number in fp64; leave the cell empty where there is no target"
            raise ValueError(f"{task.label_column} {reprlib.repr(cell)} is not {wanted}")

        return parse

    def as_array(self, task: Task, labels: Sequence[Any]) -> Array:
        # GLUE's and the built-in targets have few digits, and their results so far rest on float32.
        return np.array(labels, dtype=np.float32 if task.own is None else np.float64)

    def learn_targets(self, task: Task, labels: Array) -> Task:
        scale = None
        if task.own is not None and task.own.scaled:
            with np.errstate(over="ignore", invalid="ignore"):  # `check_splits` refuses what comes of that
                scale = Scale(float(labels.mean()), float(labels.std()))
        return replace(task, target_range=(float(labels.min()), float(labels.max())), scale=scale)

    def check_splits(self, task: Task, splits: Mapping[str, Split]) -> None:
        # Losses are in fp32: targets must differ in it, and their squares be neither 0 nor infinite.
        targets = splits["train"].labels
        low, high = task.target_range or (0.0, 0.0)
        whole = f"task {task.name}: targets from {low:.10g} to {high:.10g}"
        scale = task.scale
        if scale is not None and not (np.isfinite(scale.center) and np.finfo(float).tiny <= scale.spread < np.inf):
            raise DataError(f"{whole} cannot be scaled in fp64; give {task.label_column} in another unit")
        with np.errstate(over="ignore", invalid="ignore"):
            for split in splits.values():
                for index in np.flatnonzero(~(np.abs(task.inside(split.labels)) <= _LARGEST))[:1]:
                    far = f"{split.place(int(index))}: {task.label_column} {split.labels[index]:g} is too far from"
                    cure = "the training targets" if scale is not None else "0 for scale: false; leave that out"
                    raise DataError(f"{far} {cure}. Losses are in fp32, which cannot hold its square")
            exact, rounded = task.inside(targets), self.loss_labels(task, targets)
            lost = np.abs(rounded - exact).max() > _LOST * np.std(exact)
        if scale is None and (lost or targets.std() < _SMALLEST):
            raise DataError(f"{whole} differ too little for fp32, in which a model computes; leave out scale: false")
        if 2 * len(np.unique(rounded)) < len(np.unique(targets)):
            farthest = int(np.abs(rounded).argmax())
            raise DataError(
                f"{splits['train'].place(farthest)}: {task.label_column} {targets[farthest]:g} is so far from the "
                "others that fp32, in which a model computes, takes most of these for the same; leave the row out"
            )

    def constant_dev(self, task: Task, cure: str) -> str | None:
        correlations = [name for name in task.metrics if name in ("pearson", "spearman")]
        return f"so {correlations[0]} is undefined; {cure}, or take metric: rmse" if correlations else None

    def num_outputs(self, task: Task) -> int:
        return 1

    def loss_labels(self, task: Task, labels: Array) -> Array:
        scaled: Array = task.inside(labels)
        return scaled.astype(np.float32)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits[..., 0] - labels).square()

    def decode(self, logits: Array) -> Array:
        return logits[..., 0].astype(np.float64)

    def constant(self, labels: Array) -> float:
        return float(labels.astype(np.float64).mean())

    def linear_model(self) -> Any:
        from sklearn.linear_model import Ridge

        return Ridge()

    def value(self, task: Task, label: Any) -> float:
        return float(label)

    def shown(self, task: Task, label: Any) -> str:
        # A GLUE target has few digits, but its fp32 value has more.
        return f"{label:.10g}" if task.own else f"{label:g}"

    def errors(self, predictions: Array, labels: Array) -> Array:
        return np.asarray(np.abs(predictions - labels))

    def describe_outputs(self, task: Task) -> str:
        low, high = task.target_range or (None, None)
        learned = "" if low is None else f"; the training targets went from {low:g} to {high:g}"
        return f"Output: a number, in the unit of {markdown(task.label_column)}{learned}."

    def glue_text(self, task: Task, prediction: float | None, *, in_words: bool) -> str:
        assert task.target_range is not None
        low, high = task.target_range
        return f"{min(max((low + high) / 2 if prediction is None else prediction, low), high):.3f}"

    def glue_problem(self, task: Task, text: str, *, in_words: bool) -> str | None:
        assert task.target_range is not None
        low, high = task.target_range
        try:
            right = low <= float(text) <= high
        except ValueError:
            right = False
        return None if right else f"{text!r} is no number from {low:g} to {high:g}"
