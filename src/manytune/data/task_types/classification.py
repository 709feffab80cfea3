"""Single-label classification: each row is of one of several classes."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from manytune.data.cells import label_of, number_in, same_to_the_eye
from manytune.data.task_types.base import UNLABELLED_ROW, Array, TaskType
from manytune.utils.errors import DataError, choices
from manytune.utils.text import counted, listed, markdown, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.data.tasks import Task

_SHOWN = 20  # classes that a message names


class Classification(TaskType):
    """One class a row; a label is the class's index in `Task.labels`. The loss is the cross-entropy."""

    name = "classification"
    metrics = ("matthews_correlation", "accuracy", "f1", "macro_f1")
    default_metrics = ("macro_f1", "accuracy")
    has_classes = True
    problem_type = "single_label_classification"
    constant_title = "the commonest class"

    def read_cell(self, cell: object) -> object:
        return label_of(cell)

    def learn_classes(self, task: Task, cells: Sequence[object]) -> Task:
        if task.labels:  # given in the study
            return task
        counts = Counter(str(cell) for cell in cells if cell != "")
        values = {name: number_in(name) for name in counts}
        numbers = all(value is not None and math.isfinite(value) for value in values.values())
        alone = [name for name, count in counts.items() if count == 1]
        # Where most rows have a class of their own, the column holds something else.
        if len(counts) > 2 and 2 * len(alone) > counts.total():
            cure = "; to predict numbers, give the task type: regression" if numbers else ""
            who = (
                "every row has"
                if len(alone) == counts.total()
                else counted(len(alone), "row", "has|have", of=counts.total())
            )
            raise ValueError(
                f"{who} another {task.label_column} than all others, such as {listed(alone[:3])}{cure}. "
                "If it is the column of the class, give the task labels: with all classes"
            )
        return replace(task, labels=tuple(sorted(counts, key=(lambda n: (values[n], n)) if numbers else None)))

    def parser(self, task: Task) -> Callable[[object], int]:
        known = {name: index for index, name in enumerate(task.labels)}
        if task.own is None:  # GLUE's files may have the index itself; a user's own class "2" need not be the third
            known = {str(index): index for index in known.values()} | known

        def parse(cell: object) -> int:
            index = known.get(str(cell))
            if index is not None:
                return index
            if task.own is not None:
                raise ValueError(_no_class(task, str(cell)))
            if str(cell) == "-1":
                raise ValueError(UNLABELLED_ROW)
            meanings = ", ".join(f"{index} ({name})" for index, name in enumerate(task.labels))
            raise ValueError(f"label {reprlib.repr(cell)} is not one of: {meanings}")

        return parse

    def as_array(self, task: Task, labels: Sequence[Any]) -> Array:
        return np.array(labels, dtype=np.int64)

    def learn_targets(self, task: Task, labels: Array) -> Task:
        if "f1" in task.metrics and len(task.labels) != 2:
            raise DataError(
                f"task {task.name}: the metric f1 is of two classes, but there are {len(task.labels)}; take macro_f1"
            )
        return task

    def num_outputs(self, task: Task) -> int:
        if not task.labels:
            raise ValueError(f"the classes of {task.name} are not known before its data is read")
        return len(task.labels)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    def decode(self, logits: Array) -> Array:
        return np.asarray(logits.argmax(-1))

    def combine(self, logits: Array) -> tuple[Array, Array]:
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = (shares / shares.sum(-1, keepdims=True)).mean(0)
        return probabilities.argmax(-1), probabilities

    def linear_model(self) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression()

    def metrics_of(self, task: Task) -> tuple[str, ...]:
        return tuple(name for name in super().metrics_of(task) if name != "f1" or len(task.labels) == 2)

    def value(self, task: Task, label: Any) -> str:
        return task.labels[int(label)]

    def all_alike(self, task: Task, label: Any) -> str:
        name = self.value(task, label)
        return f"label is {name!r}" if task.own is not None else f"label is {label} ({name})"

    def describe_outputs(self, task: Task) -> str:
        return "Outputs: " + ", ".join(f"{index} {markdown(name)}" for index, name in enumerate(task.labels)) + "."

    def glue_text(self, task: Task, prediction: float | None, *, in_words: bool) -> str:
        index = int(prediction or 0)
        return task.labels[index] if in_words else str(index)

    def glue_problem(self, task: Task, text: str, *, in_words: bool) -> str | None:
        allowed = task.labels if in_words else tuple(map(str, range(len(task.labels))))
        return None if text in allowed else f"{text!r} is not one of: {', '.join(allowed)}"


def _no_class(task: Task, label: str) -> str:
    names = choices(shortened(label, 60), [shortened(name, 60) for name in task.labels[:_SHOWN]])
    alike = next((name for name in task.labels if same_to_the_eye(name) == same_to_the_eye(label)), None)
    if alike is not None:
        return f"{task.label_column} {names} It differs from {alike!r} in its spelling alone: write both alike."
    more = f" and {len(task.labels) - _SHOWN} more" if len(task.labels) > _SHOWN else ""
    return (
        f"{task.label_column} {names} These{more} are the task's labels:, or else the classes of the training rows; "
        "where it is another class, give labels: all of them."
    )
