"""The task table: columns, labels, splits, metrics, and the sizes that the data must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from manytune.errors import StudyError, choices

__all__ = ["SPLITS", "TASKS", "Task", "get_task"]

SPLITS = ("train", "dev")


@dataclass(frozen=True)
class Task:
    """One sentence, or a pair of them, in; one class or one number out."""

    name: str
    """The name that a study uses."""
    title: str
    """What tables and figures call it."""
    kind: Literal["classification", "regression"]
    """Single-label classification, or regression of one number."""
    text_columns: tuple[str, ...]
    """The one or two columns that hold the sentences."""
    label_column: str
    """The column of the label in a GLUE folder's files; on the hub it is `label` for every GLUE task."""
    labels: tuple[str, ...]
    """The classes' names, the index being the label; empty for regression."""
    metrics: tuple[str, ...]
    """Names out of `metrics.METRICS`; the first one selects snapshots and ranks runs."""
    target_range: tuple[float, float] | None
    """The lowest and the highest target of a regression; None for classification."""
    sizes: Mapping[str, int]
    """Split to the number of rows that it must have; empty where none is known."""
    hub: tuple[str, str] | None
    """Dataset and configuration on the Hugging Face hub; None for the built-in tasks."""
    hub_splits: Mapping[str, str]
    """Our split's name to the hub's."""
    folder: str | None
    """The task's folder inside a GLUE folder; None for the built-in tasks."""
    file_columns: tuple[str, ...] = ()
    """The columns of the folder's files where these have no header line; empty where they have one."""
    dev_parts: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    """Name of a part of the dev split → its first row and the row after its last; empty where it has no parts."""

    @property
    def primary_metric(self) -> str:
        """The metric that selects snapshots and ranks runs."""
        return self.metrics[0]

    @property
    def num_outputs(self) -> int:
        """How many logits the head has: one a class, or 1 for regression."""
        return len(self.labels) if self.kind == "classification" else 1


_GLUE_SPLITS = MappingProxyType({"train": "train", "dev": "validation"})
_NONE: Mapping[str, str] = MappingProxyType({})
_UNKNOWN_SIZES: Mapping[str, int] = MappingProxyType({})

_ACCEPTABILITY = ("unacceptable", "acceptable")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            # Warstadt et al. 2019, https://arxiv.org/abs/1805.12471
            Task(
                name="cola",
                title="CoLA",
                kind="classification",
                text_columns=("sentence",),
                label_column="label",
                labels=_ACCEPTABILITY,
                metrics=("matthews_correlation", "accuracy"),
                target_range=None,
                sizes=MappingProxyType({"train": 8551, "dev": 1043}),
                hub=("nyu-mll/glue", "cola"),
                hub_splits=_GLUE_SPLITS,
                folder="CoLA",
                file_columns=("source", "label", "mark", "sentence"),
                # Sentences of the publications that train has too, then of others: the paper's section 4.
                dev_parts=MappingProxyType({"in-domain": (0, 527), "out-of-domain": (527, 1043)}),
            ),
            # Cer et al. 2017, https://arxiv.org/abs/1708.00055
            Task(
                name="stsb",
                title="STS-B",
                kind="regression",
                text_columns=("sentence1", "sentence2"),
                label_column="score",
                labels=(),
                metrics=("pearson", "spearman"),
                target_range=(0.0, 5.0),
                sizes=MappingProxyType({"train": 5749, "dev": 1500}),
                hub=("nyu-mll/glue", "stsb"),
                hub_splits=_GLUE_SPLITS,
                folder="STS-B",
            ),
            Task(
                name="builtin-acceptability",
                title="Built-in acceptability",
                kind="classification",
                text_columns=("sentence",),
                label_column="label",
                labels=_ACCEPTABILITY,
                metrics=("matthews_correlation", "accuracy"),
                target_range=None,
                sizes=_UNKNOWN_SIZES,
                hub=None,
                hub_splits=_NONE,
                folder=None,
            ),
            Task(
                name="builtin-similarity",
                title="Built-in similarity",
                kind="regression",
                text_columns=("sentence1", "sentence2"),
                label_column="score",
                labels=(),
                metrics=("pearson", "spearman"),
                target_range=(0.0, 5.0),
                sizes=_UNKNOWN_SIZES,
                hub=None,
                hub_splits=_NONE,
                folder=None,
            ),
        )
    }
)


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        StudyError: there is no such task; the message lists those that there are.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise StudyError(f"tasks: {choices(name, TASKS)}") from None
