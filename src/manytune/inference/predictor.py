"""Runs of a study, ready to predict: loaded from their snapshots, several of them as an ensemble."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.config.plan import Run, plan_packs
from manytune.data.cells import text_of
from manytune.data.rows import Row, refuse_taken
from manytune.data.tasks import Task
from manytune.methods import adapt
from manytune.models.loading import Backbone, load_backbone, load_tokenizer
from manytune.packing import Member, PackedModel
from manytune.storage.directory import Store
from manytune.storage.lookup import chosen_records, refuse_another_backbone
from manytune.storage.record import RunRecord
from manytune.training import snapshot
from manytune.training.evaluation import predict
from manytune.training.workload import encode_texts
from manytune.utils import hardware
from manytune.utils.errors import DataError, StoreError
from manytune.utils.text import no_column

__all__ = ["Prediction", "Predictor", "load"]

_MOST_TOGETHER = 16
"""Runs that go through the backbone at once."""


def _row_number(index: int) -> str:
    return f"row {index + 1}"


@dataclass(frozen=True)
class Prediction:
    """What is predicted for one row.

    Attributes:
        value: The name of the class, or the score of a regression; None of a row of a table that has no text.
        probabilities: Name of each class → its probability; empty for a regression.
    """

    value: str | float | None
    probabilities: Mapping[str, float | None]


class Predictor:
    """One run, or an ensemble of several: the mean of their probabilities, or of their scores.

    Attributes:
        task: What is predicted.
        records: Of the runs.
        notes: What could not be checked of them, a sentence each.
    """

    def __init__(self, store: Store, records: Sequence[RunRecord], device: str = "auto") -> None:
        """Load runs.

        Args:
            store: The study directory.
            records: Of runs of one task, which have snapshots.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            ManytuneError: A snapshot or the backbone cannot be loaded, or the backbone is not what was trained.
        """
        self.task: Task = store.task(records[0].task)
        self.records = tuple(records)
        self._device = hardware.choose_device(device)
        self._study = store.study()
        by_id = {run.id: run for run in store.runs()}
        missing = [record.run_id for record in records if record.run_id not in by_id]
        if missing:
            raise StoreError(f"The plan of {store.root} no longer names {', '.join(missing)}.")
        runs = [by_id[record.run_id] for record in records]
        self._order = [run.id for run in runs]
        self._tokenizer = load_tokenizer(self._study.model)
        backbone = load_backbone(self._study.model, self.task.num_outputs)
        for record in records:
            refuse_another_backbone(record.run_id, record.model, record.provenance.model_revision, backbone.revision)
        self._anatomy = backbone.model_spec
        packs = plan_packs(runs, _MOST_TOGETHER)
        self._models = [(pack, self._model(store, backbone, pack.runs)) for pack in packs]
        unknown = [record.run_id for record in records if record.schema_version == 1]
        self.notes: tuple[str, ...] = ()
        if unknown:
            self.notes = (
                f"{', '.join(unknown)}: trained by an earlier version, which kept no digest of snapshots, so whether "
                "the tensors are the run's own cannot be checked.",
            )

    def logits(self, texts: Sequence[str | tuple[str, ...]]) -> NDArray[Any]:
        """Logits [runs, N, outputs] in fp32, of the runs in the order in which they were given.

        Those of a regression are in the targets' own unit, and in fp64 where that is another one than inside.

        Raises:
            DataError: A row has not as many sentences as the task.
        """
        rows = self._rows(texts)
        if not rows:
            return np.empty((len(self._order), 0, self.task.num_outputs), dtype=np.float32)
        data = encode_texts(self._study, self.task, self._anatomy, self._tokenizer, rows)
        found: dict[str, NDArray[Any]] = {}
        for pack, model in self._models:
            everything = [np.arange(data.size)] * len(pack.runs)
            found |= {run.id: own for run, own in zip(pack.runs, predict(model, data, everything), strict=True)}
        logits: NDArray[Any] = np.stack([found[run_id] for run_id in self._order])
        return logits if self.task.scale is None else self.task.outside(logits.astype(np.float64))

    def predict(self, texts: Sequence[str | tuple[str, ...]]) -> list[Prediction]:
        """A prediction for each text, or pair of texts.

        Raises:
            DataError: A row has not as many sentences as the task, or an empty one.
        """
        rows = self._rows(texts)
        for index, row in enumerate(rows):
            if not self.task.is_whole(row):
                raise DataError(f"{_row_number(index)}: {self.task.text_columns[row.index('')]} is empty")
        means = self._means(rows)
        if self.task.kind == "regression":
            return [Prediction(float(score), {}) for (score,) in means]
        names = self.task.labels
        return [
            Prediction(names[int(row.argmax())], {name: float(p) for name, p in zip(names, row, strict=True)})
            for row in means
        ]

    def values(self, texts: Sequence[str | tuple[str, ...]]) -> list[float]:
        """A class index or a score for each text, or pair of texts; empty ones are predicted as they are.

        Raises:
            DataError: A row has not as many sentences as the task.
        """
        means = self._means(texts)
        values = means[:, 0] if self.task.kind == "regression" else means.argmax(-1)
        return [float(value) for value in values]

    def _means(self, texts: Sequence[str | tuple[str, ...]]) -> NDArray[Any]:
        """[N, outputs] float64: the runs' mean probabilities, or scores."""
        logits = self.logits(texts).astype(np.float64)
        if self.task.kind == "classification":
            shares = np.exp(logits - logits.max(-1, keepdims=True))
            logits = shares / shares.sum(-1, keepdims=True)
        mean: NDArray[Any] = logits.mean(0)
        return mean

    def predict_rows(self, rows: Sequence[Row], where: str = "", before: int = 0) -> tuple[list[Row], int]:
        """Rows of a table with their predictions.

        Args:
            rows: They have the task's text columns.
            where: Words before a row's number in a message, such as the file's name.
            before: Rows of the table before these.

        Returns:
            The rows in order, with `prediction` and, of classes, the probability of each as `p_<class>`; and the number
            of rows of which a text is empty, whose predictions are null.

        Raises:
            DataError: A row lacks a text column or has a column that is called so, or a cell is no text.
        """
        for index, row in enumerate(rows):
            place = where + _row_number(before + index)
            if not isinstance(row, Mapping):
                raise DataError(f"{place}: a mapping of columns to cells is needed; {type(row).__name__} was given")
            for column in self.task.text_columns:
                if column not in row:
                    raise DataError(f"{place}: {no_column(column, row)}")
            refuse_taken(place, row, self.added)
        made, empty = self.predict_columns(rows, where, before)
        return [{**row, **own} for row, own in zip(rows, made, strict=True)], empty

    @property
    def added(self) -> dict[str, type]:
        """Name of each column that predictions make → `str` or `float`."""
        kind = float if self.task.kind == "regression" else str
        first, *others = self.task.prediction_columns
        return {first: kind, **dict.fromkeys(others, float)}

    def predict_columns(self, rows: Sequence[Row], where: str = "", before: int = 0) -> tuple[list[Row], int]:
        """As `predict_rows`, but what the rows already have is left out."""
        columns = self.task.text_columns
        cells = [tuple(row[name] for name in columns) for row in rows]
        texts = [self._row(where + _row_number(index), row) for index, row in enumerate(cells, before)]
        whole = [index for index, text in enumerate(texts) if self.task.is_whole(text)]
        made = dict(zip(whole, self.predict([texts[index] for index in whole]), strict=True))
        nothing = Prediction(None, dict.fromkeys(self.task.labels))
        found: list[Row] = []
        for index in range(len(rows)):
            own = made.get(index, nothing)
            found.append({"prediction": own.value, **{f"p_{name}": p for name, p in own.probabilities.items()}})
        return found, len(rows) - len(whole)

    def _model(self, store: Store, backbone: Backbone, runs: Sequence[Run]) -> PackedModel:
        members = [Member(run.seed, adapt(run.method, backbone.model_spec)) for run in runs]
        records = {record.run_id: record for record in self.records}
        states = [snapshot.load_own(store, records[run.id], run) for run in runs]
        return snapshot.restore_pack(backbone, members, states, device=self._device)

    def _rows(self, texts: Sequence[str | tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The rows, their cells understood as those of a file of rows are."""
        if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable) or hasattr(texts, "columns"):
            raise DataError(f"a list of texts is needed, or of tuples of texts; {type(texts).__name__} was given")
        return [self._row(_row_number(index), text) for index, text in enumerate(texts)]

    def _row(self, place: str, text: object) -> tuple[str, ...]:
        cells = tuple(text) if isinstance(text, (tuple, list, np.ndarray)) else (text,)
        wanted = self.task.text_columns
        if len(cells) != len(wanted):
            raise DataError(
                f"{place}: {len(cells)} given; {self.task.name} takes {len(wanted)} for each prediction: "
                f"{', '.join(wanted)}"
            )
        row = []
        for column, cell in zip(wanted, cells, strict=True):
            try:
                row.append(text_of(cell))
            except ValueError as error:
                raise DataError(f"{place}: {column} {error}") from None
        return tuple(row)


def load(directory: Path | str, run: str = "best", *, task: str | None = None, device: str = "auto") -> Predictor:
    """Load runs of a study to predict with.

    >>> load("results").predict(["The cat sat."])  # doctest: +SKIP

    Args:
        directory: The study directory.
        run: `best`, a run's id or the start of one; several with commas between make an ensemble.
        task: Name of the task, needed for `best` where the study has several.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        ManytuneError: There is no such study or run, or it cannot be loaded.
    """
    store = Store.open(directory)
    predictor = Predictor(store, chosen_records(store, run, task), device)
    for note in predictor.notes:
        warnings.warn(note, stacklevel=2)
    return predictor
