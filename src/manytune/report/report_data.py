"""What a report is made of: everything that study directories hold, read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from manytune.config import Study
from manytune.data.tasks import Task
from manytune.report.guard import attempt
from manytune.storage.artifacts import PREDICTIONS, Examples, Structure
from manytune.storage.directory import Store, StudyStatus
from manytune.storage.lookup import altered
from manytune.storage.record import HistoryRow, RunRecord
from manytune.utils.errors import StoreError


@dataclass(frozen=True, eq=False)
class StudyFacts:
    """One study: what it asked for and how far it is."""

    study: Study
    status: StudyStatus
    label_suffix: str
    """What was added to its labels so that they are not mixed with another study's; mostly nothing."""


@dataclass(frozen=True, eq=False)
class ReportData:
    """Records of one or several studies, and what was kept beside them."""

    studies: tuple[StudyFacts, ...]
    records: tuple[RunRecord, ...]
    """All runs that have ended, in the studies' order."""
    histories: Mapping[str, tuple[HistoryRow, ...]]
    """Run id → its evaluations, of the runs that have a history."""
    logits: Mapping[str, NDArray[Any]]
    """Run id → [N, outputs] on dev, of the runs whose logits were kept."""
    tasks: Mapping[str, Task]
    """Name → the task."""
    examples: Mapping[str, Examples]
    """Task → its dev rows, of the tasks whose rows were kept."""
    structures: Mapping[tuple[str, str], Structure]
    """(task, model) → its module tree, where it was kept."""
    problems: tuple[str, ...] = ()
    """Files that exist but are not used, and why."""


def read(directories: Sequence[Path | str]) -> ReportData:
    """Read study directories.

    Methods that have the same label in several studies but not the same settings are told apart by the study's
    name: they are never averaged.

    Raises:
        StoreError: A directory holds no study, its study, plan or a record is damaged, or two directories hold the same
            run.

    Warns:
        ReportWarning: The report goes without another file that is damaged or not the run's own.
    """
    stores = [Store.open(directory) for directory in directories]
    per_study = [store.finished_runs() for store in stores]
    counts = Counter(run_id for records in per_study for run_id in records)
    repeated = sorted(run_id for run_id, count in counts.items() if count > 1)
    if repeated:
        raise StoreError(
            f"{len(repeated)} runs are in more than one of the directories, such as {repeated[0]}: "
            "a run may be counted once. Give directories of different studies, or `manytune compare` two of them."
        )
    studies = [store.study() for store in stores]
    clashing = _clashing(per_study)
    suffixes = _suffixes([study.name for study in studies]) if clashing else [""] * len(studies)
    records = [
        record.model_copy(update={"label": record.label + suffix}) if _configuration(record) in clashing else record
        for suffix, own in zip(suffixes, per_study, strict=True)
        for record in own.values()
    ]
    facts = (
        StudyFacts(study, store.status(), suffix)
        for study, store, suffix in zip(studies, stores, suffixes, strict=True)
    )
    problems: list[str] = []
    histories: dict[str, tuple[HistoryRow, ...]] = {}
    logits: dict[str, NDArray[Any]] = {}
    for store, own in zip(stores, per_study, strict=True):
        for run_id, record in own.items():
            if rows := attempt(f"No curve of {run_id}", partial(store.read_history, run_id), (), problems):
                histories[run_id] = rows
            kept = attempt(f"Without the predictions of {run_id}", partial(_own_logits, store, record), None, problems)
            if kept is not None:
                logits[run_id] = kept
    tasks: dict[str, Task] = {}
    examples: dict[str, Examples] = {}
    structures: dict[tuple[str, str], Structure] = {}
    for store, study, ended in zip(stores, studies, per_study, strict=True):
        for name in study.task_names:
            files = store.task_artifacts(name)
            of_it = [record for record in ended.values() if record.task == name]
            whole = partial(files.complete, study.task(name), of_it)
            task = attempt(f"Without the classes of {name}", whole, None, problems)
            if task is not None:
                tasks.setdefault(name, task)
            dev = attempt(f"Without the dev rows of {name}", partial(files.examples, task), None, problems)
            if dev is not None:
                examples.setdefault(name, dev)
            tree = attempt(f"Without the module tree of {name}", files.structure, None, problems)
            if tree is not None:
                there = structures.get((name, study.model), tree)
                structures[name, study.model] = tree.model_copy(update={"trained": there.trained | tree.trained})
    return ReportData(tuple(facts), tuple(records), histories, logits, tasks, examples, structures, tuple(problems))


def _own_logits(store: Store, record: RunRecord) -> NDArray[Any] | None:
    if said := altered(store, record, (PREDICTIONS,)):
        raise StoreError(said)
    return store.read_predictions(record.run_id)


def provenance_facts(run: RunRecord, *, data: str, commit: str) -> dict[str, str]:
    """Name → value of what is known of the code, weights, data and machine; `data` and `commit` name those two."""
    origin = run.provenance
    facts: dict[str, Any] = {
        "model revision": origin.model_revision,
        f"{data}, {run.task}": origin.data_fingerprint,
        commit: origin.git_commit,
        **{f"hardware, {name}": value for name, value in origin.hardware.items()},
        **{f"version, {name}": value for name, value in origin.versions.items()},
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def without_examples(data: ReportData) -> ReportData:
    """The same without the dev rows' sentences: their labels and parts stay, so that scores can be recomputed."""
    blank = {task: rows.model_copy(update={"texts": ((),) * len(rows.texts)}) for task, rows in data.examples.items()}
    return replace(data, examples=blank)


def _configuration(record: RunRecord) -> tuple[str, str, str]:
    return record.task, record.model, record.label


def _clashing(per_study: Sequence[Mapping[str, RunRecord]]) -> set[tuple[str, str, str]]:
    """(task, model, label) that several studies have with different settings."""
    settings: dict[tuple[str, str, str], list[Any]] = {}
    for record in (record for records in per_study for record in records.values()):
        setting = (_comparable(record.hyperparameters), record.template, record.selection)
        known = settings.setdefault(_configuration(record), [])
        if setting not in known:
            known.append(setting)
    return {key for key, known in settings.items() if len(known) > 1}


def _comparable(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a result depends on: how many runs share a pack is not among them."""
    training = hyperparameters.get("training")
    if not isinstance(training, Mapping):
        return dict(hyperparameters)
    return {**hyperparameters, "training": {name: value for name, value in training.items() if name != "max_pack"}}


def _suffixes(names: Sequence[str]) -> list[str]:
    """What tells the studies' labels apart: the name, with a number where names repeat."""
    return [f" [{name} {number}]" if names.count(name) > 1 else f" [{name}]" for number, name in enumerate(names, 1)]
