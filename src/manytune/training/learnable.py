"""What a task's rows must be so that a run can learn from them and be scored: refused before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manytune.config import Study
from manytune.data.splits import Array, Split, all_alike, train_split
from manytune.data.tasks import Task
from manytune.utils.errors import DataError, StudyError
from manytune.utils.text import listed, shortened

__all__ = ["refuse_unlearnable"]

_LARGEST, _SMALLEST = 1e18, 1e-18  # targets inside: fp32 must hold their squares, for the loss
_LOST = 1e-3  # most that rounding to fp32 may move a target, in standard deviations of the targets


def refuse_unlearnable(study: Study, task: Task, splits: Mapping[str, Split]) -> None:
    """Refuse a study's task where runs of it could not be trained, or not be told apart by their scores.

    Raises:
        StudyError: Class weights do not fit the classes, or a text's column is called as one of predictions.
        DataError: Training or dev rows are all alike, or targets are beyond fp32.
    """
    weights = study.training.class_weights
    if isinstance(weights, tuple) and task.kind == "classification" and len(weights) != len(task.labels):
        raise StudyError(
            f"training.class_weights: {len(weights)} numbers, but {task.name} has {len(task.labels)} classes: "
            f"{listed(task.labels)}. Give one number a class."
        )
    for column in task.text_columns:
        if column in task.prediction_columns:
            raise StudyError(
                f"task {task.name}: predictions are written to a column {column!r}; rename that of the text"
            )
    train, dev = splits["train"], splits["dev"]
    if task.own is not None and task.kind == "regression":
        _refuse_beyond_fp32(task, splits)
    cure = "give dev more rows, that differ"
    if task.own is not None and isinstance(task.own.dev, float):
        cure = f"give dev a larger share than {task.own.dev:g}, or a file of rows"
    _refuse_alike(task, train, np.arange(len(train)), "training rows", "so there is nothing to tell apart")
    _refuse_unscorable(task, dev, np.arange(len(dev)), "dev rows", cure)
    if study.selection == "train-split":
        cure = "use selection: dev"
        for seed in study.seeds:
            kept, aside = train_split(len(train), seed, labels=train.labels)
            left, chosen = (
                f"rows that selection: train-split {does} with seed {seed}" for does in ("leaves", "sets aside")
            )
            _refuse_alike(task, train, kept, left, f"so there is nothing to tell apart; {cure}")
            _refuse_unscorable(task, train, aside, chosen, cure)


def _refuse_alike(task: Task, split: Split, rows: Array, which: str, then: str) -> None:
    alike = all_alike(task, split.labels[rows])
    first = split.texts[rows[0]]
    if alike is None and all(split.texts[row] == first for row in rows):
        alike = f"text is {shortened(' | '.join(first), 60)!r}"
    if alike is not None:
        raise DataError(f"task {task.name}, {split.source}: in all {len(rows)} {which} the {alike}, {then}")


def _refuse_unscorable(task: Task, split: Split, rows: Array, which: str, cure: str) -> None:
    """A constant prediction is taken for a collapse, so it must not be the right one."""
    if len(rows) == 1:
        one = f"of {which} there is one alone, and no score by it tells runs apart"
        raise DataError(f"task {task.name}, {split.source}: {one}; {cure}")
    correlations = [name for name in task.metrics if name in ("pearson", "spearman")]
    if task.kind == "classification":
        _refuse_alike(task, split, rows, which, f"so a constant prediction would be perfect; {cure}")
    elif correlations:
        _refuse_alike(task, split, rows, which, f"so {correlations[0]} is undefined; {cure}, or take metric: rmse")


def _refuse_beyond_fp32(task: Task, splits: Mapping[str, Split]) -> None:
    """Losses are in fp32: the targets inside must differ in it, and their squares be neither 0 nor infinite."""
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
        inside = task.learned(targets)
        lost = np.abs(inside - task.inside(targets)).max() > _LOST * np.std(task.inside(targets))
    if scale is None and (lost or targets.std() < _SMALLEST):
        raise DataError(f"{whole} differ too little for fp32, in which a model computes; leave out scale: false")
    if 2 * len(np.unique(inside)) < len(np.unique(targets)):
        farthest = int(np.abs(inside).argmax())
        raise DataError(
            f"{splits['train'].place(farthest)}: {task.label_column} {targets[farthest]:g} is so far from the "
            "others that fp32, in which a model computes, takes most of these for the same; leave the row out"
        )
