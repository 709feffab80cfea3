"""Which run a user means, and where nothing may be written."""

from __future__ import annotations

import difflib
import errno
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from manytune.data.metrics import METRICS
from manytune.storage.artifacts import PREDICTIONS
from manytune.storage.directory import MOST_LOGITS, OWN_FOLDERS, Store
from manytune.storage.record import RunRecord, RunState
from manytune.utils.errors import ModelError, StoreError, StudyError, choices
from manytune.utils.files import digest_of
from manytune.utils.text import listed

SNAPSHOT = ("best/snapshot.json", "best/snapshot.safetensors")
"""Files in a run's directory of which the record holds digests, as it does of `PREDICTIONS`."""


def one_run(start: str, run_ids: Sequence[str], directory: object) -> str:
    """The run whose id a user wrote, or the only one of `run_ids` whose id starts so.

    Raises:
        StoreError: There is no such run, or more than one.
    """
    found = [run_id for run_id in run_ids if run_id == start] or [r for r in run_ids if r.startswith(start)]
    if len(found) == 1:
        return found[0]
    see_all = f"`manytune status {directory}` lists all runs."
    if found:
        shown = listed(found, 6, 200)
        raise StoreError(f"{start!r} is the start of {len(found)} runs: {shown}. Give more of one. {see_all}")
    near = difflib.get_close_matches(start, run_ids, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise StoreError(f"There is no run {start!r}.{hint} {see_all}")


def chosen_records(store: Store, runs: str, task: str | None) -> tuple[RunRecord, ...]:
    """The records of the runs that a user chose to predict with, or to export.

    `runs` is `best`, the finished run with the best score of a task; or one or several ids, or starts of ids, with
    commas between. In a study of several tasks, `best` needs the `task`.

    Raises:
        StoreError: There is no such run, or it has no snapshot.
        StudyError: The runs are of different tasks, or the task is not said or not the study's.
    """
    records = store.finished_runs()
    tasks = list(dict.fromkeys(record.task for record in records.values()))
    if task is not None and task not in tasks:
        raise StudyError(f"--task: {choices(task, tasks) if tasks else 'no run of this study has ended'}")
    if runs == "best":
        return (_best(records, task, tasks, store),)
    chosen = tuple(records[one_run(name.strip(), list(records), store.root)] for name in runs.split(","))
    for record in chosen:
        if not (store.snapshot_dir(record.run_id)).is_dir():
            raise StoreError(f"The run {record.run_id} has no snapshot: it is {record.state}. {record.failure or ''}")
    of = sorted({record.task for record in chosen})
    if len(of) > 1 or (task is not None and of != [task]):
        raise StudyError(f"--run: these runs are of {', '.join(of)}; choose runs of {task or 'one task'}")
    return chosen


def refuse_another_backbone(run_id: str, model: str, trained: str | None, now: str) -> None:
    """Refuse weights that a run did not start from: those of another revision than `trained`, if that is known.

    Raises:
        ModelError: They are.
    """
    if trained not in (None, now):
        raise ModelError(
            f"model: {run_id} was trained on {model} at {trained}, and what is there now is {now}. A snapshot holds "
            "what was trained alone: get back the weights it started from."
        )


def digests(run_dir: Path) -> dict[str, str]:
    """Path in a run's directory → SHA-256, of its snapshot and predictions, as far as they are there.

    Raises:
        StoreError: One of them cannot be read.
    """
    return {name: _digest(run_dir / name) for name in (*SNAPSHOT, PREDICTIONS) if (run_dir / name).exists()}


def altered(store: Store, record: RunRecord, names: Sequence[str]) -> str | None:
    """Say that a file is not the one that the run wrote: copied from another run, edited or damaged.

    `names` are paths in the run's directory; those that are not there are passed over.

    Returns:
        What is wrong and how to mend it; None where all are as they were, and for a record of version 1, which has no
        digests.

    Raises:
        StoreError: A file cannot be read.
    """
    directory = store.run_dir(record.run_id)
    for name in names if record.schema_version > 1 else ():
        if (directory / name).exists() and _digest(directory / name) != record.files.get(name):
            return (
                f"{directory / name} is not the file that the run {record.run_id} wrote: its SHA-256 is not the one in "
                f"the run's record. Put the run's own file back, or delete {directory} and run the study again."
            )
    return None


def _digest(path: Path) -> str:
    try:
        if path.name == PREDICTIONS and path.stat().st_size > MOST_LOGITS:
            raise OSError(errno.EFBIG, f"it has more than {MOST_LOGITS:,} bytes")
        return digest_of(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error


def _best(records: Mapping[str, RunRecord], task: str | None, tasks: Sequence[str], store: Store) -> RunRecord:
    if task is None:
        if len(tasks) > 1:
            raise StudyError(f"--task: this study has runs of {', '.join(tasks)}; say of which the best run is meant")
        task = tasks[0] if tasks else ""
    own = [record for record in records.values() if record.task == task]
    scored = [(r.best_score, r) for r in own if r.state is RunState.FINISHED and r.best_score is not None]
    if not scored:
        raise StoreError(f"No run of {store.root} has finished{_instead(own)}, so there is none to choose.")
    metric = scored[0][1].primary_metric
    if metric not in METRICS:
        raise StoreError(f"The record of {scored[0][1].run_id} has a metric that {choices(metric, METRICS)}")
    sign = 1 if METRICS[metric].higher_is_better else -1
    return max(scored, key=lambda one: sign * one[0])[1]


def _instead(records: Sequence[RunRecord]) -> str:
    """What became of the runs of a task, of which none has finished with a score."""
    if not records:
        return ""
    states = Counter(str(record.state) for record in records)
    said = f" with a score: of {records[0].task}, {', '.join(f'{count} {state}' for state, count in states.items())}"
    for record in records:
        if record.state is RunState.COLLAPSED:
            said += f" (predicting one constant for every text; --run {record.run_id} uses one all the same)"
            break
    return said


def refuse_own_folders(stores: Iterable[Store], target: Path) -> None:
    """Refuse to write what a user asked for into a folder that a study keeps its own files in.

    Raises:
        StoreError: `target` is in one of them.
    """
    real = os.path.realpath(target)
    for store in stores:
        for name in OWN_FOLDERS:
            if Path(real).is_relative_to(os.path.realpath(store.root / name)):
                raise StoreError(f"{target} is among the study's own files in {store.root}; give a name elsewhere.")
