"""Run a study on this machine: one pack after the other on one device."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from manytune import ground, hardware
from manytune.backbones import Backbone, load_backbone
from manytune.config import Study
from manytune.errors import ManytuneError, StoreError
from manytune.estimate import largest_packs
from manytune.evidence import Examples, Structure, Trained
from manytune.executors.job import PackJob, failure_of
from manytune.interrupts import stop_requests
from manytune.lock import Lock
from manytune.plan import Pack, Run, plan_runs, replan, smaller_packs
from manytune.progress import Progress, make_progress
from manytune.record import RunRecord, RunState
from manytune.report import TaskTable, tabulate
from manytune.store import Store
from manytune.workload import TaskWork, prepare

__all__ = ["StudyResult", "run_study"]


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        directory: The study directory.
        records: One for each run that has ended, in the study's order.
        tables: One for each task, methods compared.
    """

    directory: Path
    records: tuple[RunRecord, ...]
    tables: tuple[TaskTable, ...]

    @property
    def failed(self) -> tuple[RunRecord, ...]:
        """The runs that failed."""
        return tuple(record for record in self.records if record.state is RunState.FAILED)


def run_study(
    study: Study,
    out: Path | str,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    wait: bool = False,
    retry_failed: bool = False,
    accept_changes: bool = False,
) -> StudyResult:
    """Train every run of a study that has not ended yet, and compare them.

    Args:
        study: What to run.
        out: The study directory; if it holds this study already, runs that ended are not trained again, and a pack
            that was stopped goes on from its last checkpoint.
        device: `auto`, `cpu`, `cuda` or `mps`.
        progress: Told how it goes; plain or live lines on standard error by default.
        wait: Where another process works on the directory, wait for its end rather than refuse.
        retry_failed: Train runs that failed again.
        accept_changes: Go on although the study, the data or a package is another than when the directory was begun;
            runs that are still in the study are kept.

    Raises:
        ManytuneError: The study, its data, its model or the directory cannot be used. A run that fails while
            training raises nothing: its record says so.
        TypeError: `study` is no Study.
        Interrupted: Ctrl-C or SIGTERM, in the main thread, while a pack trained: all that was done is kept. A second
            signal stops at once.
    """
    if not isinstance(study, Study):
        raise TypeError(
            f"run_study takes a Study, not {study!r} ({type(study).__name__}): "
            "make one with Study.from_file(path) or Study.from_dict(data)"
        )
    chosen = hardware.choose_device(device)
    store = Store.check(out, study, accept_changes=accept_changes)
    with progress or make_progress(quiet=False) as told:
        lock = Lock(store.root, lambda text: told.message(text), wait=wait)
        lock.look()
        job = _StudyJob(store, lock, study, chosen, told, retry_failed=retry_failed, accept_changes=accept_changes)
        if job.waiting:
            job.execute()
        else:
            job.tidy()
    records = tuple(store.finished_runs().values())
    return StudyResult(store.root, records, tabulate(records))


class _StudyJob:
    """All packs that have runs left, one after the other."""

    def __init__(
        self,
        store: Store,
        lock: Lock,
        study: Study,
        device: torch.device,
        told: Progress,
        *,
        retry_failed: bool,
        accept_changes: bool,
    ) -> None:
        self.store = store
        self.lock = lock
        self.study = study
        self.device = device
        self.told = told
        self.accept_changes = accept_changes
        self.runs = plan_runs(study)
        self.there = store.finished_runs()
        self.again = [
            run.id for run in self.runs if retry_failed and run.id in self.there and self.there[run.id].failure
        ]
        self.ended = {run_id for run_id in self.there if run_id not in self.again}
        done = sum(run.id in self.ended for run in self.runs)
        if done:
            told.message(f"{done} of {len(self.runs)} runs have ended before.")
        self.waiting = [run for run in self.runs if run.id not in self.ended]

    def tidy(self) -> None:
        """Remove checkpoints of packs that need none: their process was killed after their last record."""
        done = self._done_packs()
        if done:
            with self.lock.held():
                for pack in done:
                    self.store.remove_pack(pack.id)

    def _done_packs(self) -> list[Pack]:
        """Packs all of whose runs ended without a failure, and which still have a directory."""
        whole = {run_id for run_id in self.ended if not self.there[run_id].failure}
        packs = self.store.read_plan() or ()
        return [
            pack
            for pack in packs
            if all(run.id in whole for run in pack.runs) and self.store.pack_dir(pack.id).exists()
        ]

    def execute(self) -> None:
        """Train all runs that are waiting."""
        works = _prepare(self.study, self.waiting, self.told)
        planned = self.store.read_plan()
        packs = list(replan(planned or (), self.runs, largest_packs(self.runs, works, self.device)))
        now = {
            "versions": hardware.versions(),
            "data": {name: work.fingerprint for name, work in works.items()},
        }
        self._refuse_changed_ground(now)
        for name in works:
            if any(record.task == name for record in self.there.values()):
                self.store.task_files(name).refuse_another(works[name].task)
        backbones = _Backbones()
        backbones.of(works[self.waiting[0].task])  # what cannot be loaded is refused before anything is written
        Store.create_or_open(self.store.root, self.study, accept_changes=self.accept_changes)
        with self.lock.held():
            if self.store.finished_runs().keys() != self.there.keys():
                raise StoreError(f"Another process has worked on {self.store.root} since this one looked. Start again.")
            self.store.sweep()
            self.store.write_plan(packs)
            ground.keep(self.store.root, now)
            for run_id in self.again:
                self.store.reset_run(run_id)
            for pack in self._done_packs():
                self.store.remove_pack(pack.id)
            hardware.keep_freed_memory()
            for task in works:
                work, _ = backbones.of(works[task])
                _keep(self.store, work, [run for run in self.runs if run.task == task])
            while (place := self._next(packs)) is not None:
                work, backbone = backbones.of(works[packs[place].task])
                smaller = self._train(packs[place], work, backbone)
                if smaller:
                    self.store.write_plan([*packs[:place], *smaller, *packs[place + 1 :]])
                    self.store.remove_pack(packs[place].id)
                    packs[place : place + 1] = smaller

    def _refuse_changed_ground(self, now: ground.Ground) -> None:
        changed = ground.changes(self.store.root, now)
        if not changed:
            return
        lines = "\n".join(f"  {line}" for line in changed)
        if not self.accept_changes:
            raise StoreError(
                f"What the results in {self.store.root} rest on has changed since they were begun:\n{lines}\n"
                "Go back to that, give another --out, or --accept-changes to go on all the same."
            )
        self.told.message(f"Accepted changes:\n{lines}", "warning")

    def _next(self, packs: Sequence[Pack]) -> int | None:
        """The place of the first pack that has runs left."""
        return next(
            (place for place, pack in enumerate(packs) if any(run.id not in self.ended for run in pack.runs)), None
        )

    def _train(self, pack: Pack, work: TaskWork, backbone: Backbone) -> tuple[Pack, ...]:
        """Train a pack to its end; returns smaller ones to train in its place if memory ran out."""
        kills = hardware.oom_kills()
        before = self.store.note_start(pack.id, kills)
        if before is not None and before != kills and str(before).split()[0] == str(kills).split()[0]:
            reason = "The system killed the process that trained it, because memory ran out"
            if smaller := self._smaller(pack, reason):
                return smaller
        with stop_requests() as stop:
            job = PackJob(self.store, self.lock, work, backbone, pack, self.ended, self.device, self.told, stop)
            failure: str | None = None
            try:
                job.execute()
            except ManytuneError:
                raise
            except Exception as error:  # whatever it is, the other packs can still train
                failure = failure_of(error)
                if hardware.is_out_of_memory(error) and (smaller := self._smaller(pack, failure)):
                    return smaller
                self.store.write_traceback(pack.id, traceback.format_exc())
            if failure is not None:
                job.fail(failure)
            stop.obey()
        return ()

    def _smaller(self, pack: Pack, reason: str) -> tuple[Pack, ...]:
        """Smaller packs, if there are any, and a word on them."""
        smaller = smaller_packs(pack, self.ended, self.study.training.batch_size)
        if smaller:
            parts = (
                f"{len(smaller)} packs of {' and '.join(str(len(each.runs)) for each in smaller)} runs"
                if len(smaller) > 1
                else f"parts of {smaller[0].micro_batch} rows of the batch"
            )
            self.told.message(f"{pack.id}: {reason.removesuffix('.')}. It is tried again in {parts}.", "warning")
            hardware.let_go_of_memory(self.device)
        return smaller


class _Backbones:
    """The backbone of the task at hand: one for all tasks with as many outputs."""

    def __init__(self) -> None:
        self._outputs: int | None = None
        self._backbone: Backbone

    def of(self, work: TaskWork) -> tuple[TaskWork, Backbone]:
        """A task's work and backbone; the loaded weights say whether the pooler is the backbone's or the head's."""
        if self._outputs != work.task.num_outputs:
            self._backbone = load_backbone(work.study.model, work.task.num_outputs)
            self._outputs = work.task.num_outputs
        return replace(work, anatomy=self._backbone.anatomy), self._backbone


def _prepare(study: Study, runs: Sequence[Run], told: Progress) -> dict[str, TaskWork]:
    """Load every task that has runs to train, and refuse what cannot be trained before anything is."""
    works = {name: prepare(study, name) for name in dict.fromkeys(run.task for run in runs)}
    for name, work in works.items():
        own = [run for run in runs if run.task == name]
        for run in own:
            work.adaptation(run)
        for text in (*work.notes, *work.warnings(own)):
            told.message(text, "warning")
    return works


def _keep(store: Store, work: TaskWork, runs: Sequence[Run]) -> None:
    """Keep a task's dev rows and module tree, for whoever looks into its results later."""
    trained = {run.label: work.adaptation(run) for run in runs}
    store.task_files(work.task.name).keep(
        work.task,
        Examples(
            texts=work.dev_texts,
            labels=tuple(work.dev.labels.tolist()),
            parts=dict(work.task.dev_parts),
            fingerprint=work.fingerprint,
        ),
        Structure(
            model=work.study.model,
            tensors=work.anatomy.tensors,
            head=work.anatomy.head.shapes(),
            trained={
                label: Trained(
                    weights=adaptation.weights,
                    biases=adaptation.biases,
                    lora_rank=adaptation.lora.rank if adaptation.lora else None,
                    lora_targets=adaptation.lora.targets if adaptation.lora else (),
                    head=adaptation.head,
                )
                for label, adaptation in trained.items()
            },
        ),
    )
