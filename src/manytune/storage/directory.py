"""The study directory: what is planned, and what is finished.

OUT/study.yaml                 the effective study
OUT/plan.json                  the packs, as the first start planned them
OUT/looks.json                 when scores could be seen while seeds were added; see `growth`
OUT/provenance.json            what results depend on beside the study; see `provenance`
OUT/runs/<run-id>/record.json  written last: its presence means that the run has ended
OUT/runs/<run-id>/history.csv  one row an evaluation
OUT/runs/<run-id>/best/        the snapshot
OUT/runs/<run-id>/predictions.npz, OUT/tasks/<task>/  see `artifacts`
OUT/packs/<pack-id>/           what a killed pack needs to go on
OUT/report/                    the page, tables and figures
OUT/confirm/<task>/            of a study that searches: the study of its winners, a directory like this one
OUT/lock                       who works on it, while someone does; see `lock`
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from manytune.config import Study
from manytune.config.plan import Pack, Run, packs_from_json, packs_to_json, plan_runs
from manytune.data.tasks import Task
from manytune.storage.artifacts import PREDICTIONS, TaskArtifacts, predictions_from_bytes, predictions_to_bytes
from manytune.storage.growth import SeedGrowth, read_growth, write_growth
from manytune.storage.record import HistoryRow, RunRecord, RunState, history_from_csv, history_to_csv
from manytune.utils.errors import StoreError, StudyError
from manytune.utils.files import (
    read_bytes,
    read_text,
    sweep_leftovers,
    sync,
    sync_tree,
    write_atomically,
    write_file,
    writing,
)
from manytune.utils.text import listed, parse_json, shortened

T = TypeVar("T")

PENDING = "pending"
"""The state of a run that has no record yet."""

_PLAN_VERSION = 1
_MOST_PLAN_BYTES = 2**29  # 100,000 runs take about 100 MB
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
MOST_LOGITS = 2**32
"""Bytes of predictions beyond which they are not read."""

OWN_FOLDERS = ("runs", "packs", "tasks", "live")
"""Folders of a study directory into which only the holder of its lock writes."""

_NOT_FOREIGN = re.compile(r"\.DS_Store|\..*\.tmp|lock")  # macOS' folder notes; our own files cut short by a crash


@dataclass(frozen=True)
class RunStatus:
    """Where one run stands."""

    run_id: str
    task: str
    model: str
    label: str
    """What tells the method from the study's others, as in the report."""
    seed: int
    state: str
    """finished, failed, collapsed, pruned or pending."""
    primary_metric: str | None = None
    best_score: float | None = None
    best_step: int | None = None
    failure: str | None = None


@dataclass(frozen=True)
class StudyStatus:
    """Where a study stands."""

    study: str
    directory: str
    planned: int
    """Number of planned runs."""
    counts: Mapping[str, int]
    """State → number of planned runs in it; every state is there, `pending` last."""
    runs: tuple[RunStatus, ...]
    """Each planned run, in the study's order."""
    unplanned: tuple[str, ...]
    """Ids of runs that have a record here although the plan does not name them."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain mappings, sequences, texts and numbers, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Store:
    """One study directory, from `create_or_open` or `open`; what is missing, damaged or read-only is a StoreError."""

    root: Path

    @classmethod
    def create_or_open(
        cls, root: Path | str, study: Study, *, accept_changes: bool = False, additions: bool = False
    ) -> Store:
        """Start a study directory, or go on with one of the same study; of another one only with `accept_changes`.

        With `additions`, the study may also have all runs of the one that is there, and others.
        """
        store = cls.check(root, study, accept_changes=accept_changes, additions=additions)
        _refuse_unwritable(store.root)
        if not store.holds(study):
            store._note_growth(study)  # first: a process that is killed between the two notes it again
            write_atomically(store._study_file, study.to_yaml())
        return store

    @classmethod
    def check(cls, root: Path | str, study: Study, *, accept_changes: bool = False, additions: bool = False) -> Store:
        """Refuse what `create_or_open` would refuse, and write nothing: there may be no study there yet."""
        store = cls(named_directory(root))
        with writing(store.root):
            if not store._study_file.exists():
                _refuse_unwritable(store.root)
                names = os.listdir(store.root) if store.root.exists() else []
                foreign = sorted(name for name in names if not _NOT_FOREIGN.fullmatch(name))
                if foreign:
                    raise StoreError(
                        f"{store.root} holds files but no study ({listed(foreign, 5)}). "
                        "Give a new or empty directory as --out, so that nothing of yours is mixed with results."
                    )
            elif not accept_changes and (there := store.study()).hash != study.hash:
                if additions and adds_to(there, study):
                    return store
                different = differences(there.model_dump(mode="json"), study.model_dump(mode="json"))
                lines = "\n".join(f"  {line}" for line in different)
                raise StoreError(
                    f"{store.root} already holds a study that differs from this one:\n{lines}\n"
                    "Give another --out, or --accept-changes to go on with this one: runs that are in both are kept."
                    + (
                        f"\nIt has all these runs and more: manytune extend {store.root} goes on with it."
                        if adds_to(study, there) and not adds_to(there, study)
                        else ""
                    )
                )
        return store

    @classmethod
    def open(cls, root: Path | str) -> Store:
        """Open a study directory that is there."""
        store = cls(named_directory(root))
        try:
            if store._study_file.is_file():
                return store
        except OSError as error:
            raise StoreError(f"{store.root} cannot be read: {error.strerror or error}.") from error
        what = "there is no such directory" if not store.root.exists() else "it has no study.yaml"
        raise StoreError(
            f"{store.root} is not a study directory: {what}. "
            "Give the directory that `manytune run STUDY.yaml --out DIR` wrote to."
        )

    def study(self) -> Study:
        """The effective study."""
        if self._study_file.is_fifo():
            raise StoreError(f"{self._study_file} is a pipe, and no file. Give another --out.")
        try:
            return Study.from_file(self._study_file)
        except StudyError as error:
            raise StoreError(
                f"The study in {self.root} cannot be read by this version of manytune: {error} "
                "Use the version that wrote it, give another --out, or delete the directory."
            ) from error

    def holds(self, study: Study) -> bool:
        """Whether the directory's study says the same, of what its runs are and of what its report goes by."""
        if not self._study_file.exists():
            return False
        there = self.study()
        return (there.hash, there.looks, there.report) == (study.hash, study.looks, study.report)

    def looks(self) -> SeedGrowth:
        """When scores could be seen while the study grew by seeds; of an older directory nothing is known."""
        return read_growth(self.root / "looks.json")

    def _note_growth(self, study: Study) -> None:
        """Note the planned looks, or, once a run has ended, that the seeds change, before the study is written."""
        before = self.looks()
        now = SeedGrowth(planned=study.looks)
        if any(self.root.glob("runs/*/record.json")):
            there = set(self.study().seeds if self._study_file.exists() else study.seeds)
            changed = {len(there)} if there != set(study.seeds) else set()
            now = replace(before, seen=tuple(sorted({*before.seen, *changed})))
        if now != before:
            write_growth(self.root / "looks.json", now)

    def run_dir(self, run_id: str) -> Path:
        """Directory of a run; it need not be there yet."""
        return self.root / "runs" / _checked_id(run_id, "run")

    def snapshot_dir(self, run_id: str) -> Path:
        """Directory of a run's best snapshot; whoever saves into it makes it."""
        return self.run_dir(run_id) / "best"

    def pack_dir(self, pack_id: str) -> Path:
        """Directory for what a killed pack needs to go on; whoever saves into it makes it."""
        return self.root / "packs" / _checked_id(pack_id, "pack")

    def sweep(self) -> None:
        """Remove what killed processes left half-written; the caller must hold the directory's lock."""
        for folder, _, _ in os.walk(self.root):
            top, *_ = (*Path(folder).relative_to(self.root).parts, "")
            # Elsewhere, as in the report, other processes may be writing without the lock.
            sweep_leftovers(Path(folder), alone=top in OWN_FOLDERS)
        with writing(self.root):
            for path in self.root.glob(".lock.*.tmp"):
                path.unlink(missing_ok=True)

    def note_start(self, pack_id: str, oom_kills: str | None) -> str | None:
        """Keep the system's count of killed processes at the start of a pack; returns that of the start before."""
        path = self.pack_dir(pack_id) / "oom-kills.txt"
        before = read_text(path)
        if oom_kills is not None:
            write_file(path, oom_kills)
        return before

    def write_traceback(self, pack_id: str, text: str) -> None:
        """Keep where a pack broke."""
        write_atomically(self.pack_dir(pack_id) / "traceback.txt", text)

    def remove_pack(self, pack_id: str) -> None:
        """Remove what a pack needed to go on."""
        directory = self.pack_dir(pack_id)
        with writing(directory):
            if directory.exists():
                shutil.rmtree(directory)

    @property
    def report_dir(self) -> Path:
        """Directory of the report."""
        return self.root / "report"

    @property
    def _study_file(self) -> Path:
        return self.root / "study.yaml"

    def write_plan(self, packs: Sequence[Pack], executor: Mapping[str, int] | None = None) -> None:
        """Keep the packs, so that every later start trains the same runs together.

        `executor` holds the `count` of workers, 0 for none, and the `threads` of each; None keeps what was kept before.
        """
        executor = executor or self.read_executor()
        plan = {"schema_version": _PLAN_VERSION, "packs": packs_to_json(packs)}
        plan |= {"executor": executor} if executor else {}
        write_file(self.root / "plan.json", json.dumps(plan, indent=2, ensure_ascii=False) + "\n")

    def read_plan(self) -> tuple[Pack, ...] | None:
        """The packs that were kept; None if none were."""
        return self._plan(lambda plan: packs_from_json(plan["packs"]))

    def read_executor(self) -> dict[str, int] | None:
        """How many workers, and threads of each, trained the packs; None if it was not kept."""

        def read(plan: Any) -> dict[str, int] | None:
            kept = plan.get("executor", plan.get("place"))  # "place" is what earlier versions wrote
            return None if kept is None else {name: int(kept[name]) for name in ("count", "threads")}

        return self._plan(read)

    def _plan(self, read: Callable[[Any], T]) -> T | None:
        """What `read` finds in the kept plan; None if none was kept."""
        path = self.root / "plan.json"
        text = read_text(path, _MOST_PLAN_BYTES)
        if text is None:
            return None
        try:
            plan = parse_json(text)
            if (version := plan["schema_version"]) != _PLAN_VERSION:
                raise StoreError(
                    f"{path} has schema version {shortened(version)}; this manytune reads version "
                    f"{_PLAN_VERSION}. Use the newer manytune that wrote it."
                )
            return read(plan)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise StoreError(
                f"{path} is damaged: {type(error).__name__}: {shortened(error)}. "
                "Delete it to have the packs planned anew; runs that ended are kept."
            ) from error

    def write_history(self, run_id: str, rows: Sequence[HistoryRow]) -> None:
        """Write a run's history."""
        write_atomically(self.run_dir(run_id) / "history.csv", history_to_csv(rows))

    def read_history(self, run_id: str) -> tuple[HistoryRow, ...]:
        """A run's history; empty if none was written."""
        path = self.run_dir(run_id) / "history.csv"
        text = read_text(path)
        return () if text is None else history_from_csv(text, where=str(path))

    def write_predictions(self, run_id: str, logits: NDArray[Any]) -> None:
        """Keep a run's logits `[N, outputs]` on dev, those of its best snapshot."""
        write_atomically(self.run_dir(run_id) / PREDICTIONS, predictions_to_bytes(logits))

    def read_predictions(self, run_id: str) -> NDArray[Any] | None:
        """A run's logits `[N, outputs]` on dev; None if none were kept."""
        path = self.run_dir(run_id) / PREDICTIONS
        data = read_bytes(path, MOST_LOGITS)
        return None if data is None else predictions_from_bytes(data, where=str(path))

    def task_artifacts(self, task: str) -> TaskArtifacts:
        """What is kept of a task."""
        return TaskArtifacts(self.root / "tasks" / _checked_id(task, "task"))

    def task(self, name: str) -> Task:
        """A task of the study, with what its data says; a StudyError if the study has no such task."""
        return self.task_artifacts(name).complete(self.study().task(name))

    def write_record(self, record: RunRecord) -> None:
        """Write a run's record, which says that it has ended, after all else of the run was brought to the disk."""
        directory = self.run_dir(record.run_id)
        with writing(directory):
            sync_tree(directory)
        write_atomically(directory / "record.json", record.to_json())
        with writing(directory):
            sync(directory.parent)
            sync(self.root)

    def read_record(self, run_id: str) -> RunRecord | None:
        """A run's record; None if it has not ended."""
        path = self.run_dir(run_id) / "record.json"
        text = read_text(path)
        if text is None:
            return None
        record = RunRecord.from_json(text, where=str(path))
        if record.run_id != run_id:
            raise StoreError(
                f"{path} is the record of {record.run_id!r}; in this directory it must be of {run_id!r}. "
                "Move or delete the directory."
            )
        return record

    def finished_runs(self) -> dict[str, RunRecord]:
        """Run id → record, in the study's order of runs, of every run that is still part of the study and has ended."""
        if not self._study_file.exists():  # `check` allows that: nothing has begun
            return {}
        planned = self.runs()
        records = self._records(planned)
        return {run.id: records[run.id] for run in planned if run.id in records}

    def trials(self) -> tuple[RunRecord, ...]:
        """Records of a search's trials that have ended, by task in the study's order, and as they began."""
        order = {task: at for at, task in enumerate(self.study().task_names)}
        found = [(record.trial, record) for record in self._records(()).values()]
        trials = [
            (order.get(record.task, len(order)), trial.began, trial.number, record.run_id, record)
            for trial, record in found
            if trial is not None
        ]
        return tuple(record for *_, record in sorted(trials, key=lambda each: each[:4]))

    def confirm_dir(self, task: str) -> Path:
        """Where the winners of a task are confirmed, in a study that searches."""
        return self.root / "confirm" / _checked_id(task, "task")

    def confirm_stores(self, study: Study | None = None) -> list[Store]:
        """Directories of the confirm stage that are there, in the order of the study's tasks."""
        folders = (self.confirm_dir(task) for task in (study or self.study()).task_names)
        return [Store.open(folder) for folder in folders if (folder / "study.yaml").is_file()]

    def reset_run(self, run_id: str) -> None:
        """Remove all that was written of a run, its record first, so that it is pending again."""
        directory = self.run_dir(run_id)
        with writing(directory):
            (directory / "record.json").unlink(missing_ok=True)
            if directory.exists():
                sync(directory)
                shutil.rmtree(directory)

    def runs(self, study: Study | None = None) -> list[Run]:
        """All runs in the order of the study, which is read if it is not given; the kept plan says which there are."""
        in_study = plan_runs(study or self.study())
        packs = self.read_plan()
        if packs is None:  # not started, or killed before the plan was written
            return list(in_study)
        order = {run.id: index for index, run in enumerate(in_study)}
        kept = [run for pack in packs for run in pack.runs]
        return sorted(kept, key=lambda run: order.get(run.id, len(order)))

    def _records(self, planned: Sequence[Run]) -> dict[str, RunRecord]:
        """All records, in the order of `planned`, then those that it does not name, by id."""
        order = {run.id: index for index, run in enumerate(planned)}
        names = os.listdir(folder) if (folder := self.root / "runs").exists() else []
        run_ids = sorted(filter(_ID.fullmatch, names), key=lambda run_id: (order.get(run_id, len(order)), run_id))
        records = {run_id: self.read_record(run_id) for run_id in run_ids}
        return {run_id: record for run_id, record in records.items() if record is not None}

    def status(self) -> StudyStatus:
        """Where the study stands: each planned run's state."""
        study = self.study()
        planned = self.runs(study)
        records = self._records(planned)
        rows = tuple(_run_status(run, records.pop(run.id, None)) for run in planned)
        counted = Counter(row.state for row in rows)
        return StudyStatus(
            study=study.name,
            directory=str(self.root),
            planned=len(rows),
            counts={state: counted[state] for state in (*map(str, RunState), PENDING)},
            runs=rows,
            unplanned=tuple(records),
        )


def named_directory(root: Path | str) -> Path:
    """The directory that a user names; not an empty name, which would mean the present one, hardly on purpose."""
    if root == "":
        raise StoreError("The name of the study directory is empty. Give one, such as results; . is the present one.")
    return Path(root)


def adds_to(study: Study, other: Study) -> bool:
    """Whether the other study has all runs of a study, whatever else it has; of a search nobody knows them before."""
    return study.search is None and {run.id for run in plan_runs(study)} <= {run.id for run in plan_runs(other)}


def _refuse_unwritable(root: Path) -> None:
    """Refuse a directory that cannot be written to or made, before hours of training show it."""
    nearest = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not nearest.is_dir():
        what = "is not a directory" if nearest == root else f"cannot be made: {nearest} is not a directory"
        raise StoreError(f"{root} {what}. Give another --out.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        what = "cannot be written to" if nearest == root else f"cannot be made: {nearest} cannot be written to"
        raise StoreError(f"{root} {what}. Check its permissions, or give another --out.")


def _checked_id(name: str, what: str) -> str:
    """`name`, if it can be a directory's name and nothing more: no path, no hidden file."""
    if not _ID.fullmatch(name):
        raise StoreError(
            f"{shortened(name)!r} is no {what} id. An id has letters, digits and . _ + = -, starts with a letter or a "
            "digit, and is at most 200 characters long."
        )
    return name


def _run_status(run: Run, record: RunRecord | None) -> RunStatus:
    planned = (run.id, run.task, run.model, run.label, run.seed)
    if record is None:
        return RunStatus(*planned, PENDING)
    scores = (record.primary_metric, record.best_score, record.best_step)
    return RunStatus(*planned, str(record.state), *scores, record.failure)


def differences(there: Any, here: Any, key: str = "") -> list[str]:
    """The keys whose values differ, as lines "key: <there> there, <here> here"."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = list(dict.fromkeys([*there, *here]))
        inner = (differences(there.get(name), here.get(name), f"{key}.{name}".lstrip(".")) for name in names)
        return [line for lines in inner for line in lines]
    if there == here:
        return []
    if isinstance(there, list) and isinstance(here, list) and any(isinstance(entry, Mapping) for entry in there):
        if len(there) != len(here):
            return [f"{key}: {len(there)} entries there, {len(here)} here"]
        pairs = enumerate(zip(there, here, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{key}.{index}")]
    return [f"{key}: {shortened(json.dumps(there))} there, {shortened(json.dumps(here))} here"]
