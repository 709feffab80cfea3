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
from manytune.data.row_writers import Row
from manytune.data.rows import refuse_taken
from manytune.data.tasks import Task
from manytune.models.loading import load_backbone, load_tokenizer
from manytune.packing import Member, PackedModel
from manytune.storage.directory import Store
from manytune.storage.lookup import chosen_records, open_trained, refuse_another_backbone
from manytune.storage.record import RunRecord
from manytune.training import snapshot
from manytune.training.evaluation import predict
from manytune.training.workload import encode_texts
from manytune.utils import hardware
from manytune.utils.errors import DataError, StoreError
from manytune.utils.text import no_column

_MOST_TOGETHER = 16  # runs that go through the backbone at once


@dataclass(frozen=True)
class Prediction:
    """What is predicted for one row."""

    value: str | float  # the name of the class, or the number
    probabilities: Mapping[str, float]  # name of each class → its probability; empty without classes


class Predictor:
    """One run, or an ensemble of several: the mean of their probabilities, or of their scores.

    `task` is what is predicted, `records` are of the runs, `notes` say what could not be checked of them.
    """

    def __init__(self, store: Store, records: Sequence[RunRecord], device: str = "auto") -> None:
        """Load runs of one task, which have snapshots, on a device: `auto`, `cpu`, `cuda` or `mps`.

        Raises ManytuneError where a snapshot or the backbone cannot be loaded, or the backbone is not what was trained.
        """
        self.task: Task = store.task(records[0].task)
        self.records = tuple(records)
        self._study = store.study()
        chosen = hardware.choose_device(device)
        by_id = {run.id: run for run in store.runs()}
        if missing := [record.run_id for record in records if record.run_id not in by_id]:
            raise StoreError(f"The plan of {store.root} no longer names {', '.join(missing)}.")
        runs = [by_id[record.run_id] for record in records]
        self._tokenizer = load_tokenizer(self._study.model)
        backbone = load_backbone(self._study.model, self.task.num_outputs)
        for record in records:
            refuse_another_backbone(record.run_id, record.model, record.provenance.model_revision, backbone.revision)
        self._model_spec = backbone.model_spec
        record_of = {record.run_id: record for record in records}
        self._models: list[tuple[tuple[Run, ...], PackedModel]] = []
        for pack in plan_packs(runs, _MOST_TOGETHER):
            members = [Member(run.seed, run.method.adapt(self._model_spec)) for run in pack.runs]
            states = [snapshot.load_own(store, record_of[run.id], run) for run in pack.runs]
            self._models.append((pack.runs, snapshot.restore(backbone, members, states, device=chosen)))
        self.notes: tuple[str, ...] = ()
        if unknown := [record.run_id for record in records if record.schema_version == 1]:
            self.notes = (
                f"{', '.join(unknown)}: trained by an earlier version, which kept no digest of snapshots, so whether "
                "the tensors are the run's own cannot be checked.",
            )

    def logits(self, texts: Sequence[str | tuple[str, ...]]) -> NDArray[Any]:
        """Logits [runs, N, outputs] in fp32, of the runs in the order in which they were given.

        Where the task has a scale they are in the targets' own unit and in fp64. Raises DataError where a row has not
        as many sentences as the task.
        """
        rows = self._rows(texts)
        if not rows:
            return np.empty((len(self.records), 0, self.task.num_outputs), dtype=np.float32)
        data = encode_texts(self._study, self._model_spec, self._tokenizer, rows)
        found: dict[str, NDArray[Any]] = {}
        for runs, model in self._models:
            everything = [np.arange(data.size)] * len(runs)
            found |= zip((run.id for run in runs), predict(model, data, everything), strict=True)
        logits: NDArray[Any] = np.stack([found[record.run_id] for record in self.records])
        return logits if self.task.scale is None else self.task.outside(logits.astype(np.float64))

    def predict(self, texts: Sequence[str | tuple[str, ...]]) -> list[Prediction]:
        """A prediction for each text, or pair of texts.

        Raises DataError where a row has not as many sentences as the task, or an empty one.
        """
        rows = self._rows(texts)
        for number, row in enumerate(rows, 1):
            if not self.task.is_whole(row):
                raise DataError(f"row {number}: {self.task.text_columns[row.index('')]} is empty")
        task, (values, probabilities) = self.task, self._combined(rows)
        return [
            Prediction(task.type.value(task, value), dict(zip(task.labels, row.tolist(), strict=True)))
            for value, row in zip(values, probabilities, strict=True)
        ]

    def values(self, texts: Sequence[str | tuple[str, ...]]) -> list[float]:
        """A class index or a score for each text, or pair of texts; empty ones are predicted as they are.

        Raises DataError where a row has not as many sentences as the task.
        """
        return [float(value) for value in self._combined(texts)[0]]

    def _combined(self, texts: Sequence[str | tuple[str, ...]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The ensemble's predictions `[N]` and probabilities `[N, classes]`."""
        return self.task.type.combine(self.logits(texts).astype(np.float64))

    def predict_rows(self, rows: Sequence[Row], where: str = "", before: int = 0) -> tuple[list[Row], int]:
        """Rows of a table, which have the task's text columns, with their predictions.

        Returns the rows in order, with `prediction` and, of classes, the probability of each as `p_<class>`; and the
        number of rows of which a text is empty, whose predictions are null. `where` stands before a row's number in a
        message, such as the file's name; `before` counts the rows of the table before these. Raises DataError where a
        row lacks a text column or has a column with the name of one of these, or a cell is no text.
        """
        for number, row in enumerate(rows, before + 1):
            row_name = f"{where}row {number}"
            if not isinstance(row, Mapping):
                raise DataError(f"{row_name}: a mapping of columns to cells is needed; {type(row).__name__} was given")
            for column in self.task.text_columns:
                if column not in row:
                    raise DataError(f"{row_name}: {no_column(column, row)}")
            refuse_taken(row_name, row, self.added)
        made, empty = self.predict_columns(rows, where, before)
        return [{**row, **predicted} for row, predicted in zip(rows, made, strict=True)], empty

    @property
    def added(self) -> dict[str, type]:
        """Name of each column that predictions make → `str` or `float`."""
        first, *others = self.task.prediction_columns
        return {first: self.task.type.value_type, **dict.fromkeys(others, float)}

    def predict_columns(self, rows: Sequence[Row], where: str = "", before: int = 0) -> tuple[list[Row], int]:
        """As `predict_rows`, but without the columns that the rows already have."""
        cells = [tuple(row[name] for name in self.task.text_columns) for row in rows]
        texts = [self._row(f"{where}row {number}", row) for number, row in enumerate(cells, before + 1)]
        whole = [index for index, text in enumerate(texts) if self.task.is_whole(text)]
        found: list[Row] = [dict.fromkeys(self.added) for _ in rows]
        for index, made in zip(whole, self.predict([texts[index] for index in whole]), strict=True):
            found[index] = dict(zip(self.added, (made.value, *made.probabilities.values()), strict=True))
        return found, len(rows) - len(whole)

    def _rows(self, texts: Sequence[str | tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The rows, their cells understood as those of a file of rows are."""
        if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable) or hasattr(texts, "columns"):
            raise DataError(f"a list of texts is needed, or of tuples of texts; {type(texts).__name__} was given")
        return [self._row(f"row {number}", text) for number, text in enumerate(texts, 1)]

    def _row(self, row_name: str, text: object) -> tuple[str, ...]:
        cells = tuple(text) if isinstance(text, (tuple, list, np.ndarray)) else (text,)
        wanted = self.task.text_columns
        if len(cells) != len(wanted):
            raise DataError(
                f"{row_name}: {len(cells)} given; {self.task.name} takes {len(wanted)} for each prediction: "
                f"{', '.join(wanted)}"
            )
        row = []
        for column, cell in zip(wanted, cells, strict=True):
            try:
                row.append(text_of(cell))
            except ValueError as error:
                raise DataError(f"{row_name}: {column} {error}") from None
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
    store = open_trained(directory, task)
    predictor = Predictor(store, chosen_records(store, run, task), device)
    for note in predictor.notes:
        warnings.warn(note, stacklevel=2)
    return predictor
