"""What a study keeps beside records and histories, so that its results can be looked into without a model.

OUT/runs/<run-id>/predictions.npz   the best snapshot's logits on dev
OUT/tasks/<task>/examples.json      the dev split: sentences, labels and its parts
OUT/tasks/<task>/learned.json     of a user's own task: its classes, or the range and the scale of its targets
OUT/tasks/<task>/structure.json     the backbone's and the head's tensors, and which of them each method trains

All but `learned` are optional: a study directory of an earlier version, or one that is handed on without its data, has
records all the same.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from manytune.config import digest
from manytune.data.task_types import Scale
from manytune.data.tasks import Task
from manytune.methods import Method
from manytune.utils.errors import StoreError
from manytune.utils.npz import read_npz
from manytune.utils.text import shortened

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec


PREDICTIONS = "predictions.npz"
"""In a run's directory."""

_LOGITS = "logits.npy"
_MOST_BYTES = 1 << 31  # of logits: a small file can be packed so that it fills any memory
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold: the same logits give the same bytes


class _Kept(BaseModel):
    """Frozen facts in a JSON file of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read what `to_json` wrote.

        Args:
            text: The JSON text.
            where: What to call the text in an error message, such as its path.

        Raises:
            StoreError: The text is something else.
        """
        try:
            return cls.model_validate_json(text)
        except ValueError as error:
            first = " ".join(str(error).split())[:120]
            raise StoreError(f"{where} is damaged: {first}. Delete it; the report goes without it.") from error


class Examples(_Kept):
    """The rows of a task's dev split, in the order of the predictions."""

    texts: tuple[tuple[str, ...], ...]
    """N rows of one or two sentences."""
    labels: tuple[float, ...]
    """N class indices or targets."""
    parts: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Name of a part → its first row and the row after its last."""
    fingerprint: str | None = None
    """The records' `data_fingerprint` of the data that these rows belong to."""

    @model_validator(mode="after")
    def _rows_match(self) -> Self:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts and {len(self.labels)} labels")
        if not all(0 <= first <= last <= len(self.labels) for first, last in self.parts.values()):
            raise ValueError(f"a part that is not among the {len(self.labels)} rows")
        return self

    def fit(self, task: Task) -> bool:
        """Whether these can be rows of `task`: as many texts each, and labels of its type."""
        pairs = all(len(row) == len(task.text_columns) for row in self.texts)
        return pairs and task.type.may_hold(task, self.labels)


class Learned(_Kept):
    """What only the training rows say of a user's own task: predictions mean nothing without it."""

    labels: tuple[str, ...] = ()
    """The classes, in the order of the outputs; empty where the task type has none."""
    target_range: tuple[float, float] | None = None
    """The lowest and the highest training target."""
    center: float | None = None
    """What is taken from a target inside; None where nothing is."""
    spread: float | None = None
    """What it is then divided by."""

    @classmethod
    def of(cls, task: Task) -> Learned:
        """What was learned of `task`."""
        scale = task.scale
        known = (None, None) if scale is None else (scale.center, scale.spread)
        return cls(labels=task.labels, target_range=task.target_range, center=known[0], spread=known[1])

    @property
    def digest(self) -> str:
        """The SHA-256 of it, without fields that are not set: one that a later version adds changes no digest."""
        return digest(self.model_dump(mode="json", exclude_defaults=True), 64)

    def agrees(self, other: Learned) -> bool:
        """Whether outputs mean the same by both; earlier versions learned of targets in fp32, so nearly is enough."""
        numbers = (self.target_range, self.center, self.spread), (other.target_range, other.center, other.spread)
        mine, theirs = (np.array([*(span or ()), center, spread], dtype=float) for span, center, spread in numbers)
        near = {"rtol": 1e-6, "atol": 0.0} if self.spread is None else {"rtol": 0.0, "atol": 1e-4 * self.spread}
        alike = mine.shape == theirs.shape and np.allclose(mine, theirs, equal_nan=True, **near)
        return self.labels == other.labels and alike

    def complete(self, task: Task) -> Task:
        """`task` with what was learned of it.

        Raises:
            ValueError: It cannot have been learned of such a task.
        """
        if task.type.has_classes and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"{len(set(self.labels))} different classes of {len(self.labels)}")
        if self.spread is not None and self.spread <= 0:
            raise ValueError(f"a spread of {self.spread}")
        scale = None if self.center is None or self.spread is None else Scale(self.center, self.spread)
        return replace(task, labels=self.labels, target_range=self.target_range, scale=scale)


class Trained(_Kept):
    """What one method trains."""

    weights: bool
    """Whether every tensor of the backbone trains."""
    biases: tuple[str, ...] = ()
    """The backbone's biases that train by themselves."""
    adapters: tuple[tuple[str, int], ...] = ()
    """Paths of the modules with an adapter, and how many parameters it has."""
    adapter_label: str | None = None
    """What distinguishes adapters of different size: "r=8"; None where there are none."""
    head: tuple[str, ...] = ()
    """The head's tensors that train."""

    @classmethod
    def of(cls, method: Method, spec: ModelSpec) -> Trained:
        """What `method` trains of a backbone and its head."""
        adaptation = method.adapt(spec)
        return cls(
            weights=adaptation.weights,
            biases=adaptation.biases,
            adapters=tuple(adaptation.adapters.items()),
            adapter_label=method.adapter_label if adaptation.adapters else None,
            head=adaptation.head,
        )


class Structure(_Kept):
    """The module tree of a backbone with a task's head: shapes, and what trains."""

    model: str
    """Name of the backbone, as the study gave it."""
    tensors: dict[str, tuple[int, ...]]
    """The backbone's parameters: path → shape, in the order of the module tree."""
    head: dict[str, tuple[int, ...]]
    """The head's parameters: path → shape, in the order of computation."""
    trained: dict[str, Trained]
    """Label of a method → what it trains."""

    @model_validator(mode="before")
    @classmethod
    def _earlier_adapters(cls, data: Any) -> Any:
        """Read adapters as earlier versions wrote them: a rank, and the layers with an update of that rank."""
        try:
            for trained in data["trained"].values():
                if isinstance(trained, dict) and "lora_rank" in trained:
                    rank, targets = trained.pop("lora_rank"), trained.pop("lora_targets")
                    sizes = [(path, rank * sum(data["tensors"][f"{path}.weight"])) for path in targets]
                    trained |= {"adapters": sizes, "adapter_label": f"r={rank}" if targets else None}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"trained: {type(error).__name__}: {error}") from error
        return data


def predictions_to_bytes(logits: NDArray[Any]) -> bytes:
    """A compressed NPZ of logits `[N, outputs]` in fp32 or fp64; the same logits give the same bytes."""
    array, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array(array, np.ascontiguousarray(logits), allow_pickle=False)
    with zipfile.ZipFile(file, "w") as archive:
        entry = zipfile.ZipInfo(_LOGITS, date_time=_NO_DATE)
        archive.writestr(entry, array.getvalue(), compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)
    return file.getvalue()


def predictions_from_bytes(data: bytes, where: str) -> NDArray[Any]:
    """The logits `[N, outputs]` that `predictions_to_bytes` wrote; nothing is unpickled.

    Args:
        data: The file's content.
        where: What to call it in an error message, such as its path.

    Raises:
        StoreError: It is something else.
    """
    try:
        logits: NDArray[Any] = read_npz(data, most_bytes=_MOST_BYTES)[_LOGITS.removesuffix(".npy")]
        if logits.ndim != 2 or logits.dtype not in (np.float32, np.float64):
            raise ValueError(f"an array {logits.shape} of {logits.dtype}, not [rows, outputs] of float32 or float64")
    except (ValueError, KeyError) as error:
        raise StoreError(f"{where} is damaged: {shortened(error)}. Delete it; the report goes without it.") from error
    return logits
