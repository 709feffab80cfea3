"""Run a study: plan it, hand its packs to an executor, keep what comes back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from manytune.config import Study
from manytune.config.plan import Pack, Run, plan_runs, replan, smaller_packs
from manytune.data.tasks import Task
from manytune.executors.auto import best_executor
from manytune.executors.base import ExecutorSpec, PackEnd
from manytune.executors.estimate import largest_packs, makespan, seconds_of
from manytune.executors.inline import Inline
from manytune.executors.job import PackJob
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.executors.workers import Workers
from manytune.report import TaskTable, tabulate
from manytune.report.views import counted, duration
from manytune.storage import provenance
from manytune.storage.artifacts import Examples, Structure, Trained
from manytune.storage.directory import Store
from manytune.storage.lock import Held, Lock
from manytune.storage.record import HistoryRow, RunRecord, RunState
from manytune.tracking import Trackers
from manytune.tracking.live import LivePacks
from manytune.tracking.progress import Level, Progress, make_progress
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware
from manytune.utils.errors import ManytuneError, StoreError
from manytune.utils.signals import StopRequest, stop_requests

__all__ = ["StudyResult", "run_study"]

_MOST_DEATHS = 3
"""Times that the process which trains a pack may die before the pack is given up."""


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
    executor: ExecutorSpec | None = None,
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
        executor: Where packs train: `Inline` in this process, `Workers` on this machine, `OnRay` on a cluster; None: in
            this process, or, on a CPU, in as many workers as end the study first.
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
    if executor is None:
        hardware.choose_device(device)  # refused before anything else is looked at
    store = Store.check(out, study, accept_changes=accept_changes)
    with progress or make_progress(quiet=False) as told:
        lock = Lock(store.root, lambda text: told.message(text), wait=wait)
        lock.look()
        make_job = partial(_StudyJob, study, device, executor, told, retry_failed, accept_changes)
        job = make_job(store)
        if job.has_work:
            with lock.held() as held:
                # From here on nobody else writes; what was read before may have changed.
                make_job(Store.check(out, study, accept_changes=accept_changes)).execute(held)
        else:  # nothing is written: what is finished may be read-only
            job.say_what_has_ended()
    records = tuple(store.finished_runs().values())
    return StudyResult(store.root, records, tabulate(records))


class _StudyJob:
    """All packs that have runs left, handed to an executor."""

    def __init__(
        self,
        study: Study,
        device: str,
        executor: ExecutorSpec | None,
        told: Progress,
        retry_failed: bool,
        accept_changes: bool,
        store: Store,
    ) -> None:
        self.store = store
        self.study = study
        self.device = device
        self.executor = executor
        self.told = told
        self.trackers = Trackers(study, store, lambda text: told.message(text, "warning"))
        self.accept_changes = accept_changes
        self.runs = plan_runs(study)
        self.planned = store.read_plan() or ()
        # Not by the directory's plan: a run that was part of the study once, and is again, has its record still.
        self.there = {run.id: record for run in self.runs if (record := store.read_record(run.id)) is not None}
        self.again = [
            run.id for run in self.runs if retry_failed and run.id in self.there and self.there[run.id].failure
        ]
        self.ended = {run_id for run_id in self.there if run_id not in self.again}
        self.waiting = [run for run in self.runs if run.id not in self.ended]

    @property
    def has_work(self) -> bool:
        """Whether there is anything to write: runs to train, another study to take over, or packs to tidy away."""
        planned = {run.id for pack in self.planned for run in pack.runs}
        other_plan = bool(planned) and planned != {run.id for run in self.runs}
        return (
            bool(self.waiting or other_plan or self._done_packs() or self._misfits())
            or self.store.study().hash != self.study.hash
        )

    def _ended_of(self, task: str) -> list[RunRecord]:
        return [record for run_id, record in self.there.items() if record.task == task and run_id in self.ended]

    def _misfits(self) -> list[str]:
        """Users' own tasks whose kept classes or scale are not of the runs that have ended, but of others."""
        return [
            name
            for name in self.study.task_names
            if self.study.task(name).own is not None and not self.store.task_artifacts(name).fit(self._ended_of(name))
        ]

    def _done_packs(self) -> list[Pack]:
        """Packs all of whose runs ended without a failure, and which still have a directory.

        Their process was killed between the last record and the removal of the checkpoints.
        """
        whole = {run_id for run_id in self.ended if not self.there[run_id].failure}
        return [
            pack
            for pack in self.planned
            if all(run.id in whole for run in pack.runs) and self.store.pack_dir(pack.id).exists()
        ]

    def say_what_has_ended(self) -> None:
        """Say how many runs need no training."""
        done = sum(run.id in self.ended for run in self.runs)
        if done:
            self.told.message(f"{done} of {len(self.runs)} runs have ended before.")

    def execute(self, held: Held) -> None:
        """Train all runs that are waiting, and bring the directory up to date."""
        self.say_what_has_ended()
        if self.waiting:
            self._train(held)
        else:
            self._settle()

    def _settle(self) -> None:
        """Take over a study all of whose runs have ended, as after changes that were taken back."""
        works = self._works([])
        self._refuse_other_classes(works)
        most = max((len(pack.runs) for pack in self.planned), default=1)
        self._write_study(replan(self.planned, self.runs, most), None)
        self._keep_tasks({name: Backbones().of(work)[0] for name, work in works.items()})
        known = {name: work.fingerprint for name, work in works.items() if work.fingerprint in self._scored(name)}
        provenance.keep(self.store.root, {"data": known})

    def _works(self, waiting: Sequence[Run]) -> dict[str, TaskWork]:
        """The tasks of runs that are waiting, and those whose kept files may have to be made anew."""
        anew = {*self._misfits(), *(name for name in self.study.task_names if self._last_was_other_data(name))}
        return _prepare(self.study, [*waiting, *(run for run in self.runs if run.task in anew)], self.told)

    def _last_was_other_data(self, task: str) -> bool:
        """Whether what trained last, and is no longer part of the study, was a user's own task with other data."""
        known = [{"data": {task: of}} for of in self._scored(task) if of is not None]
        own = self.study.task(task).own is not None
        return own and bool(known) and all(provenance.changes(self.store.root, each) for each in known)

    def _refuse_other_classes(self, works: Mapping[str, TaskWork]) -> None:
        for name, work in works.items():
            self.store.task_artifacts(name).refuse_another(work.task, self._ended_of(name))

    def _keep_tasks(self, works: Mapping[str, TaskWork]) -> None:
        """Keep what later readers need of tasks."""
        for name, work in works.items():
            _keep(self.store, work, [run for run in self.runs if run.task == name], self._scored(name))

    def _scored(self, task: str) -> set[str | None]:
        """Fingerprints of the data that runs which have ended were scored on."""
        return {record.provenance.data_fingerprint for record in self._ended_of(task)}

    def _write_study(self, packs: Sequence[Pack], executor: Mapping[str, int] | None) -> None:
        """Write what the directory is about: the study and its packs; remove what is of no use to them."""
        ids = {run.id for run in self.runs}
        dropped = [run.id for pack in self.planned for run in pack.runs if run.id not in ids]
        gone = [run_id for run_id in dropped if self.store.read_record(run_id) is not None]
        self.store.sweep()
        for pack in self._done_packs():
            self.store.remove_pack(pack.id)
        Store.create_or_open(self.store.root, self.study, accept_changes=self.accept_changes)
        self.store.write_plan(packs, executor)
        if gone:
            self.told.message(
                f"{counted(len(gone), 'run')} of before, such as {gone[0]}, no longer part of the study: in no table "
                f"or report. The files stay in {self.store.root / 'runs'}."
            )

    def _train(self, held: Held) -> None:
        works = self._works(self.waiting)
        executor = self._executor(works)
        capacity, profile = executor.profile(self.study.training.precision, next(iter(works.values())).width)
        packs = replan(self.planned, self.runs, largest_packs(self.runs, works, profile, capacity))
        now = {
            "versions": hardware.versions(),
            "data": {name: work.fingerprint for name, work in works.items()},
        }
        self._refuse_changed_provenance(now)
        self._refuse_other_classes(works)
        backbones = Backbones()
        backbones.of(works[self.waiting[0].task])  # what cannot be loaded is refused before anything is written
        self._write_study(packs, executor.keep() if isinstance(executor, Inline | Workers) else None)
        provenance.keep(self.store.root, now)
        for run_id in self.again:
            self.store.reset_run(run_id)
        self._keep_tasks({name: backbones.of(work)[0] for name, work in works.items()})
        inputs = PackInputs(self.study, self.store.root, works, backbones.of, held)
        left = [pack for pack in packs if any(run.id not in self.ended for run in pack.runs)]
        seconds = dict(zip((pack.id for pack in left), seconds_of(left, works, profile), strict=True))
        if capacity > 1:
            left.sort(key=lambda pack: -seconds[pack.id])  # the longest first: then all places end together
        began = time.perf_counter()
        with self.trackers:
            self.trackers.start(self.runs, {k: v for k, v in self.there.items() if k in self.ended})
            _Packs(self, executor, inputs, packs).train(left)
        if len(left) > 1:
            took, expected = time.perf_counter() - began, makespan(seconds.values(), capacity)
            self.told.message(f"The packs took {duration(took)}; about {duration(expected)} were expected.")

    def _executor(self, works: Mapping[str, TaskWork]) -> ExecutorSpec:
        """Where packs train; where nobody says it, as they did before: other threads would round otherwise."""
        if self.executor is not None:
            return self.executor
        kept = self.store.read_executor()
        if kept is None or self.device not in ("auto", "cpu"):
            return best_executor(self.device, self.waiting, works)
        return Workers(kept["count"], kept["threads"]) if kept["count"] else Inline(self.device)

    def _refuse_changed_provenance(self, now: provenance.StudyProvenance) -> None:
        changed = provenance.changes(self.store.root, now)
        if not changed:
            return
        lines = "\n".join(f"  {line}" for line in changed)
        if not self.accept_changes:
            raise StoreError(
                f"What the results in {self.store.root} rest on has changed since they were begun:\n{lines}\n"
                "Go back to that, give another --out, or --accept-changes to go on all the same."
            )
        self.told.message(f"Accepted changes:\n{lines}", "warning")


class _Packs:
    """What the packs of a study come to: told, kept, tried again."""

    def __init__(self, job: _StudyJob, executor: ExecutorSpec, inputs: PackInputs, packs: Sequence[Pack]) -> None:
        self.store = job.store
        self.told = job.told
        self.ended = job.ended
        self.trackers = job.trackers
        self.live = LivePacks(job.store.root)
        self.executor = executor
        self.inputs = inputs
        self.packs = list(packs)
        self.queue: list[Pack] = []
        self.deaths: Counter[str] = Counter()

    def train(self, left: Sequence[Pack]) -> None:
        """Have packs trained, until none is left.

        Raises:
            Interrupted: The user asked to stop; all packs have stopped where they can go on.
            ManytuneError: The study cannot go on.
        """
        self.queue = list(left)
        self.live.keep([pack.id for pack in left])
        training: dict[str, Pack] = {}
        with stop_requests() as stop, self.executor.open(self.inputs, self) as executor:
            while self.queue or training:
                if not training:
                    stop.obey()
                while self.queue and len(training) < executor.capacity and stop.number is None:
                    pack = self.queue.pop(0)
                    self.inputs.check()
                    if not self._cut_after_oom(pack):
                        training[pack.id] = pack
                        executor.submit(pack, self.ended)
                for end in executor.wait(stop) if training else ():
                    pack = training.pop(end.pack_id)
                    self._settle(pack, end)
                    if end.how == "stopped" and stop.number is None:  # by somebody else
                        self.queue.insert(0, pack)
            stop.obey()

    def _settle(self, pack: Pack, end: PackEnd) -> None:
        """What the end of a pack's time with the executor means for it."""
        self.inputs.check()
        done = end.how == "done"
        if done:
            self.store.remove_pack(pack.id)
        self.told.pack_finished(pack.id, end.seconds if done else None)
        self.live.ended(pack.id, again=end.how in ("stopped", "lost", "refused"))
        reason = end.reason or ""
        if end.how == "refused":
            raise ManytuneError(reason)
        if end.how == "broken" and not (end.out_of_memory and self._cut(pack, reason)):
            self.store.write_traceback(pack.id, end.traceback or reason)
            self._fail(pack, reason)
        elif end.how == "lost":
            self.deaths[pack.id] += 1
            times = self.deaths[pack.id]
            if times >= _MOST_DEATHS:
                self._fail(pack, f"What trained it died {times} times, the last time because {reason}.")
            else:
                self.told.message(f"{pack.id}: {reason.removesuffix('.')}. It goes on elsewhere.", "warning")
                self.queue.insert(0, pack)

    def _fail(self, pack: Pack, reason: str) -> None:
        work, backbone = self.inputs.backbone(self.inputs.works[pack.task])
        cpu = hardware.choose_device("cpu")
        PackJob(self.store, work, backbone, pack, self.ended, cpu, self, StopRequest()).fail(reason)

    def _cut_after_oom(self, pack: Pack) -> bool:
        """Cut a pack if the system killed the process that trained it because memory ran out."""
        kills = hardware.oom_kills()
        before = self.store.note_start(pack.id, kills)
        if before is None or before == kills or str(before).split()[0] != str(kills).split()[0]:
            return False
        return self._cut(pack, "The system killed the process that trained it, because memory ran out")

    def _cut(self, pack: Pack, reason: str) -> bool:
        """Put smaller packs in a pack's executor, if there are any."""
        smaller = smaller_packs(pack, self.ended, self.inputs.study.training.batch_size)
        if not smaller:
            return False
        parts = (
            f"{len(smaller)} packs of {' and '.join(str(len(each.runs)) for each in smaller)} runs"
            if len(smaller) > 1
            else f"parts of {smaller[0].micro_batch} rows of the batch"
        )
        self.told.message(f"{pack.id}: {reason.removesuffix('.')}. It is tried again in {parts}.", "warning")
        executor = next(index for index, each in enumerate(self.packs) if each.id == pack.id)
        self.packs[executor : executor + 1] = smaller
        self.store.write_plan(self.packs)
        self.store.remove_pack(pack.id)
        self.queue[:0] = [each for each in smaller if any(run.id not in self.ended for run in each.runs)]
        return True

    # What the executor tells

    def pack_started(self, pack_id: str, runs: Sequence[str], total_steps: int) -> None:
        """Pass it on."""
        task = self._task(pack_id)
        self.live.started(pack_id, task.name, runs, total_steps)
        self.told.pack_started(pack_id, task, runs, total_steps)

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Pass it on; stop soon where another process has taken the directory over."""
        if self.inputs.held is not None and self.inputs.held.lost.is_set():
            self.inputs.check()
        self.live.step(pack_id, step, losses)
        self.told.step(pack_id, step, losses)

    def evaluated(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float]) -> None:
        """Pass it on."""
        self.live.evaluated(pack_id, step, rows, best)
        self.trackers.evaluated(rows)
        self.told.evaluated(pack_id, step, best)

    def run_ended(self, pack_id: str, record: RunRecord) -> None:
        """Write the record: now the run has ended."""
        self.inputs.check()
        self.store.write_record(record)
        self.ended.add(record.run_id)
        self.trackers.ended(record)
        advice = next(iter(record.notes), None) if record.state is RunState.COLLAPSED else None
        self.told.run_ended(pack_id, record.run_id, record.state, record.failure or advice)

    def message(self, text: str, level: Level = "info") -> None:
        """Pass it on."""
        self.told.message(text, level)

    def _task(self, pack_id: str) -> Task:
        name = next(pack.task for pack in self.packs if pack.id == pack_id)
        return self.inputs.works[name].task


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


def _keep(store: Store, work: TaskWork, runs: Sequence[Run], scored: Collection[str | None]) -> None:
    """Keep a task's dev rows and module tree, for whoever looks into its results later."""
    trained = {run.label: work.adaptation(run) for run in runs}
    store.task_artifacts(work.task.name).keep(
        work.task,
        Examples(
            texts=work.dev_texts,
            labels=tuple(work.dev.labels.tolist()),
            parts=dict(work.task.dev_parts),
            fingerprint=work.fingerprint,
        ),
        Structure(
            model=work.study.model,
            tensors=work.model_spec.tensors,
            head=work.model_spec.head.shapes(),
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
        scored,
    )
