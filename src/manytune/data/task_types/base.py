"""The interface of a task type, and the registry in which a task's `kind` is looked up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from manytune.data.metrics import METRICS
from manytune.utils.errors import StudyError, choices

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.data.splits import Split
    from manytune.data.tasks import Task

Array = NDArray[Any]

UNLABELLED_ROW = (
    "label -1 marks a row without a label, as GLUE's test splits have; only labelled rows can be trained on or scored"
)


@dataclass(frozen=True)
class Scale:
    """How targets look to the model: (target - center) / spread."""

    center: float  # mean of the training targets
    spread: float  # their standard deviation, above 0


class TaskType(ABC):
    """What a label is: how it is read, learned, predicted, scored and shown. Instances have no state.

    Shapes are written for one label a row: labels `[N]`, predictions `[N]`. With several labels a row they are
    `[N, C]`, with one label a token `[N, L]`; R is the runs of a pack, B the rows of a batch.
    """

    name: ClassVar[str]
    """The word in a study's `type:` and in `Task.kind`."""
    metrics: ClassVar[tuple[str, ...]]
    """The names out of `metrics.METRICS` that a study may choose."""
    default_metrics: ClassVar[tuple[str, ...]]
    """What scores a user's own task that names no metric; the first one selects and ranks."""
    has_classes: ClassVar[bool] = False
    """Whether labels are indices into `Task.labels`: then a study may give `labels` and class weights."""
    scales: ClassVar[bool] = False
    """Whether a user's own labels may be brought to mean 0 and standard deviation 1 for the model (`scale`)."""
    label_word: ClassVar[str] = "label"
    """What messages call a label."""
    value_type: ClassVar[type[str] | type[float]] = str
    """The type of what `value` returns, and of the column of predictions."""

    pooling: ClassVar[Literal["sequence", "token"]] = "sequence"
    """What the head reads: one vector a sequence (its first token or the mean, as the model's family has it) with
    logits `[..., outputs]`, or every token with logits `[..., L, outputs]`."""
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    """The class of transformers that loads an export."""
    peft_task: ClassVar[str] = "SEQ_CLS"
    """The same for peft: a `peft.TaskType`."""
    problem_type: ClassVar[str | None] = None
    """What transformers' config calls it, by which its models choose their loss."""
    pipeline: ClassVar[str] = "text-classification"
    """The Hugging Face hub's name of the task, for model cards."""

    right_or_wrong: ClassVar[bool] = True
    """Whether `errors` are booleans, so that McNemar's test can compare two runs."""
    constant_title: ClassVar[str] = "the commonest label"
    """What sentences call the baseline that predicts `constant` of every row."""
    error_title: ClassVar[str] = "share of runs wrong"
    """What the report calls the mean of `errors` over runs."""

    # Reading labels.

    def read_cell(self, cell: object) -> object:
        """A user's own label in its one way of writing; a ValueError where it can be none follows the column's name."""
        return cell

    def learn_classes(self, task: Task, cells: Sequence[object]) -> Task:
        """The user's own task with the classes of its training rows; a ValueError where these can be none."""
        return task

    @abstractmethod
    def parser(self, task: Task) -> Callable[[object], Any]:
        """What makes a row's label of its cell; the message of its ValueError follows the row's place."""

    @abstractmethod
    def as_array(self, task: Task, labels: Sequence[Any]) -> Array:
        """The parsed labels of N rows as an array; integers are split in equal shares where rows are set aside."""

    def learn_targets(self, task: Task, labels: Array) -> Task:
        """A user's own task with what its training labels say of it; a DataError where no metric can be of them."""
        return task

    def check_splits(self, task: Task, splits: Mapping[str, Split]) -> None:  # noqa: B027 (most types refuse none)
        """Refuse labels of a user's own task that cannot be trained on, by a DataError."""

    def constant_dev(self, task: Task, cure: str) -> str | None:
        """Why dev rows that all have the same label cannot be scored, and the cure; None where they can."""
        # A run whose predictions are all the same counts as collapsed, so that must not be right.
        return f"so a constant prediction would be perfect; {cure}"

    # Training and predicting.

    @abstractmethod
    def num_outputs(self, task: Task) -> int:
        """How many logits the head has; a ValueError where that is not known before the data is read."""

    def loss_labels(self, task: Task, labels: Array) -> Array:
        """Labels as `losses` takes them."""
        return labels

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss `[R, B]` (fp32) of logits `[R, B, outputs]` (fp32) and labels `[R, B]`, from `loss_labels`.

        With `pooling` token, it is one of every token, 0 where that has no label.
        """

    @abstractmethod
    def decode(self, logits: Array) -> Array:
        """Logits `[N, outputs]` of one run → predictions `[N]`, to be scored against labels."""

    def combine(self, logits: Array) -> tuple[Array, Array]:
        """Logits `[runs, N, outputs]` fp64 of an ensemble → its predictions `[N]` and probabilities `[N, classes]`."""
        return self.decode(logits.mean(0)), np.empty((logits.shape[1], 0))

    @abstractmethod
    def value(self, task: Task, label: Any) -> str | float:
        """A label or a prediction as files of predictions and the report write it."""

    # Baselines (`data/baselines.py`).

    def constant(self, labels: Array) -> Any:
        """The one label that a baseline predicts of every row: the commonest of the training labels `[N]`."""
        values, counts = np.unique(labels, return_counts=True)
        return values[counts.argmax()]

    def linear_model(self) -> Any:
        """A linear model of scikit-learn, to be fitted to features `[N, F]` and labels `[N]` on the model's scale.

        Its predictions are as `decode` makes them. None: the type has no such baseline.
        """
        return None

    # Texts and figures about labels.

    def shown(self, task: Task, label: Any) -> str:
        """A label in the words of a message."""
        return str(self.value(task, label))

    def all_alike(self, task: Task, label: Any) -> str:
        """Say that a label is the only one, such as "target is 3"."""
        return f"{self.label_word} is {self.shown(task, label)}"

    def class_counts(self, task: Task, labels: Array) -> dict[str, int]:
        """Class → rows of it, in the classes' order; empty without classes."""
        counts = np.bincount(labels, minlength=len(task.labels)).tolist() if self.has_classes else []
        return dict(zip(task.labels, counts, strict=True))

    def target_facts(self, labels: Array) -> dict[str, float]:
        """Lowest, mean, highest and standard deviation of labels that are numbers; empty with classes."""
        if self.has_classes:
            return {}
        exact = labels.astype(np.float64)  # fp32 would lose digits in the sum of a million targets
        found = {"lowest": exact.min(), "mean": exact.mean(), "highest": exact.max(), "spread": exact.std()}
        return {name: float(value) for name, value in found.items()}

    def errors(self, predictions: Array, labels: Array) -> Array:
        """How wrong predictions `[R, N]` are of labels `[N]`: `[R, N]`."""
        return np.not_equal(predictions, labels)

    def metrics_of(self, task: Task) -> tuple[str, ...]:
        """The task's own metrics, then all others that suit its type and its classes."""
        return tuple(dict.fromkeys((*task.metrics, *self.metrics)))

    def may_hold(self, task: Task, labels: Sequence[float]) -> bool:
        """Whether labels that a study directory holds can be of this task."""
        return not self.has_classes or all(label in range(len(task.labels)) for label in labels)

    @abstractmethod
    def describe_outputs(self, task: Task) -> str:
        """The sentence of a model card, in Markdown, on what the outputs mean."""

    # GLUE's server. Only the types of GLUE's own tasks have these.

    def glue_text(self, task: Task, prediction: float | None, *, in_words: bool) -> str:
        """A prediction as the server takes it, classes by name with `in_words`; None: a placeholder that it takes."""
        raise NotImplementedError

    def glue_problem(self, task: Task, text: str, *, in_words: bool) -> str | None:
        """What is wrong with a prediction in a submission, if anything is."""
        raise NotImplementedError


TASK_TYPES: dict[str, TaskType] = {}
"""Every registered type by its name."""


def register(kind: TaskType) -> TaskType:
    """Make a type known; a ValueError if its name is taken, a metric unknown, or every token is to be pooled."""
    if kind.name in TASK_TYPES:
        raise ValueError(f"there is a task type {kind.name!r} already; give this one another name")
    for metric in (*kind.metrics, *kind.default_metrics):
        if metric not in METRICS:
            raise ValueError(f"task type {kind.name}: metric {choices(metric, METRICS)}")
    if kind.pooling == "token":
        raise ValueError(f"task type {kind.name}: packed heads read one vector a sequence so far, not every token")
    TASK_TYPES[kind.name] = kind
    return kind


def get_task_type(name: str) -> TaskType:
    """The type called `name`; a StudyError, which lists the types, if there is none."""
    if name not in TASK_TYPES:
        raise StudyError(f"type: {choices(name, TASK_TYPES)}")
    return TASK_TYPES[name]
