"""What a study keeps beside records and histories, so that its results can be examined without a model.

OUT/runs/<run-id>/predictions.npz   the best snapshot's logits on dev
OUT/tasks/<task>/examples.json      the dev split: sentences, labels and its parts
OUT/tasks/<task>/learned.json       of a user's own task: its classes, or the range and the scale of its targets
OUT/tasks/<task>/baselines.json     what a constant and TF-IDF with a linear model score on dev
OUT/tasks/<task>/structure.json     the backbone's and the head's tensors, and which of them each method trains

All but `learned` are optional: a study directory of an earlier version, or one that is handed on without its data, has
records all the same.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from manytune.config import digest
from manytune.data.baselines import BaselineScore
from manytune.data.task_types import Scale
from manytune.data.tasks import Task
from manytune.methods import Method
from manytune.storage.record import RunRecord
from manytune.utils.errors import StoreError
from manytune.utils.files import MOST_BYTES, read_text, write_atomically, write_file
from manytune.utils.npz import read_npz
from manytune.utils.text import shortened

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec

PREDICTIONS = "predictions.npz"
"""In a run's directory."""

_LOGITS = "logits.npy"
_MOST_BYTES = 1 << 31  # of logits, as a small file can be packed so that it fills any memory, and of dev rows
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold: the same logits give the same bytes


class KeptFacts(BaseModel):
    """Facts in a JSON file of their own, which do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read what `to_json` wrote; a StoreError about `where`, the text's name, if it is something else."""
        try:
            return cls.model_validate_json(text)
        except ValueError as error:
            first = " ".join(str(error).split())[:120]
            raise StoreError(f"{where} is damaged: {first}. Delete it; the report goes without it.") from error


Kept = TypeVar("Kept", bound=KeptFacts)


class Examples(KeptFacts):
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


class Learned(KeptFacts):
    """What only the training rows say of a user's own task: predictions mean nothing without it."""

    labels: tuple[str, ...] = ()
    """The classes, in the order of the outputs; empty where the task type has none."""
    target_range: tuple[float, float] | None = None
    """The lowest and the highest training target."""
    center: float | None = None
    """What is subtracted from a target for the model; None where targets are not scaled."""
    spread: float | None = None
    """What the difference is divided by; None likewise."""

    @classmethod
    def of(cls, task: Task) -> Learned:
        """What was learned of `task`."""
        center, spread = (None, None) if task.scale is None else (task.scale.center, task.scale.spread)
        return cls(labels=task.labels, target_range=task.target_range, center=center, spread=spread)

    @property
    def digest(self) -> str:
        """The SHA-256 of it, without fields that are not set: one that a later version adds changes no digest."""
        return digest(self.model_dump(mode="json", exclude_defaults=True), 64)

    def agrees(self, other: Learned) -> bool:
        """Whether outputs mean the same by both, nearly: earlier versions learned of targets in fp32."""
        numbers = (self.target_range, self.center, self.spread), (other.target_range, other.center, other.spread)
        mine, theirs = (np.array([*(span or ()), center, spread], dtype=float) for span, center, spread in numbers)
        near = {"rtol": 1e-6, "atol": 0.0} if self.spread is None else {"rtol": 0.0, "atol": 1e-4 * self.spread}
        alike = mine.shape == theirs.shape and np.allclose(mine, theirs, equal_nan=True, **near)
        return self.labels == other.labels and alike

    def complete(self, task: Task) -> Task:
        """`task` with what was learned of it; a ValueError if it cannot have been learned of such a task."""
        if task.type.has_classes and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"{len(set(self.labels))} different classes of {len(self.labels)}")
        if self.spread is not None and self.spread <= 0:
            raise ValueError(f"a spread of {self.spread}")
        scale = None if self.center is None or self.spread is None else Scale(self.center, self.spread)
        return replace(task, labels=self.labels, target_range=self.target_range, scale=scale)


class Baselines(KeptFacts):
    """Scores of baselines that learned from the rows that runs train on, and what made them."""

    fingerprint: str
    """The records' `data_fingerprint` of the data."""
    selection: str
    """The study's `selection`, which says what training rows are left."""
    seeds: tuple[int, ...]
    """The seeds whose training rows were learned from; empty where all runs train on the same rows."""
    versions: dict[str, str]
    """Package → version."""
    settings: dict[str, str | int]
    """`baselines.SETTINGS` then."""
    scores: tuple[BaselineScore, ...] = ()

    def made_as(self, other: Baselines) -> bool:
        """Whether both are of the same rows, made in the same way."""
        return self.model_copy(update={"scores": other.scores}) == other

    def fit(self, records: Iterable[RunRecord]) -> bool:
        """Whether these runs trained and were scored on the same rows."""
        here = (self.fingerprint, self.selection)
        return all((run.provenance.data_fingerprint, run.selection) == here for run in records)


class Trained(KeptFacts):
    """What one method trains."""

    weights: bool
    """Whether every tensor of the backbone trains."""
    biases: tuple[str, ...] = ()
    """The backbone's biases that train by themselves."""
    tensors: tuple[str, ...] = ()
    """The backbone's other tensors that train, where not all do: weights of some layers, or gains of norms."""
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
            weights=len(adaptation.weights) == len(spec.tensors),
            biases=adaptation.biases,
            tensors=adaptation.others if len(adaptation.weights) < len(spec.tensors) else (),
            adapters=tuple(adaptation.adapters.items()),
            adapter_label=method.adapter_label if adaptation.adapters else None,
            head=adaptation.head,
        )


class Structure(KeptFacts):
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
    """The logits `[N, outputs]` that `predictions_to_bytes` wrote; a StoreError about `where` for anything else."""
    try:
        logits: NDArray[Any] = read_npz(data, most_bytes=_MOST_BYTES)[_LOGITS.removesuffix(".npy")]
        if logits.ndim != 2 or logits.dtype not in (np.float32, np.float64):
            raise ValueError(f"an array {logits.shape} of {logits.dtype}, not [rows, outputs] of float32 or float64")
    except (ValueError, KeyError) as error:
        raise StoreError(f"{where} is damaged: {shortened(error)}. Delete it; the report goes without it.") from error
    return logits


@dataclass(frozen=True)
class TaskArtifacts:
    """What is kept of one task, in files named like the classes above."""

    directory: Path  # OUT/tasks/<task>

    def refuse_another(self, task: Task, records: Iterable[RunRecord]) -> None:
        """Refuse data that has other classes, or other targets, than what ended runs predict, by a StoreError.

        `task` has what its data says now; `records` are those of all its runs that the study has.
        """
        if task.own is None:
            return
        now, known = Learned.of(task), {record.learned for record in records}
        # Records of an earlier version do not say what their runs learned; only the kept file does.
        there = self._read(Learned) if None in known else None
        if known - {None, now.digest} or (there is not None and not there.agrees(now)):
            raise StoreError(
                f"Task {task.name}: its data has other classes, or targets on another scale, than what the runs in "
                f"{self.directory.parent.parent} were trained on. Give another --out."
            )

    def fit(self, records: Iterable[RunRecord]) -> bool:
        """Whether the classes, or the scale of targets, that are kept are those that these runs learned."""
        known = {record.learned for record in records} - {None}
        with suppress(StoreError):
            there = self._read(Learned) if known else None
            return known <= {there and there.digest}
        return False

    def keep(
        self, task: Task, examples: Examples, structure: Structure, scored: Collection[str | None] | None = None
    ) -> None:
        """Keep a task's dev rows, its module tree, and what only its data says; a StoreError where that fails.

        A tree that is there is extended by methods that were added since. Rows that are there stay if their fingerprint
        is in `scored`, those of the data of the study's runs that have ended; where it is not given, all do.
        """
        if task.own is not None:
            write_atomically(self._path(Learned), Learned.of(task).to_json())
        stay = self._path(Examples).exists()
        if stay and scored is not None:
            stay = False
            with suppress(StoreError):  # damaged rows are written anew
                there = self.examples()
                stay = there is not None and there.fingerprint in {*scored, None}
        if not stay:
            write_atomically(self._path(Examples), examples.to_json())
        with suppress(StoreError):  # a damaged one is made anew
            if (kept := self.structure()) is not None:
                structure = structure.model_copy(update={"trained": {**kept.trained, **structure.trained}})
        write_file(self._path(Structure), structure.to_json())

    def complete(self, task: Task, records: Iterable[RunRecord] = ()) -> Task:
        """A task with what only its data says; a StoreError if that is missing, damaged or not what runs learned."""
        if task.own is None:
            return task
        path, learned = self._path(Learned), self._read(Learned)
        if learned is None:
            raise StoreError(f"{path} is missing: without it, the outputs have no names.")
        try:
            whole = learned.complete(task)
        except ValueError as error:
            raise StoreError(f"{path} is damaged: {error}. Put back what `manytune run` wrote.") from error
        for record in records:
            if record.learned not in (None, learned.digest):
                raise StoreError(
                    f"{path} is not what the run {record.run_id} was trained with: it has other classes, or another "
                    "scale of targets. Run the study again: it is made anew from the data."
                )
        return whole

    def examples(self, task: Task | None = None) -> Examples | None:
        """The dev rows, None if they were not kept; a StoreError if they are damaged or not rows of `task`."""
        found = self._read(Examples, _MOST_BYTES)
        if found is not None and task is not None and not found.fit(task):
            raise StoreError(
                f"{self._path(Examples)} does not hold rows of {task.name}: their texts or labels are of another task."
            )
        return found

    def baselines(self) -> Baselines | None:
        """The scores of baselines; None if they were not kept."""
        return self._read(Baselines)

    def keep_baselines(self, baselines: Baselines) -> None:
        """Keep the scores of baselines; a StoreError where that fails."""
        write_file(self._path(Baselines), baselines.to_json())

    def structure(self) -> Structure | None:
        """The module tree; None if it was not kept."""
        return self._read(Structure)

    def _read(self, kind: type[Kept], most_bytes: int = MOST_BYTES) -> Kept | None:
        """What was kept; None if nothing was, a StoreError if it is damaged."""
        text = read_text(self._path(kind), most_bytes)
        return None if text is None else kind.from_json(text, where=str(self._path(kind)))

    def _path(self, kind: type[KeptFacts]) -> Path:
        return self.directory / f"{kind.__name__.lower()}.json"
