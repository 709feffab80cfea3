"""One pack from its first step, or its last checkpoint, to the records of its runs."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from manytune.config import Training
from manytune.config.plan import Pack, Run, pack_position, total_steps
from manytune.data.metrics import METRICS
from manytune.data.splits import Encoded
from manytune.executors.orders import Inbox, OrderedRuns
from manytune.executors.pack_inputs import PackInputs
from manytune.packing import Member, PackedModel
from manytune.packing.kernels import arithmetic, kernel_path, problems
from manytune.storage import record
from manytune.storage.artifacts import Learned
from manytune.storage.directory import Store
from manytune.storage.lookup import digests
from manytune.storage.record import HistoryRow, RunRecord, RunState
from manytune.training import snapshot
from manytune.training.callbacks import Best, Callback, PackCallback
from manytune.training.checkpoints import Checkpoints
from manytune.training.evaluation import Evaluation, EvaluationSummary, evaluate
from manytune.training.live_run import Entry, RunSource, WaitingRuns, ticks_until_end
from manytune.training.loop import train_pack
from manytune.training.outcome import Checkpoint, Clock, Outcome
from manytune.training.workload import TaskWork
from manytune.utils import hardware
from manytune.utils.signals import StopRequest
from manytune.utils.text import counted


@dataclass(eq=False)
class PackJob(PackCallback):
    """Trains one pack, keeps its checkpoints, and writes the history, snapshot and predictions of each run that ends.

    Records are made here but written by the driver alone, which gets them by `on_run_end`: so a process that dies, or a
    machine that was given up and comes back, can never claim that a run has ended.
    """

    inputs: PackInputs
    pack: Pack
    ended: Collection[str]  # ids of runs that have a record
    device: torch.device
    callback: Callback
    stop: StopRequest
    inbox: Inbox = field(default_factory=Inbox)  # where orders arrive, of a pack of a search

    def __post_init__(self) -> None:
        self.store = Store(self.inputs.root)
        self.work = self.inputs.works[self.pack.task]
        self.backbone = self.inputs.backbones.on(self.device, self.work.task.num_outputs)
        self.runs: Sequence[Run] = self.pack.runs
        self.started = datetime.now(UTC)
        self.memory = hardware.PeakMemory(self.device)
        self._peak_bytes: int | None = None
        self._recorded = set(self.ended)
        every = self.work.study.training.checkpoint_every
        # All that a result depends on to the bit, beside the study and the data; another thread count is reported only.
        facts = {
            "kernels": kernel_path(self.device),
            "arithmetic": arithmetic(
                self.device, hardware.choose_dtype(self.work.study.training.precision, self.device)
            ),
            "device": self.device.type,
            "accelerator": hardware.accelerator_arithmetic(self.device),
            "threads": torch.get_num_threads(),
            "started": self.started.isoformat(),
        }
        directory = self.store.pack_dir(self.pack.id)
        self.checkpoints = Checkpoints(directory, self.runs, None if every == "auto" else every, facts)

    def execute(self) -> float:
        """Train, score and report; returns the seconds it took."""
        began = time.perf_counter()
        task = self.work.task
        for text in problems(self.device):
            self.callback.on_message(text, "warning")
        start = self._resume()
        pending = [run for run in self.pack.runs if run.id not in self._recorded]
        later = self._line_up(start, pending)
        room = self.pack.size
        members = [Member(run.seed, self.work.adaptation(run)) for run in self.runs]
        dtype = hardware.choose_dtype(self.work.study.training.precision, self.device)
        model = PackedModel(self.backbone, members, dtype=dtype, device=self.device)
        data = self.work.pack_data(self.runs)
        first = 0 if start is None else start.step
        total = first + ticks_until_end(self._steps_left(start, later), room)
        waiting = [] if self.pack.expected is not None and self.pack.room else [run.id for run in pending]
        self.callback.on_train_begin(self.pack.id, task.name, task.primary_metric, waiting, total, first)
        trainings = [self._training(run) for run in self.runs]
        source = self._source(later)
        train_pack(model, self.runs, task, data, trainings, self, start, self.pack.id, source, room)
        return time.perf_counter() - began

    def _source(self, later: Sequence[Run]) -> RunSource:
        if self.pack.expected is None:
            return WaitingRuns(later, self._entry)
        ask = functools.partial(self.callback.on_room, self.pack.id)
        return OrderedRuns(self.inbox, self.pack.room or 0, self._entry, ask, self.stop)

    def _line_up(self, start: Checkpoint | None, pending: Sequence[Run]) -> list[Run]:
        """Set the runs that the model is built for; returns those that join later."""
        if start is not None:
            # A pack goes on with all runs of its checkpoint since one joined last, ended ones too: the others then
            # train in the same groups as before.
            self.runs = [start.runs[index].outcome.run for index in start.packed]
            known = {each.outcome.run.id for each in start.runs}
            return [run for run in pending if run.id not in known]
        if self.pack.room is None:
            self.runs = pending
            return []
        if self.pack.expected is not None:  # they all join by order
            self.runs = []
            return []
        self.runs = sorted(pending[: self.pack.room], key=pack_position)  # as when a run joins
        return list(pending[self.pack.room :])

    def _training(self, run: Run) -> Training:
        """How a run trains; where memory ran out, with the same batch in several micro-batches."""
        training = run.training or self.work.study.training
        if self.pack.micro_batch is None:
            return training
        size = training.batch_size
        micro = next(rows for rows in range(min(size, self.pack.micro_batch), 0, -1) if size % rows == 0)
        return training.model_copy(update={"batch_size": micro, "accumulate": training.accumulate * size // micro})

    def _entry(self, run: Run) -> Entry:
        data = self.work.pack_data([run])
        member = Member(run.seed, self.work.adaptation(run))
        return Entry(run, member, self._training(run), data.train_rows[0], data.select_rows[0])

    def _steps_left(self, start: Checkpoint | None, later: Sequence[Run]) -> list[int]:
        """Optimizer steps to the end of each run that is in the pack now, or joins later."""
        begun = [] if start is None else [start.runs[index].clock for index in start.alive]
        begin = [*(self.runs if start is None else ()), *later]
        # Of runs that join by order, only their number is known; in room for one or more there is always a run to come.
        known = len(self.runs) if start is None else len(start.runs)
        unknown = max((self.pack.expected or 0) - known - len(later), 0)
        return [
            *(clock.total_steps - clock.step for clock in begun),
            *(total_steps(self._training(run), self.work.train_size) for run in begin),
            *[total_steps(self.work.study.training, self.work.train_size)] * unknown,
        ]

    def _resume(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one and nothing differs that a run may not change on its way."""
        found = self.checkpoints.newest(lambda text: self.callback.on_message(text, "warning"))
        if found is None:
            return None
        checkpoint, facts = found
        for each in checkpoint.runs:
            training = self._training(each.outcome.run)
            # another one where the data has changed
            now = asdict(Clock.after(each.clock.step, training, self.work.train_size))
            # Checkpoints of before have not all of these facts.
            here = self.checkpoints.facts | now
            begun = {name: here[name] for name in ("arithmetic", "accelerator")} | facts | asdict(each.clock)
            for name in ("kernels", "arithmetic", "device", "accelerator", *now):
                if begun[name] != here[name]:
                    self.callback.on_message(
                        f"The pack {self.pack.id} was begun with {name}: {begun[name]}, and here it is {here[name]}. "
                        "A run never changes that on its way, so the pack starts anew.",
                        "warning",
                    )
                    self.checkpoints.forget()
                    return None
        threads = self.checkpoints.facts["threads"]
        if facts["threads"] != threads:
            self.callback.on_message(
                f"The pack {self.pack.id} was begun with {counted(facts['threads'], 'thread')}, and goes on with "
                f"{threads}: the results agree to rounding, not to the bit.",
                "warning",
            )
        self.started = datetime.fromisoformat(facts["started"])
        self.checkpoints.facts["started"] = facts["started"]
        self.callback.on_message(f"The pack {self.pack.id} goes on from step {checkpoint.step}.")
        # What a run's record was made of may be gone, and then the record too: such a run begins anew.
        runs = [each for each in checkpoint.runs if not each.outcome.released or each.outcome.run.id in self._recorded]
        return replace(checkpoint, runs=runs)

    # What the training loop calls

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.callback.on_step_end(pack_id, step, losses)

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: Best) -> None:
        self.callback.on_evaluate(pack_id, step, rows, best)

    def should_checkpoint(self, step: int) -> bool:
        return self.stop.number is not None or self.checkpoints.due(step)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.inputs.check()
        self.checkpoints.keep(checkpoint)
        self.callback.on_checkpoint(self.pack.id, checkpoint.step)
        self.stop.obey()

    def is_recorded(self, run_id: str) -> bool:
        return run_id in self._recorded and self.store.read_record(run_id) is not None

    def on_run_trained(self, outcome: Outcome) -> None:
        """Write the run's history and snapshot, score the snapshot as it was written, report the record."""
        if outcome.run.id in self._recorded:
            return
        self.stop.obey()  # the newest checkpoint holds all that is needed to do the rest later
        self.inputs.check()
        self.store.write_history(outcome.run.id, outcome.history)
        held = self.memory.bytes()
        self._peak_bytes = max(self._peak_bytes or 0, held) if held is not None else None
        ended = run_record(
            self.work,
            self.pack,
            outcome,
            pack_size=len(self.runs) if self.pack.room is None else self.pack.size,
            revision=self.backbone.revision,
            device=self.device,
            started=self.started,
            scored=self._write_and_score(outcome),
            peak_bytes=self._peak_bytes,
        )
        self.memory = hardware.PeakMemory(self.device)  # what scoring took is no part of what training takes
        self._recorded.add(ended.run_id)
        self.callback.on_run_end(self.pack.id, ended)

    def _write_and_score(self, outcome: Outcome) -> Scored:
        """Write the best snapshot, and score it as it was written."""
        if self.work.study.search is not None:  # a trial is known by what its pack saw; its winner is trained again
            return Scored(outcome.best)
        if not outcome.best_state:
            return Scored()
        run, last = outcome.run, None
        directory = self.store.snapshot_dir(run.id)
        facts = {
            "run_id": run.id,
            "model": run.model,
            "model_revision": self.backbone.revision,
            "task": run.task,
            "outputs": self.work.task.num_outputs,
            "method": run.method.model_dump(mode="json"),
            "seed": run.seed,
        }
        snapshot_bytes = snapshot.save(directory, outcome.best_state, facts)
        written = snapshot.load(directory)[0]
        best = self._score(run, written, self.work.dev)
        assert best.logits is not None
        self.store.write_predictions(run.id, best.logits)
        # Where a share of train selects, dev is scored once, with what was selected.
        if outcome.state is not RunState.FAILED and self.work.study.selection == "dev":
            last = self._score(run, outcome.last_state, self.work.dev) if outcome.last_state else best
        also = {split: self._score(run, written, rows) for split, rows in self.work.also.items()}
        return Scored(
            best,
            last,
            {metric: also[split].scores["accuracy"] for split, metric in self.work.task.also_scored.items() if also},
            snapshot_bytes,
            digests(self.store.run_dir(run.id)),
        )

    def _score(self, run: Run, state: dict[str, Tensor], data: Encoded) -> Evaluation:
        """Score a run's tensors alone and in fp32, from the original backbone."""
        member = Member(run.seed, self.work.adaptation(run))
        model = snapshot.restore(self.backbone, [member], [state], device=self.device)
        return evaluate(model, self.work.task, data, [np.arange(data.size)])[0]


@dataclass(frozen=True)
class Scored:
    """What a run's written snapshot is worth; nothing, of a run without one."""

    best: EvaluationSummary | None = None  # of the snapshot on dev, alone and in fp32; of a trial, in its pack
    last: Evaluation | None = None  # of the run's last tensors, likewise; None where dev does not select
    also: Mapping[str, float] = field(default_factory=dict)  # metric → score, on the splits that select nothing
    snapshot_bytes: int | None = None  # on the disk
    files: Mapping[str, str] = field(default_factory=dict)  # path in the run's directory → SHA-256


def run_record(
    work: TaskWork,
    pack: Pack,
    outcome: Outcome,
    *,
    pack_size: int,
    revision: str | None,
    device: torch.device,
    started: datetime,
    scored: Scored = Scored(),
    peak_bytes: int | None = None,
) -> RunRecord:
    """The record of a run that has ended.

    `pack` is the one that was planned; `pack_size` counts the runs that did train together, without those that had
    ended before. `revision` is of the backbone's weights, `peak_bytes` of the pack's training. `started` is when the
    pack trained first, before any stop.
    """
    run, task, study = outcome.run, work.task, work.study
    best, last, state = scored.best, scored.last, outcome.state
    metric = task.primary_metric
    notes = [*work.notes]
    if pack.cut_from is not None:
        parts = "" if pack.micro_batch is None else f", its batch in parts of {counted(pack.micro_batch, 'row')}"
        notes.append(
            f"Memory ran out in a pack of {counted(pack.cut_from, 'run')}, so it trained in one of {pack_size}{parts}."
        )
    if state is RunState.FINISHED and best is not None and best.collapsed:
        state = RunState.COLLAPSED
        title, classes = METRICS[metric].title, len(task.labels) or None
        notes.insert(0, record.collapse_note(title, best.scores[metric], outcome.steps, outcome.history, classes))
    samples = outcome.history[-1].samples_seen if outcome.history else None
    return RunRecord(
        run_id=run.id,
        study=study.name,
        study_hash=study.hash,
        task=task.name,
        model=run.model,
        method=run.method.method,
        label=run.label,
        hyperparameters={
            **run.method.hyperparameters(),
            "training": (run.training or study.training).model_dump(mode="json"),
            **({} if work.limited_from is None else {"limit": work.train.size, "rows_before_limit": work.limited_from}),
        },
        template=study.template,
        selection=study.selection if study.search is None else study.search.select,
        seed=run.seed,
        state=state,
        failure=outcome.failure,
        notes=notes,
        primary_metric=metric,
        best_score=best.scores[metric] if best else None,
        best_step=outcome.best_step,
        last_score=last.scores[metric] if last else None,
        last_collapsed=bool(last and last.collapsed),
        scores={**best.scores, **scored.also} if best else {},
        last_scores=last.scores if last else {},
        learned=Learned.of(task).digest if task.own is not None else None,
        files=dict(scored.files),
        epochs_done=outcome.history[-1].epoch if outcome.history else None,
        steps=outcome.steps or None,
        parameters=record.Parameters(**asdict(work.parameters(run))),
        cost=record.Cost(
            train_seconds=outcome.train_seconds if outcome.steps else None,
            eval_seconds=outcome.eval_seconds if outcome.steps else None,
            peak_memory_bytes=peak_bytes,
            samples_per_second=samples / outcome.train_seconds if samples else None,
            snapshot_bytes=scored.snapshot_bytes,
            pack_size=pack_size,
        ),
        provenance=record.Provenance(
            versions=hardware.versions(),
            model_revision=revision,
            data_fingerprint=work.fingerprint,
            git_commit=hardware.git_commit(),
            hardware={**hardware.describe(device), "kernels": kernel_path(device)},
            started=started,
            finished=datetime.now(UTC),
        ),
    )
