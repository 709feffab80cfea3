"""The state of a study in its directory when it is started, or continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manytune.config import Study
from manytune.config.plan import Pack, Run, plan_runs
from manytune.storage import provenance
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord


@dataclass(frozen=True)
class StudyState:
    """Which runs have ended, which wait, and what else is out of date."""

    store: Store
    study: Study  # the study, as it is to be run now
    runs: tuple[Run, ...]
    planned: tuple[Pack, ...]  # the packs that the directory's plan has
    ended: Mapping[str, RunRecord]  # run id → record, of the study's runs that are not trained again
    again: tuple[str, ...]  # ids of runs that failed and are to be trained again

    @classmethod
    def read(cls, store: Store, study: Study, *, retry_failed: bool) -> StudyState:
        """Read the directory; a StoreError where something in it is damaged."""
        runs = plan_runs(study)
        # Not only those of the directory's plan: a run that was part of the study before, and is again, has its record.
        records = {run.id: record for run in runs if (record := store.read_record(run.id)) is not None}
        again = tuple(run_id for run_id, record in records.items() if retry_failed and record.failure)
        ended = {run_id: record for run_id, record in records.items() if run_id not in again}
        return cls(store, study, runs, store.read_plan() or (), ended, again)

    @property
    def waiting(self) -> list[Run]:
        """The runs to train."""
        return [run for run in self.runs if run.id not in self.ended]

    @property
    def finished_packs(self) -> list[Pack]:
        """Packs that ended without a failure, but whose process was killed before it removed their checkpoints."""
        whole = {run_id for run_id, record in self.ended.items() if not record.failure}
        return [
            pack
            for pack in self.planned
            if all(run.id in whole for run in pack.runs) and self.store.pack_dir(pack.id).exists()
        ]

    @property
    def misfits(self) -> list[str]:
        """Users' own tasks whose kept classes or scale are not those that the ended runs learned."""
        return [
            name
            for name in self.study.task_names
            if self.study.task(name).own is not None and not self.store.task_artifacts(name).fit(self.ended_of(name))
        ]

    @property
    def has_work(self) -> bool:
        """Whether there is anything to write; where there is not, a finished study may be read-only."""
        planned = {run.id for pack in self.planned for run in pack.runs}
        other_plan = bool(planned) and planned != {run.id for run in self.runs}
        return bool(self.waiting or other_plan or self.finished_packs or self.misfits) or not self.store.holds(
            self.study
        )

    def ended_of(self, task: str) -> list[RunRecord]:
        """Records of a task's runs that have ended."""
        return [record for record in self.ended.values() if record.task == task]

    def scored(self, task: str) -> set[str | None]:
        """Fingerprints of the data that those runs were scored on."""
        return {record.provenance.data_fingerprint for record in self.ended_of(task)}

    def tasks_to_prepare(self) -> list[str]:
        """Tasks that have runs to train, and users' own tasks whose kept files may have to be made anew.

        The latter are the misfits, and tasks last trained with other data by runs that the study no longer has.
        """
        names = list(dict.fromkeys(run.task for run in self.waiting))
        misfits = self.misfits  # reads files
        for name in self.study.task_names:
            known = [{"data": {name: digest}} for digest in self.scored(name) if digest is not None]
            own = self.study.task(name).own is not None
            outdated = own and bool(known) and all(provenance.changes(self.store.root, each) for each in known)
            if name not in names and (outdated or name in misfits):
                names.append(name)
        return names
