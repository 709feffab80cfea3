"""Run a study on this machine: one pack after the other on one device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manytune import hardware, snapshot
from manytune.backbones import Backbone, load_backbone
from manytune.config import Study
from manytune.errors import ManytuneError
from manytune.estimate import largest_packs
from manytune.evaluate import Evaluation, beats, evaluate
from manytune.evidence import Examples, Structure, Trained
from manytune.packing import Member, PackedModel
from manytune.packing.kernels import kernel_path
from manytune.plan import Pack, Run, plan_packs, plan_runs, total_steps
from manytune.progress import Progress, make_progress
from manytune.record import Cost, Parameters, Provenance, RunRecord, RunState
from manytune.report import TaskTable, tabulate
from manytune.store import Store
from manytune.train import Outcome, train_pack
from manytune.workload import TaskWork, prepare

__all__ = ["StudyResult", "run_study"]

_COLLAPSE_ADVICE = (
    "It predicts one constant, so it learned nothing and scores 0. Use a lower learning rate or a longer warm-up."
)
_MEMORY_ADVICE = "Lower training.max_pack or training.batch_size, in a study of another --out."


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
) -> StudyResult:
    """Train every run of a study that has not ended yet, and compare them.

    Args:
        study: What to run.
        out: The study directory; if it holds this study already, runs that ended are not trained again.
        device: `auto`, `cpu`, `cuda` or `mps`.
        progress: Told how it goes; plain or live lines on standard error by default.

    Raises:
        ManytuneError: The study, its data, its model or the directory cannot be used. A run that fails while
            training raises nothing: its record says so.
        TypeError: `study` is no Study.
    """
    if not isinstance(study, Study):
        raise TypeError(
            f"run_study takes a Study, not {study!r} ({type(study).__name__}): "
            "make one with Study.from_file(path) or Study.from_dict(data)"
        )
    chosen = hardware.choose_device(device)
    store = Store.check(out, study)
    planned, runs = store.read_plan(), plan_runs(study)
    ended = store.finished_runs()
    with progress or make_progress(quiet=False) as told:
        if ended:
            told.message(f"{len(ended)} of {len(runs)} runs have ended before.")
        works = _prepare(study, [run for run in runs if planned is None or run.id not in ended], told)
        packs = planned or plan_packs(runs, largest_packs(runs, works, chosen))
        pending = [(pack, tuple(run for run in pack.runs if run.id not in ended)) for pack in packs]
        pending = [(pack, own) for pack, own in pending if own]
        backbones: dict[int, Backbone] = {}
        hardware.keep_freed_memory()
        for pack, own in pending:
            outputs = works[pack.task].task.num_outputs
            if outputs not in backbones:
                backbones = {outputs: load_backbone(study.model, outputs)}
            # The loaded weights say whether the pooler is the backbone's or, where they lack it, the head's.
            work = replace(works[pack.task], anatomy=backbones[outputs].anatomy)
            _begin(store.root, study, packs)
            _keep(store, work, [run for each in packs if each.task == pack.task for run in each.runs])
            job = _PackJob(store, work, backbones[outputs], pack, own, chosen, told)
            try:
                job.execute()
            except ManytuneError:
                raise
            except Exception as error:  # whatever it is, the other packs can still train
                job.fail(error)
    records = tuple(store.finished_runs().values())
    return StudyResult(store.root, records, tabulate(records))


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


def _begin(out: Path, study: Study, packs: Sequence[Pack]) -> None:
    """Write what a study directory starts with; not sooner, so that a study that is refused leaves none."""
    store = Store.create_or_open(out, study)
    if store.read_plan() is None:
        store.write_plan(packs)


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


class _PackJob:
    """Train one pack and write what its runs came to, each as it ends."""

    def __init__(
        self,
        store: Store,
        work: TaskWork,
        backbone: Backbone,
        pack: Pack,
        runs: Sequence[Run],
        device: torch.device,
        told: Progress,
    ) -> None:
        self.store = store
        self.work = work
        self.backbone = backbone
        self.pack = pack
        self.runs = runs
        self.device = device
        self.told = told
        self.started = datetime.now(UTC)
        self.memory = hardware.PeakMemory(device)
        self._peak_bytes: int | None = None
        self._bests: dict[str, Evaluation] = {}
        self._recorded: set[str] = set()

    def execute(self) -> None:
        """Train, score and record."""
        clock = time.perf_counter()
        training = self.work.study.training
        members = [Member(run.seed, self.work.adaptation(run)) for run in self.runs]
        dtype = hardware.choose_dtype(training.precision, self.device)
        model = PackedModel(self.backbone, members, dtype=dtype, device=self.device)
        data = self.work.pack_data(self.runs)
        total = total_steps(training, len(data.train_rows[0]))
        self.told.pack_started(self.pack.id, self.pack.task, [run.id for run in self.runs], total)
        train_pack(model, self.runs, self.work.task, data, training, self)
        self.told.pack_finished(time.perf_counter() - clock)

    def fail(self, error: Exception) -> None:
        """Record why the runs that have no record yet could not go on."""
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            reason = f"{reason.removesuffix('.')}. {_MEMORY_ADVICE}"
        for run in self.runs:
            if run.id not in self._recorded:
                self._write(Outcome(run, state=RunState.FAILED, failure=reason))

    # What the training loop tells

    def step(self, step: int, losses: Sequence[float]) -> None:
        """Pass a step on."""
        self.told.step(step, losses)

    def evaluated(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Pass an evaluation on."""
        metric = self.work.task.primary_metric
        scores = {o.run.id: o.last.scores[metric] for o in outcomes if o.last is not None}
        self._bests |= {o.run.id: o.best for o in outcomes if o.best is not None}
        best: str | None = None
        for run_id, found in self._bests.items():
            if best is None or beats(metric, found, self._bests[best]):
                best = run_id
        if best is not None:
            self.told.evaluated(step, scores, (best, self._bests[best].scores[metric]))

    def ended(self, outcome: Outcome) -> None:
        """Write the run's history and snapshot, score the snapshot as it was written, write the record."""
        self.store.write_history(outcome.run.id, outcome.history)
        self._write(outcome)

    def _write(self, outcome: Outcome) -> None:
        held = self.memory.bytes()
        self._peak_bytes = max(self._peak_bytes or 0, held) if held is not None else None
        record = self._record(outcome)
        self.memory = hardware.PeakMemory(self.device)  # what scoring took is no part of what training takes
        self.store.write_record(record)
        self._recorded.add(record.run_id)
        advice = _COLLAPSE_ADVICE if record.state is RunState.COLLAPSED else None
        self.told.run_ended(record.run_id, record.state, record.failure or advice)

    def _record(self, outcome: Outcome) -> RunRecord:
        run, task = outcome.run, self.work.task
        best = last = None
        snapshot_bytes = None
        if outcome.best_state:
            directory = self.store.snapshot_dir(run.id)
            snapshot_bytes = snapshot.save(directory, outcome.best_state, self._facts(run))
            best = self._score(run, snapshot.load(directory)[0])
            assert best.logits is not None
            self.store.write_predictions(run.id, best.logits)
            # Where a share of train selects, dev is scored once, with what was selected.
            if outcome.state is not RunState.FAILED and self.work.study.selection == "dev":
                last = self._score(run, outcome.last_state) if outcome.last_state else best
        state = outcome.state
        notes = list(self.work.notes)
        if state is RunState.FINISHED and best is not None and best.collapsed:
            state = RunState.COLLAPSED
        if state is RunState.COLLAPSED:
            notes.insert(0, _COLLAPSE_ADVICE)
        samples = outcome.history[-1].samples_seen if outcome.history else None
        metric = task.primary_metric
        return RunRecord(
            run_id=run.id,
            study=self.work.study.name,
            study_hash=self.work.study.hash,
            task=task.name,
            model=run.model,
            method=run.method.method,
            label=run.label,
            hyperparameters={
                **run.method.hyperparameters(),
                "training": self.work.study.training.model_dump(mode="json"),
            },
            template=self.work.study.template,
            selection=self.work.study.selection,
            seed=run.seed,
            state=state,
            failure=outcome.failure,
            notes=notes,
            primary_metric=metric,
            best_score=best.scores[metric] if best else None,
            best_step=outcome.best_step,
            last_score=last.scores[metric] if last else None,
            last_collapsed=bool(last and last.collapsed),
            scores=best.scores if best else {},
            last_scores=last.scores if last else {},
            epochs_done=outcome.history[-1].epoch if outcome.history else None,
            steps=outcome.steps or None,
            parameters=Parameters(**asdict(self.work.parameters(run))),
            cost=Cost(
                train_seconds=outcome.train_seconds if outcome.steps else None,
                eval_seconds=outcome.eval_seconds if outcome.steps else None,
                peak_memory_bytes=self._peak_bytes,
                samples_per_second=samples / outcome.train_seconds if samples else None,
                snapshot_bytes=snapshot_bytes,
                pack_size=len(self.runs),
            ),
            provenance=Provenance(
                versions=hardware.versions(),
                model_revision=self.backbone.revision,
                data_fingerprint=self.work.fingerprint,
                git_commit=hardware.git_commit(),
                hardware={**hardware.describe(self.device), "kernels": kernel_path(self.device)},
                started=self.started,
                finished=datetime.now(UTC),
            ),
        )

    def _facts(self, run: Run) -> dict[str, object]:
        return {
            "run_id": run.id,
            "model": run.model,
            "model_revision": self.backbone.revision,
            "task": run.task,
            "outputs": self.work.task.num_outputs,
            "method": run.method.model_dump(mode="json"),
            "seed": run.seed,
        }

    def _score(self, run: Run, state: dict[str, Tensor]) -> Evaluation:
        """Score a run's tensors on dev, alone and in fp32 from the original backbone."""
        model = snapshot.restore(self.backbone, self.work.adaptation(run), state, seed=run.seed, device=self.device)
        rows = np.arange(self.work.dev.size)
        return evaluate(model, self.work.task, self.work.dev, [rows])[0]
