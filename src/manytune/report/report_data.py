"""What a report is made of: everything that study directories hold, read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from manytune.config import Study
from manytune.data.tasks import Task
from manytune.report.guard import attempt
from manytune.search.winners import read_winners
from manytune.storage.artifacts import PREDICTIONS, Baselines, Examples, Structure
from manytune.storage.directory import Store, StudyStatus
from manytune.storage.growth import SeedGrowth
from manytune.storage.lookup import altered
from manytune.storage.record import HistoryRow, RunRecord
from manytune.storage.test_looks import read_test_looks
from manytune.utils.errors import StoreError
from manytune.utils.text import counted


@dataclass(frozen=True, eq=False)
class StudyFacts:
    """One study: its configuration and how far it is."""

    study: Study
    status: StudyStatus
    label_suffix: str
    """What is added to its labels to tell them from another study's with other settings; mostly empty."""
    growth: SeedGrowth = field(default_factory=SeedGrowth)
    """When its scores could be seen while seeds were added."""
    chosen_by: Study | None = None
    """The study whose search chose its configurations; None of a study that is none of a confirm stage."""


@dataclass(frozen=True, eq=False)
class SearchStudy:
    """A study that searched, and its trials; what it found is judged by the studies of its confirm stage."""

    study: Study
    trials: tuple[RunRecord, ...]
    """Those that have ended."""
    confirmed: tuple[str, ...]
    """Tasks whose confirm stage has begun."""
    without_winner: tuple[str, ...] = ()
    """Tasks on which no trial learned anything, so that there is nothing to confirm."""
    test_looks: Mapping[str, int] = field(default_factory=dict)
    """Task → how often scores on its test file could be seen in this search."""

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """Tasks whose confirm stage is still to come; none where the study wants none."""
        settled = {*self.confirmed, *self.without_winner}
        return tuple(name for name in self.study.task_names if self.study.confirm and name not in settled)


@dataclass(frozen=True, eq=False)
class ReportData:
    """Records of one or several studies, and what was kept beside them."""

    studies: tuple[StudyFacts, ...]
    records: tuple[RunRecord, ...]  # all runs that have ended, in the studies' order
    histories: Mapping[str, tuple[HistoryRow, ...]]  # run id → its evaluations, of the runs that have a history
    logits: Mapping[str, NDArray[Any]]  # run id → [N, outputs] on dev, of the runs whose logits were kept
    tasks: Mapping[str, Task]  # name → the task
    examples: Mapping[str, Examples]  # task → its dev rows, of the tasks whose rows were kept
    structures: Mapping[tuple[str, str], Structure]  # (task, model) → its module tree, where it was kept
    baselines: Mapping[str, Baselines]  # task → what baselines score on its dev rows, where that was kept
    problems: tuple[str, ...] = ()  # files that exist but are not used, and why
    searches: tuple[SearchStudy, ...] = ()


def read(directories: Sequence[Path | str]) -> ReportData:
    """Read study directories; of one that searches, the studies of its confirm stage, and its trials apart.

    Where several studies have a configuration of the same label with other settings, the study's name is added to the
    label, so that they are never averaged.

    Raises:
        StoreError: A directory holds no study, its study, plan or a record is damaged, or two directories hold the same
            run.

    Warns:
        ReportWarning: The report goes without another file that is damaged or not the run's own.
    """
    problems: list[str] = []
    searches: list[SearchStudy] = []
    stores: list[Store] = []
    chosen_by: list[Study | None] = []
    for store in map(Store.open, directories):
        study = store.study()
        judged = [store] if study.search is None else store.confirm_stores(study)
        stores += judged
        chosen_by += [None if study.search is None else study] * len(judged)
        if study.search is not None:
            begun = tuple(name for one in judged for name in one.study().task_names)
            winners = attempt("Winners are not known", partial(read_winners, store.root), None, problems)
            lacking = {*study.task_names} - {each.task for each in winners} if winners is not None else set()
            seen = attempt("Looks at test files are not known", partial(read_test_looks, store.root), {}, problems)
            looks = {task: len(each) for task, each in seen.items()}
            without = tuple(name for name in study.task_names if name in lacking)
            searches.append(SearchStudy(study, store.trials(), begun, without, looks))
    per_study = [store.finished_runs() for store in stores]
    counts = Counter(run_id for records in per_study for run_id in records)
    repeated = sorted(run_id for run_id, count in counts.items() if count > 1)
    if repeated:
        raise StoreError(
            f"{counted(len(repeated), 'run', 'is|are')} in more than one of the directories, such as {repeated[0]}: "
            "a run may be counted once. Give directories of different studies, or `manytune compare` two of them."
        )
    studies = [store.study() for store in stores]
    clashing = _clashing(per_study)
    names = [study.name for study in studies]
    suffixes = [f" [{name} {at}]" if names.count(name) > 1 else f" [{name}]" for at, name in enumerate(names, 1)]
    suffixes = suffixes if clashing else [""] * len(names)
    records = [
        run.model_copy(update={"label": run.label + suffix}) if (run.task, run.model, run.label) in clashing else run
        for suffix, ended in zip(suffixes, per_study, strict=True)
        for run in ended.values()
    ]
    statuses = [store.status() for store in stores]
    growths = [
        # What is not known is taken for a look that was not planned.
        attempt("Seeds count as added after a look", store.looks, SeedGrowth(seen=(len(study.seeds),)), problems)
        for store, study in zip(stores, studies, strict=True)
    ]
    facts = map(StudyFacts, studies, statuses, suffixes, growths, chosen_by)
    histories: dict[str, tuple[HistoryRow, ...]] = {}
    logits: dict[str, NDArray[Any]] = {}
    for store, ended in zip(stores, per_study, strict=True):
        for run_id, record in ended.items():
            if rows := attempt(f"No curve of {run_id}", partial(store.read_history, run_id), (), problems):
                histories[run_id] = rows
            kept = attempt(f"Without the predictions of {run_id}", partial(_logits_of, store, record), None, problems)
            if kept is not None:
                logits[run_id] = kept
    tasks: dict[str, Task] = {}
    examples: dict[str, Examples] = {}
    structures: dict[tuple[str, str], Structure] = {}
    baselines: dict[str, Baselines] = {}
    for store, study, ended in zip(stores, studies, per_study, strict=True):
        for name in study.task_names:
            files = store.task_artifacts(name)
            complete = partial(files.complete, study.task(name), [run for run in ended.values() if run.task == name])
            task = attempt(f"Without the classes of {name}", complete, None, problems)
            if task is not None:
                tasks.setdefault(name, task)
            dev = attempt(f"Without the dev rows of {name}", partial(files.examples, task), None, problems)
            if dev is not None:
                examples.setdefault(name, dev)
            kept_scores = attempt(f"Without the baselines of {name}", files.baselines, None, problems)
            if kept_scores is not None:
                baselines.setdefault(name, kept_scores)
            tree = attempt(f"Without the module tree of {name}", files.structure, None, problems)
            if tree is not None:
                there = structures.get((name, study.model), tree)
                structures[name, study.model] = tree.model_copy(update={"trained": there.trained | tree.trained})
    return ReportData(
        tuple(facts),
        tuple(records),
        histories,
        logits,
        tasks,
        examples,
        structures,
        baselines,
        tuple(problems),
        tuple(searches),
    )


def _logits_of(store: Store, record: RunRecord) -> NDArray[Any] | None:
    """[N, outputs] on dev; None where none were kept. A StoreError where the file is not the one the run wrote."""
    if problem := altered(store, record, (PREDICTIONS,)):
        raise StoreError(problem)
    return store.read_predictions(record.run_id)


def provenance_facts(records: Iterable[RunRecord], *, data: str, commit: str) -> dict[str, Counter[str]]:
    """Fact about code, weights, data or machine → its values with their numbers of runs.

    `data` and `commit` are what to call the data's fingerprint and the code's commit.
    """
    found: dict[str, Counter[str]] = {}
    for run in records:
        origin = run.provenance
        facts: dict[str, Any] = {
            "model revision": origin.model_revision,
            f"{data}, {run.task}": origin.data_fingerprint,
            f"training rows, {run.task}": rows_used(run),
            commit: origin.git_commit,
            **{f"hardware, {name}": value for name, value in origin.hardware.items()},
            **{f"version, {name}": value for name, value in origin.versions.items()},
        }
        for name, value in facts.items():
            if value is not None:
                found.setdefault(name, Counter())[str(value)] += 1
    return found


def rows_used(run: RunRecord) -> str | None:
    """The training rows of a run that a limit was set for: "800 of 8,551 rows"; None of others."""
    limit, before = (run.hyperparameters.get(name) for name in ("limit", "rows_before_limit"))
    return f"{limit:,} of {before:,} rows" if isinstance(limit, int) and isinstance(before, int) else None


def without_examples(data: ReportData) -> ReportData:
    """The same without the dev rows' sentences: their labels and parts stay, so that scores can be recomputed."""
    blank = {task: rows.model_copy(update={"texts": ((),) * len(rows.texts)}) for task, rows in data.examples.items()}
    return replace(data, examples=blank)


def _clashing(per_study: Sequence[Mapping[str, RunRecord]]) -> set[tuple[str, str, str]]:
    """(task, model, label) that several studies have with different settings."""
    settings: dict[tuple[str, str, str], Any] = {}
    found = set()
    for record in (record for records in per_study for record in records.values()):
        values = dict(record.hyperparameters)
        if isinstance(training := values.get("training"), Mapping):  # how many runs share a pack changes no result
            values["training"] = {name: value for name, value in training.items() if name != "max_pack"}
        key, setting = (record.task, record.model, record.label), (values, record.template, record.selection)
        if settings.setdefault(key, setting) != setting:
            found.add(key)
    return found
