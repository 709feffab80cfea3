"""Checks, before training, that runs can learn from a task's rows and be compared by their scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manytune.config import Study
from manytune.data.splits import Array, Split, all_alike, train_split
from manytune.data.tasks import Task
from manytune.utils.errors import DataError, StudyError
from manytune.utils.problems import dotted
from manytune.utils.text import listed, shortened


def refuse_unlearnable(study: Study, task: Task, splits: Mapping[str, Split]) -> None:
    """Refuse a study's task whose runs could not be trained, or would have the same score whatever they learn.

    Raises StudyError where class weights do not fit the classes, or a text column has the name of a prediction column,
    and DataError where training or dev rows are all alike, or targets are beyond fp32.
    """
    for path, weights in study.class_weights():
        if isinstance(weights, tuple) and task.type.has_classes and len(weights) != len(task.labels):
            raise StudyError(
                f"{dotted(path)}: {len(weights)} numbers, but {task.name} has {len(task.labels)} classes: "
                f"{listed(task.labels)}. Give one number a class."
            )
    for column in task.text_columns:
        if column in task.prediction_columns:
            raise StudyError(
                f"task {task.name}: predictions are written to a column {column!r}; rename that of the text"
            )
    train, dev = splits["train"], splits["dev"]
    if task.own is not None:
        task.type.check_splits(task, splits)
    cure = "give dev more rows, that differ"
    if task.own is not None and isinstance(task.own.dev, float):
        cure = f"give dev a larger share than {task.own.dev:g}, or a file of rows"
    _refuse_alike(task, train, np.arange(len(train)), "training rows", "so there is nothing to tell apart")
    _refuse_unscorable(task, dev, np.arange(len(dev)), "dev rows", cure)
    for seed in study.seeds if study.selection == "train-split" else ():
        cure = "use selection: dev"
        kept, aside = train_split(len(train), seed, labels=train.labels)
        left, chosen = (
            f"rows that selection: train-split {what} with seed {seed}" for what in ("leaves", "sets aside")
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
    """Refuse rows whose score could not compare runs: a single one, or all with one label."""
    if len(rows) == 1:
        one = f"of {which} there is one alone, and no score by it tells runs apart"
        raise DataError(f"task {task.name}, {split.source}: {one}; {cure}")
    if (reason := task.type.constant_dev(task, cure)) is not None:
        _refuse_alike(task, split, rows, which, reason)
