"""Run a study: check it, plan it, prepare its data and model, train its packs, and compare what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manytune.config import Study
from manytune.config.confirm import confirm_study
from manytune.config.plan import Pack, replan
from manytune.config.spaces import search_spaces
from manytune.executors.auto import STARTUP_SECONDS, best_executor, kept_executor
from manytune.executors.base import ExecutorSpec
from manytune.executors.driver import Driver
from manytune.executors.estimate import largest_packs, makespan, seconds_of
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.executors.probe import Probe
from manytune.report import TaskTable, tabulate
from manytune.report.judgement import at_look
from manytune.report.task_table import baseline_line
from manytune.search.winners import read_winners
from manytune.search_stage import find_winners
from manytune.stats.looks import SeedPlan
from manytune.storage import provenance
from manytune.storage.artifacts import Baselines, Examples, Structure, Trained
from manytune.storage.directory import Store
from manytune.storage.lock import Held, Lock
from manytune.storage.record import RunRecord, RunState
from manytune.storage.study_state import StudyState
from manytune.storage.test_looks import note_test_look
from manytune.tracking import Trackers
from manytune.tracking.pack_progress import LiveFileWriter
from manytune.tracking.progress import TerminalProgress
from manytune.training.callbacks import Callback, CallbackList, GuardedCallback
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware
from manytune.utils.errors import StoreError
from manytune.utils.text import counted, duration


@dataclass(frozen=True)
class StudyResult:
    """The study directory, the records of the runs that have ended, and a table of methods for each task."""

    directory: Path
    records: tuple[RunRecord, ...]  # in the study's order
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
    callbacks: Iterable[Callback] | None = None,
    wait: bool = False,
    retry_failed: bool = False,
    accept_changes: bool = False,
    additions: Callable[[Study], Study] | None = None,
    probe: Probe | None = None,
) -> StudyResult:
    """Train every run of a study that has not ended yet, and compare them.

    >>> result = run_study(Study.from_file("study.yaml"), "results", executor=Workers(2))  # doctest: +SKIP

    Args:
        study: What to run.
        out: The study directory; if it holds this study already, runs that ended are not trained again, and a pack
            that was stopped goes on from its last checkpoint.
        device: `auto`, `cpu`, `cuda` or `mps`.
        executor: Where packs train: `Inline` in this process, `Workers` on this machine, `OnRay` on a cluster; None: in
            this process, or, on a CPU, in as many workers as end the study first.
        callbacks: Called as the study goes; None: `TerminalProgress()` alone, which shows it on standard error.
        wait: Where another process works on the directory, wait for its end rather than refuse.
        retry_failed: Train runs that failed again.
        accept_changes: Go on although the study, the data or a package is another than when the directory was begun;
            runs that are still in the study are kept.
        additions: Makes `study` of the one that the directory holds by more runs: `partial(extend_study, seeds="5")`.
            It is called under the lock, because another process may have added some until then.
        probe: What was measured of this study's packs already; what is missing is measured where training takes long.

    Raises:
        ManytuneError: The study, its data, its model or the directory cannot be used, or a callback failed. A run that
            fails while training raises nothing: its record says so.
        TypeError: `study` is no Study, or a callback no Callback.
        Interrupted: Ctrl-C or SIGTERM, in the main thread, while a pack trained: all that was done is kept. A second
            signal stops at once.
    """
    # Check: what can be refused is refused before anything is written, and before anything slow.
    if not isinstance(study, Study):
        raise TypeError(
            f"run_study takes a Study, not {study!r} ({type(study).__name__}): "
            "make one with Study.from_file(path) or Study.from_dict(data)"
        )
    if executor is None:
        hardware.choose_device(device)
    user = CallbackList(map(GuardedCallback, (TerminalProgress(),) if callbacks is None else callbacks))
    # What is added to may change until the lock is held.
    store = Store.open(out) if additions else Store.check(out, study, accept_changes=accept_changes)
    if study.search is not None:
        return _search(
            study, store, user, device, executor, wait=wait, retry_failed=retry_failed, accept_changes=accept_changes
        )
    lock = Lock(store.root, user.on_message, wait=wait)
    lock.look()
    trackers = Trackers(study, store, lambda text: user.on_message(text, "warning"))
    callback = CallbackList([LiveFileWriter(store.root), trackers, user])
    state = StudyState.read(store, study, retry_failed=retry_failed)
    if not state.has_work:  # nothing is written: what is finished may be read-only
        _report_ended(state, callback)
    else:
        with lock.held() as held:
            # From here on nobody else writes; what was read before may have changed.
            study = additions(store.study()) if additions else study
            Store.check(out, study, accept_changes=accept_changes, additions=additions is not None)
            state = StudyState.read(store, study, retry_failed=retry_failed)
            _report_ended(state, callback)
            _train(state, device, executor, callback, held, probe or Probe(), accept_changes=accept_changes)
    records = tuple(store.finished_runs().values())
    shown = at_look(records, store.study().seeds, (), SeedPlan.of(store.looks()))
    return StudyResult(store.root, records, tabulate(shown, _baselines(store, records)))


def _search(
    study: Study,
    store: Store,
    user: Callback,
    device: str,
    executor: ExecutorSpec | None,
    *,
    wait: bool,
    retry_failed: bool,
    accept_changes: bool,
) -> StudyResult:
    """Run a study with a search: find the winner of each search space, train the winners again, and compare them."""
    lock = Lock(store.root, user.on_message, wait=wait)
    lock.look()
    winners = read_winners(store.root) if store.holds(study) else None
    if winners is None:
        trackers = Trackers(study, store, lambda text: user.on_message(text, "warning"))
        callback = CallbackList([LiveFileWriter(store.root), trackers, user])
        with lock.held() as held:
            Store.check(store.root, study, accept_changes=accept_changes)
            winners = find_winners(store, study, device, executor, callback, held, accept_changes=accept_changes)
    results: list[StudyResult] = []
    for task in dict.fromkeys(winner.task for winner in winners) if study.confirm is not None else ():
        spaces = {space.name: space for space in search_spaces(study, task)}
        mine = [(spaces[winner.space], winner.settings) for winner in winners if winner.task == task]
        confirmed = confirm_study(study, task, mine)
        out = store.confirm_dir(task)
        user.on_message(
            f"{task}: {counted(len(mine), 'winner')} train again, with {counted(len(confirmed.seeds), 'seed')}."
        )
        results.append(
            run_study(
                confirmed,
                out,
                device=device,
                executor=executor,
                callbacks=[user],
                wait=wait,
                retry_failed=retry_failed,  # of winners: a trial that failed is a result of the search
                accept_changes=accept_changes,
            )
        )
        if study.confirm is not None and study.confirm.on == "test":
            times = note_test_look(store.root, task, results[-1].records)
            user.on_message(
                f"{task}: scores on this test file could be seen {counted(times, 'time')} in this search. "
                "Each that leads to another choice makes it less of a test."
            )
    records = tuple(record for result in results for record in result.records)
    return StudyResult(store.root, records, tuple(table for result in results for table in result.tables))


def _baselines(store: Store, records: Iterable[RunRecord]) -> dict[str, Baselines]:
    """Task → its kept baselines; damaged ones, of which the report tells, are left out."""
    found: dict[str, Baselines] = {}
    for task in dict.fromkeys(record.task for record in records):
        with suppress(StoreError):
            if (kept := store.task_artifacts(task).baselines()) is not None:
                found[task] = kept
    return found


def _report_ended(state: StudyState, callback: Callback) -> None:
    if state.ended:
        callback.on_message(f"{counted(len(state.ended), 'run', 'has|have', of=len(state.runs))} ended before.")
        if (ignored := state.store.looks().ignored(state.study.looks)) is not None:
            callback.on_message(ignored, "warning")


def _train(
    state: StudyState,
    device: str,
    executor: ExecutorSpec | None,
    callback: Callback,
    held: Held,
    probe: Probe,
    *,
    accept_changes: bool,
) -> None:
    """Train the runs that wait, and bring the directory up to date, also where none does."""
    store, waiting = state.store, state.waiting

    # Prepare: what cannot be loaded or trained is refused here, before anything is written.
    backbones = Backbones(state.study.model)
    works = {
        name: prepare(state.study, name, backbones.spec, artifacts=store.task_artifacts(name))
        for name in state.tasks_to_prepare()
    }
    for work in works.values():
        _check_runs(state, work, callback)
        if work.baselines is not None and not state.planned:  # said once, when the study begins
            callback.on_message(baseline_line(work.task, work.baselines.scores))

    # Plan: where packs train, and which runs are in each.
    spec = (executor or _default_executor(state, device, works)) if waiting else None
    if spec is None:
        packs = replan(state.planned, state.runs, max((len(pack.runs) for pack in state.planned), default=1))
    else:
        capacity, profile = spec.profile(state.study.training.precision, next(iter(works.values())).width)
        packs = replan(state.planned, state.runs, largest_packs(state.runs, works, profile, capacity))
        left = [pack for pack in packs if any(run.id not in state.ended for run in pack.runs)]
    now = _provenance(state, works)
    if waiting:
        provenance.refuse_changes(store.root, now, callback.on_message, accept_changes=accept_changes)
    for name, work in works.items():
        store.task_artifacts(name).refuse_another(work.task, state.ended_of(name))

    # Record: the study, its plan, what its results rest on, and its tasks.
    _write_study(state, packs, spec.to_plan() if spec else None, callback)
    provenance.keep(store.root, now)
    for run_id in state.again:
        store.reset_run(run_id)
    for work in works.values():
        _keep_task(state, work)
    if spec is None:
        return

    if profile.device == "cuda" and (note := hardware.gpu_note()):
        callback.on_message(note)

    # Expect: how long that will take, on this machine from a short training.
    here = profile.device == "cpu" and spec.to_plan() is not None
    # Of packs that go on, nobody knows yet how much is left.
    begun = any(store.pack_dir(pack.id).exists() for pack in left)
    here = here and not begun
    each = probe.expected(left, works, profile, backbones) if here else seconds_of(left, works, profile)
    seconds = dict(zip((pack.id for pack in left), each, strict=True))
    expected = makespan(each, capacity) + (STARTUP_SECONDS if capacity > 1 else 0.0)
    if expected >= probe.shortest and not begun:
        callback.on_message(f"Training is expected to take about {duration(expected)}.")

    # Execute: several packs at once, the longest first, so that all workers end together.
    if capacity > 1:
        left.sort(key=lambda pack: -seconds[pack.id])
    began = time.perf_counter()
    inputs = PackInputs(store.root, works, backbones, held)
    try:
        callback.on_study_begin(packs, state.ended)
        Driver(inputs, packs, set(state.ended), callback).train(spec, left)
    finally:
        callback.on_study_end()
    if len(left) > 1 and not begun:
        took = time.perf_counter() - began
        callback.on_message(f"The packs took {duration(took)}; about {duration(expected)} were expected.")


def _check_runs(state: StudyState, work: TaskWork, callback: Callback) -> None:
    """Refuse runs whose method does not fit the backbone, and report what to know of the data and the settings."""
    runs = [run for run in state.runs if run.task == work.task.name]
    runs = [run for run in runs if run.id not in state.ended] or runs
    for run in runs:
        work.adaptation(run)
    for text in (*work.notes, *work.warnings(runs)):
        callback.on_message(text, "warning")


def _default_executor(state: StudyState, device: str, works: Mapping[str, TaskWork]) -> ExecutorSpec:
    """Where packs train by default: as they did before, because another number of threads rounds differently."""
    return kept_executor(state.store, device) or best_executor(device, state.waiting, works)


def _provenance(state: StudyState, works: Mapping[str, TaskWork]) -> provenance.StudyProvenance:
    """The versions and data that the results depend on; where nothing is trained, only data that was scored on."""
    data = {name: work.fingerprint for name, work in works.items()}
    if state.waiting:
        return {"versions": hardware.versions(), "data": data}
    return {"data": {name: fingerprint for name, fingerprint in data.items() if fingerprint in state.scored(name)}}


def _write_study(
    state: StudyState,
    packs: Sequence[Pack],
    executor: Mapping[str, int] | None,
    callback: Callback,
) -> None:
    """Write the study and its packs; remove leftovers and the checkpoints of packs that have ended."""
    store, ids = state.store, {run.id for run in state.runs}
    dropped = [run.id for pack in state.planned for run in pack.runs if run.id not in ids]
    gone = [run_id for run_id in dropped if store.read_record(run_id) is not None]
    store.sweep()
    for pack in state.finished_packs:
        store.remove_pack(pack.id)
    Store.create_or_open(store.root, state.study, accept_changes=True)  # what may not change was refused before
    store.write_plan(packs, executor)
    if gone:
        callback.on_message(
            f"{counted(len(gone), 'run')} of before, such as {gone[0]}, no longer part of the study: in no table "
            f"or report. The files stay in {store.root / 'runs'}."
        )


def _keep_task(state: StudyState, work: TaskWork) -> None:
    """Keep a task's baselines, dev rows and module tree, for the report and exports."""
    spec = work.model_spec
    if work.baselines is not None:
        state.store.task_artifacts(work.task.name).keep_baselines(work.baselines)
    state.store.task_artifacts(work.task.name).keep(
        work.task,
        Examples(
            texts=work.dev_texts,
            labels=tuple(work.dev.labels.tolist()),
            parts=dict(work.task.dev_parts),
            fingerprint=work.fingerprint,
        ),
        Structure(
            model=work.study.model,
            tensors=spec.tensors,
            head=spec.head.shapes(),
            trained={run.label: Trained.of(run.method, spec) for run in state.runs if run.task == work.task.name},
        ),
        state.scored(work.task.name),
    )
