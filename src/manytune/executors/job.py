"""One pack from its first step, or its last checkpoint, to the records of its runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from manytune.config import Training
from manytune.config.plan import Pack, Run, total_steps
from manytune.data.metrics import METRICS
from manytune.data.splits import Encoded
from manytune.executors.base import Reports
from manytune.models.loading import Backbone
from manytune.packing import Member, PackedModel
from manytune.packing.kernels import kernel_path, kernel_problems
from manytune.storage.artifacts import Learned
from manytune.storage.directory import Store
from manytune.storage.lookup import digests
from manytune.storage.record import Cost, HistoryRow, Parameters, Provenance, RunRecord, RunState, collapse_note
from manytune.training import snapshot
from manytune.training.checkpoints import Checkpoints
from manytune.training.evaluation import Evaluation, beats, evaluate
from manytune.training.loop import Checkpoint, Outcome, train_pack
from manytune.training.workload import TaskWork
from manytune.utils import hardware
from manytune.utils.signals import StopRequest

__all__ = ["PackJob", "failure_of"]

_MEMORY_ADVICE = "Not even one row at a time fits: use a smaller model, or lower training.max_length."


def failure_of(error: Exception) -> str:
    """What a record says of an error that broke a pack."""
    reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"
    if hardware.is_out_of_memory(error):
        reason = f"{reason.removesuffix('.')}. {_MEMORY_ADVICE}"
    return reason


class PackJob:
    """Train one pack and write what its runs came to, each as it ends; their records alone are not written here."""

    def __init__(
        self,
        store: Store,
        work: TaskWork,
        backbone: Backbone,
        pack: Pack,
        ended: Collection[str],
        device: torch.device,
        reports: Reports,
        stop: StopRequest,
        *,
        check: Callable[[], None] = lambda: None,
        kept: Callable[[], None] = lambda: None,
    ) -> None:
        """Take on a pack.

        Args:
            store: Where everything is written to.
            work: The pack's task and data.
            backbone: What its runs start from.
            pack: The runs, some of which may have ended before.
            ended: Ids of runs that have a record.
            device: Where to train.
            reports: Told how it goes, and given the records.
            stop: Obeyed when a checkpoint, or all of a run, is on the disk.
            check: Called before anything is written; raises where that may not be.
            kept: Called when a checkpoint is on the disk.
        """
        self.store = store
        self.check = check
        self.kept = kept
        self.work = work
        self.backbone = backbone
        self.pack = pack
        self.runs: Sequence[Run] = pack.runs
        self.device = device
        self.reports = reports
        self.stop = stop
        self.started = datetime.now(UTC)
        self.memory = hardware.PeakMemory(device)
        self._peak_bytes: int | None = None
        self._bests: dict[str, Evaluation] = {}
        self._recorded = set(ended)
        self._checkpoints = self._open_checkpoints()

    def execute(self) -> float:
        """Train, score and report; returns the seconds it took."""
        clock = time.perf_counter()
        training = self._training()
        for text in kernel_problems():
            self.reports.message(text, "warning")
        start = self._resume()
        if start is None:  # of runs that ended before without a checkpoint to go on from, the others need nothing
            self._checkpoints.runs = [run for run in self.pack.runs if run.id not in self._recorded]
        self.runs = self._checkpoints.runs
        members = [Member(run.seed, self.work.adaptation(run)) for run in self.runs]
        dtype = hardware.choose_dtype(training.precision, self.device)
        model = PackedModel(self.backbone, members, dtype=dtype, device=self.device)
        data = self.work.pack_data(self.runs)
        total = total_steps(training, len(data.train_rows[0]))
        pending = [run.id for run in self.runs if run.id not in self._recorded]
        self.reports.pack_started(self.pack.id, pending, total)
        train_pack(model, self.runs, self.work.task, data, training, self, self, start)
        return time.perf_counter() - clock

    def _training(self) -> Training:
        """The study's settings; where memory ran out, the same batch in several micro-batches."""
        training, micro = self.work.study.training, self.pack.micro_batch
        if micro is None:
            return training
        parts = training.accumulate * training.batch_size // micro
        return training.model_copy(update={"batch_size": micro, "accumulate": parts})

    def _open_checkpoints(self) -> Checkpoints:
        # What a result depends on to the bit, beside the study and the data; the thread count is told of alone.
        facts = {
            "kernels": kernel_path(self.device),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "started": self.started.isoformat(),
        }
        every = self.work.study.training.checkpoint_every
        directory = self.store.pack_dir(self.pack.id)
        return Checkpoints(directory, self.pack.runs, None if every == "auto" else every, facts)

    def _resume(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one that this machine can go on from."""
        found = self._checkpoints.newest(lambda text: self.reports.message(text, "warning"))
        if found is None:
            return None
        checkpoint, facts = found
        here = self._checkpoints.facts
        for name in ("kernels", "device"):
            if facts[name] != here[name]:
                self.reports.message(
                    f"The pack {self.pack.id} was begun with {name}: {facts[name]}, and here it is {here[name]}. "
                    "A run never changes that on its way, so the pack starts anew.",
                    "warning",
                )
                self._checkpoints.forget()
                return None
        if facts["threads"] != here["threads"]:
            self.reports.message(
                f"The pack {self.pack.id} was begun with {facts['threads']} threads, and goes on with "
                f"{here['threads']}: the results agree to rounding, not to the bit.",
                "warning",
            )
        self.started = datetime.fromisoformat(facts["started"])
        here["started"] = facts["started"]
        self.reports.message(f"The pack {self.pack.id} goes on from step {checkpoint.step}.")
        return checkpoint

    def fail(self, reason: str) -> None:
        """Report why the runs that have no record yet could not go on."""
        for run in self.runs:
            if run.id not in self._recorded:
                self._write(Outcome(run, state=RunState.FAILED, failure=reason))

    # What the training loop asks for

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted."""
        return self.stop.number is not None or self._checkpoints.due(step)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, and then stop if that was asked for."""
        self.check()
        self._checkpoints.keep(checkpoint)
        self.kept()
        self.stop.obey()

    # What the training loop tells

    def step(self, step: int, losses: Sequence[float]) -> None:
        """Pass a step on."""
        self.reports.step(self.pack.id, step, losses)

    def evaluated(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Pass an evaluation on."""
        metric = self.work.task.primary_metric
        rows: dict[str, HistoryRow] = {o.run.id: o.history[-1] for o in outcomes if o.history}
        self._bests |= {o.run.id: o.best for o in outcomes if o.best is not None}
        best: str | None = None
        for run_id, found in self._bests.items():
            if best is None or beats(metric, found, self._bests[best]):
                best = run_id
        if best is not None:
            self.reports.evaluated(self.pack.id, step, rows, (best, self._bests[best].scores[metric]))

    def ended(self, outcome: Outcome) -> None:
        """Write the run's history and snapshot, score the snapshot as it was written, report the record."""
        if outcome.run.id in self._recorded:
            return
        self.stop.obey()  # a checkpoint holds all that is needed to do this later
        self.check()
        self.store.write_history(outcome.run.id, outcome.history)
        self._write(outcome)

    def _write(self, outcome: Outcome) -> None:
        self.check()
        held = self.memory.bytes()
        self._peak_bytes = max(self._peak_bytes or 0, held) if held is not None else None
        record = self._record(outcome)
        self.memory = hardware.PeakMemory(self.device)  # what scoring took is no part of what training takes
        self._recorded.add(record.run_id)
        self.reports.run_ended(self.pack.id, record)

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
        notes = [*self.work.notes, *self._memory_notes()]
        if state is RunState.FINISHED and best is not None and best.collapsed:
            state = RunState.COLLAPSED
        metric = task.primary_metric
        if state is RunState.COLLAPSED and best is not None:
            title, classes = METRICS[metric].title, len(task.labels) or None
            notes.insert(0, collapse_note(title, best.scores[metric], outcome.steps, outcome.history, classes))
        samples = outcome.history[-1].samples_seen if outcome.history else None
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
            scores={**best.scores, **self._also_scored(run)} if best else {},
            last_scores=last.scores if last else {},
            learned=Learned.of(task).digest if task.own is not None else None,
            files=digests(self.store.run_dir(run.id)) if best else {},
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

    def _memory_notes(self) -> list[str]:
        if self.pack.cut_from is None:
            return []
        note = f"Memory ran out in a pack of {self.pack.cut_from} runs, so it trained in one of {len(self.pack.runs)}"
        if self.pack.micro_batch is not None:
            note += f", its batch in parts of {self.pack.micro_batch} rows"
        return [f"{note}."]

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

    def _also_scored(self, run: Run) -> dict[str, float]:
        """Scores of the written snapshot on the splits that select nothing."""
        if not self.work.also:
            return {}
        state = snapshot.load(self.store.snapshot_dir(run.id))[0]
        found = {split: self._score(run, state, rows) for split, rows in self.work.also.items()}
        return {metric: found[split].scores["accuracy"] for split, metric in self.work.task.also_scored.items()}

    def _score(self, run: Run, state: dict[str, Tensor], data: Encoded | None = None) -> Evaluation:
        """Score a run's tensors on dev, or other rows, alone and in fp32 from the original backbone."""
        data = self.work.dev if data is None else data
        model = snapshot.restore(self.backbone, self.work.adaptation(run), state, seed=run.seed, device=self.device)
        return evaluate(model, self.work.task, data, [np.arange(data.size)])[0]
