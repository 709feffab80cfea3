"""Predict GLUE's unlabelled test splits with the best runs, and pack them for its server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manytune.data.glue_zip import FILES, refuse_to_replace, write_zip
from manytune.data.splits import load_split
from manytune.data.tasks import GLUE
from manytune.inference.predictor import Predictor
from manytune.storage.directory import Store
from manytune.storage.lookup import chosen_records, refuse_own_folders
from manytune.storage.record import RunRecord, RunState
from manytune.utils.errors import StudyError

_AT_ONCE = 4096  # rows that are encoded and predicted together


@dataclass(frozen=True)
class Submission:
    """What was written."""

    path: Path
    runs: Mapping[str, tuple[str, ...]]  # name of a file → the runs that predicted it; none where a placeholder stands
    notes: tuple[str, ...] = ()  # what could not be checked of the runs, a sentence each


def submit(
    stores: Sequence[Store], out: Path, *, run: str | None = None, data_dir: str | None = None, device: str = "auto"
) -> Submission:
    """Write the zip `out`, a submission to GLUE's server, or replace an earlier one.

    Where several studies have a task, the best run of all counts. `run` gives ids of runs instead, with commas between;
    several of one task are an ensemble. `data_dir` is a folder in GLUE's layout, instead of the studies' own. Raises
    ManytuneError where no run is of a GLUE task, its test rows or weights cannot be had, or the zip cannot be written.
    """
    refuse_own_folders(stores, out)
    refuse_to_replace(out)  # before hours of predictions
    chosen = _chosen(stores, run)
    if not chosen:
        raise StudyError(f"No run that has finished is of one of GLUE's tasks: {', '.join(GLUE)}.")
    predictions: dict[str, Sequence[float]] = {}
    runs: dict[str, tuple[str, ...]] = dict.fromkeys(FILES, ())
    notes: list[str] = []
    for task, (store, records) in chosen.items():
        predictor = Predictor(store, records, device)
        notes += predictor.notes
        for file in FILES.values():
            if file.task.name != task:
                continue
            rows = load_split(file.task, file.split, data_dir or store.study().data_dir)
            parts = [rows.texts[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]
            predictions[file.name] = [value for part in parts for value in predictor.values(part)]
            runs[file.name] = tuple(record.run_id for record in records)
    write_zip(out, predictions)
    return Submission(out, runs, tuple(notes))


def _chosen(stores: Sequence[Store], run: str | None) -> dict[str, tuple[Store, tuple[RunRecord, ...]]]:
    """Task → where its runs are, and which."""
    chosen: dict[str, tuple[Store, tuple[RunRecord, ...]]] = {}
    if run is not None:
        if len(stores) != 1:
            raise StudyError("--run: the ids are of one study; give one directory")
        for name in run.split(","):
            (record,) = chosen_records(stores[0], name, None)
            _, before = chosen.get(record.task, (stores[0], ()))
            chosen[record.task] = (stores[0], (*before, record))
        return {task: found for task, found in chosen.items() if task in GLUE}
    for store in stores:
        ended = store.finished_runs().values()
        scored = [each for each in ended if each.state is RunState.FINISHED and each.best_score is not None]
        for task in dict.fromkeys(record.task for record in scored if record.task in GLUE):
            (record,) = chosen_records(store, "best", task)
            known = chosen.get(task)
            if known is None or (record.best_score or 0.0) > (known[1][0].best_score or 0.0):
                chosen[task] = (store, (record,))
    return chosen
