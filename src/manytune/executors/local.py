"""Run a study on this machine: one pack after the other on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from manytune import hardware
from manytune.backbones import Backbone, load_backbone
from manytune.config import Study
from manytune.errors import ManytuneError, StoreError
from manytune.estimate import largest_packs
from manytune.evidence import Examples, Structure, Trained
from manytune.executors.job import PackJob
from manytune.interrupts import stop_requests
from manytune.lock import Lock
from manytune.plan import Pack, Run, plan_packs, plan_runs
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
) -> StudyResult:
    """Train every run of a study that has not ended yet, and compare them.

    Args:
        study: What to run.
        out: The study directory; if it holds this study already, runs that ended are not trained again.
        device: `auto`, `cpu`, `cuda` or `mps`.
        progress: Told how it goes; plain or live lines on standard error by default.
        wait: Where another process works on the directory, wait for its end rather than refuse.

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
    store = Store.check(out, study)
    with progress or make_progress(quiet=False) as told:
        lock = Lock(store.root, lambda text: told.message(text), wait=wait)
        lock.look()
        ended, packs = store.finished_runs(), store.read_plan()
        runs = plan_runs(study) if packs is None else tuple(run for pack in packs for run in pack.runs)
        if ended:
            told.message(f"{len(ended)} of {len(runs)} runs have ended before.")
        waiting = [run for run in runs if run.id not in ended]
        if waiting:
            works = _prepare(study, waiting, told)
            packs = packs or plan_packs(runs, largest_packs(runs, works, chosen))
            _train(store, lock, works, packs, ended, chosen, told)
    records = tuple(store.finished_runs().values())
    return StudyResult(store.root, records, tabulate(records))


def _train(
    store: Store,
    lock: Lock,
    works: Mapping[str, TaskWork],
    packs: Sequence[Pack],
    ended: Mapping[str, RunRecord],
    device: torch.device,
    told: Progress,
) -> None:
    """Train the packs that have runs left, one after the other."""
    hardware.keep_freed_memory()
    pending = [pack for pack in packs if any(run.id not in ended for run in pack.runs)]
    backbones = _Backbones()
    backbones.of(works[pending[0].task])  # what cannot be loaded is refused before anything is written
    study = next(iter(works.values())).study
    Store.create_or_open(store.root, study)
    with lock.held():
        if store.finished_runs().keys() != ended.keys():
            raise StoreError(f"Another process has worked on {store.root} since this one looked. Start again.")
        store.sweep()
        if store.read_plan() is None:
            store.write_plan(packs)
        for pack in packs:  # one that was killed between its last record and this
            if all(run.id in ended and ended[run.id].state is not RunState.FAILED for run in pack.runs):
                store.remove_pack(pack.id)
        for task in dict.fromkeys(pack.task for pack in pending):
            work, _ = backbones.of(works[task])
            _keep(store, work, [run for pack in packs if pack.task == task for run in pack.runs])
            for pack in pending:
                if pack.task == task:
                    work, backbone = backbones.of(works[task])
                    with stop_requests() as stop:
                        job = PackJob(store, lock, work, backbone, pack, tuple(ended), device, told, stop)
                        try:
                            job.execute()
                        except ManytuneError:
                            raise
                        except Exception as error:  # whatever it is, the other packs can still train
                            job.fail(error)
                        stop.obey()


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
    store.keep_task(
        work.task.name,
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
