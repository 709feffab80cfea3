"""Which run a user means, and which folders a user's output must not go to."""

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
    """The run whose id a user wrote, or the only one whose id starts so; a StoreError where there is not one."""
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


def open_trained(directory: Path | str, task: str | None = None) -> Store:
    """The study directory whose runs can be used: of a study that searches, that of the winners of a task.

    `task` is the one that a user named. Raises StoreError where there is none yet, StudyError where it is not clear.
    """
    store = Store.open(directory)
    study = store.study()
    if study.search is None:
        return store
    confirmed = {each.root.name: each for each in store.confirm_stores(study)}
    if not confirmed:
        raise StoreError(
            f"{store.root} holds a search whose winners have not been trained again, and trials keep no snapshots. "
            f"Go on with `manytune run`, or train the best settings: manytune best {store.root} > study.yaml"
        )
    if task is not None and task not in confirmed:
        raise StudyError(f"--task: {choices(task, confirmed)}")
    if task is None and len(confirmed) > 1:
        raise StudyError(f"--task: the search is of several tasks, {listed(list(confirmed))}; name one.")
    return confirmed[task] if task is not None else next(iter(confirmed.values()))


def chosen_records(store: Store, runs: str, task: str | None) -> tuple[RunRecord, ...]:
    """The records of the runs that a user chose to predict with, or to export.

    `runs` is `best`, the finished run with the best score of a task; or one or several ids, or starts of ids, with
    commas between. In a study of several tasks, `best` needs the `task`. A StoreError says that there is no such run or
    that it has no snapshot; a StudyError, that the runs are of different tasks, or the task is not the study's.
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
    trained_on = sorted({record.task for record in chosen})
    if len(trained_on) > 1 or (task is not None and trained_on != [task]):
        raise StudyError(f"--run: these runs are of {', '.join(trained_on)}; choose runs of {task or 'one task'}")
    return chosen


def refuse_another_backbone(run_id: str, model: str, trained: str | None, now: str) -> None:
    """Refuse, by a ModelError, weights of another revision than `trained`, if it is known what a run started from."""
    if trained not in (None, now):
        raise ModelError(
            f"model: {run_id} was trained on {model} at {trained}, and what is there now is {now}. A snapshot holds "
            "what was trained alone: get back the weights it started from."
        )


def digests(run_dir: Path) -> dict[str, str]:
    """Path in a run's directory → SHA-256, of its snapshot and predictions; a StoreError if one cannot be read."""
    return {name: _digest(run_dir / name) for name in (*SNAPSHOT, PREDICTIONS) if (run_dir / name).exists()}


def altered(store: Store, record: RunRecord, names: Sequence[str]) -> str | None:
    """Say that a file is not the one that the run wrote (copied, edited or damaged) and how to mend it, or None.

    `names` are paths in the run's directory; those that are not there are passed over, and so are all for a record of
    version 1, which has no digests. A StoreError says that a file cannot be read.
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
    ended = [record for record in records.values() if record.task == task]
    scored = [(r.best_score, r) for r in ended if r.state is RunState.FINISHED and r.best_score is not None]
    if not scored:
        raise StoreError(f"No run of {store.root} has finished{_other_ends(ended)}, so there is none to choose.")
    metric = scored[0][1].primary_metric
    if metric not in METRICS:
        raise StoreError(f"The record of {scored[0][1].run_id} has a metric that {choices(metric, METRICS)}")
    sign = METRICS[metric].sign
    return max(scored, key=lambda one: sign * one[0])[1]


def _other_ends(records: Sequence[RunRecord]) -> str:
    """How the runs of a task ended, of which none has finished with a score."""
    if not records:
        return ""
    states = Counter(str(record.state) for record in records)
    ends = f" with a score: of {records[0].task}, {', '.join(f'{count} {state}' for state, count in states.items())}"
    collapsed = next((record.run_id for record in records if record.state is RunState.COLLAPSED), None)
    if collapsed is None:
        return ends
    return f"{ends} (predicting one constant for every text; --run {collapsed} uses one all the same)"


def refuse_own_folders(stores: Iterable[Store], target: Path) -> None:
    """Refuse, by a StoreError, to write what a user asked for into a folder of a study's own files."""
    real = Path(os.path.realpath(target))
    for store in stores:
        for name in (*OWN_FOLDERS, "confirm"):
            if real.is_relative_to(os.path.realpath(store.root / name)):
                raise StoreError(f"{target} is among the study's own files in {store.root}; give a name elsewhere.")
