"""The training loop: every method trains here, alone or in a pack, and only here is an optimizer stepped."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.config import Training
from manytune.config.plan import Run, pack_position
from manytune.data.splits import Encoded
from manytune.data.tasks import Task
from manytune.packing import PackedAdamW, PackedModel
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import EvaluationSummary, beats, evaluate
from manytune.training.live_run import Entry, LiveRun, RunSource
from manytune.training.outcome import Checkpoint, Outcome, RunCheckpoint
from manytune.training.step import Losses, RunBatch, Stepper, StepPlan, plan_step


@dataclass(frozen=True, eq=False)
class PackData:
    """The rows that the runs of a pack train on and are selected by."""

    train: Encoded  # the task's training split
    select: Encoded  # the split that selects snapshots: dev, or train again where a share of it selects
    train_rows: tuple[NDArray[Any], ...]  # for each run, the rows of `train` it trains on
    select_rows: tuple[NDArray[Any], ...]  # for each run, the rows of `select` it is scored on; the same number for all
    selects: bool = True  # whether the best evaluation's snapshot is kept; else the last one's


def train_pack(
    model: PackedModel,
    runs: Sequence[Run],
    task: Task,
    data: PackData,
    training: Training | Sequence[Training],
    callback: PackCallback,
    start: Checkpoint | None = None,
    pack_id: str = "pack",
    source: RunSource | None = None,
    room: int = 0,
) -> list[Outcome]:
    """Train the runs of a pack to their ends; returns one outcome for each run that the pack had.

    A tick of the pack is one optimizer step of every run in it. Between two ticks runs leave, and runs of `source` join
    while there are fewer than `room`: each has a clock of its own, so it does what it would do alone.

    `model`, which shrinks and grows with the pack, has the banks of `runs` in their order and has not been trained; the
    outcomes are in that order too, where no run joins. `training` is of all `runs`, or of each. `start` is a checkpoint
    in which `runs` are those that are `packed`. A checkpoint is saved after an evaluation of all runs (where they are
    at different steps, once each has had one), when a run joins or leaves, and when `callback` asks for one: so no run
    joins of which a later start would not know. `on_run_trained` is called only after a checkpoint that contains the
    run's end, so that no run that has ended is ever trained again. Raises ValueError where `start` is of other runs.
    """
    pack = _LivePack(model, task, data, callback)
    trainings = [training] * len(runs) if isinstance(training, Training) else training
    for run, member, own, *rows in zip(runs, model.members, trainings, data.train_rows, data.select_rows, strict=True):
        pack.add(Entry(run, member, own, rows[0], rows[1]))
    tick, began = 0, time.perf_counter()
    if start is not None:
        tick, began = start.step, began - start.seconds
        pack.restore(start)
        for ended in [each for each in start.runs if not each.alive]:
            callback.on_run_trained(ended.outcome)

    if source is not None and len(pack.live) < room:
        pack.join(source.next(room - len(pack.live), pack.joined, tick), tick)

    while pack.live:
        tick += 1
        # A step that is queued ahead is part of whatever is done next: where that may be more than a step, none is.
        checkpoint_due = callback.should_checkpoint(tick) if pack.can_run_ahead else None
        losses = pack.step(ahead=source is None and checkpoint_due is False)
        callback.on_step_end(pack_id, tick, losses)
        for each, loss in zip(pack.live, losses, strict=True):
            if not math.isfinite(loss) and not each.failed:
                each.outcome.fail(each.outcome.steps)
        gone = [] if pack.is_ahead else [each for each in pack.live if each.failed]
        pack.shrink(gone)

        if due := [each for each in pack.live if each.due]:
            pack.evaluate(due, began)
            newest = {each.run.id: each.outcome.history[-1] for each in due}
            callback.on_evaluate(pack_id, tick, newest, _best(task.primary_metric, pack.outcomes))
            leaving = [each for each in due if each.at_end]
            pack.shrink(leaving)
            gone = [*gone, *leaving]
        if source is not None and (ordered := source.leaving()):
            # A pack that goes on from a checkpoint may know of them before they are so far.
            leaving = [each for each in pack.live if each.outcome.steps >= ordered.get(each.run.id, math.inf)]
            for each in leaving:
                each.outcome.prune()
            pack.shrink(leaving)
            gone = [*gone, *leaving]

        joining: Sequence[Entry] = ()
        if source is not None:
            for each in gone:
                source.ended(each.outcome)
            joining = source.next(max(room - len(pack.live), 0), pack.joined, tick)
            pack.join(joining, tick)
        evaluated = bool(due) and all(each.evaluated for each in pack.live)
        checkpoint_due = callback.should_checkpoint(tick) if checkpoint_due is None else checkpoint_due
        if evaluated or gone or joining or checkpoint_due:
            callback.save_checkpoint(pack.checkpoint(time.perf_counter() - began))
        for each in gone:
            callback.on_run_trained(each.outcome)

    return pack.outcomes


@dataclass(frozen=True, eq=False)
class _PlannedStep:
    """A step of some runs that have taken so many `steps` before."""

    live: list[LiveRun]
    steps: list[int]
    batches: list[RunBatch]
    plan: StepPlan


class _LivePack:
    """The runs of a pack and their model."""

    def __init__(self, model: PackedModel, task: Task, data: PackData, callback: PackCallback) -> None:
        self.model, self.task, self.data = model, task, data
        self.callback = callback
        self._stepper = Stepper(model, PackedAdamW(model.bank, model.context.kernels), task)
        # Whether a step may be queued before the losses of the one before are known; see `Stepper`
        self.can_run_ahead = model.context.kernels.fuses
        self._planned: _PlannedStep | None = None  # the step that comes next, if it is planned already
        self._queued: tuple[_PlannedStep, Losses] | None = None  # the step that was queued ahead
        self.before: list[RunCheckpoint] = []  # runs that had ended when one joined last
        self.roster: list[LiveRun] = []  # the others, in the order of the banks, which those that ended since have left

    @property
    def outcomes(self) -> list[Outcome]:
        """Of every run that the pack has had."""
        return [*(each.outcome for each in self.before), *(each.outcome for each in self.roster)]

    @property
    def joined(self) -> dict[str, int]:
        """Id of each run that the pack has or had → the pack's ticks when it joined."""
        before = {each.outcome.run.id: each.joined for each in self.before}
        return before | {each.run.id: each.joined for each in self.roster}

    @property
    def live(self) -> list[LiveRun]:
        """The runs that are in the pack, in the order of its banks."""
        return [each for each in self.roster if each.alive]

    def add(self, entry: Entry, joined: int = 0) -> LiveRun:
        """Note a run that the model has."""
        own = PackData(self.data.train, self.data.select, (entry.train_rows,), (entry.select_rows,))
        weights = class_weights(self.task, entry.training, own)
        self.roster.append(LiveRun(entry, Outcome(entry.run), joined, True, None if weights is None else weights[0]))
        return self.roster[-1]

    def restore(self, start: Checkpoint) -> None:
        """Take over what a checkpoint has."""
        packed = [start.runs[index] for index in start.packed]
        if [each.outcome.run.id for each in packed] != [each.run.id for each in self.roster]:
            raise ValueError("the checkpoint is of other runs than the pack")
        for each, found in zip(self.roster, packed, strict=True):
            each.outcome, each.alive, each.joined = found.outcome, found.alive, found.joined
        # The model was built with all packed runs and shrinks to those that are left, as it did before the stop. Built
        # with only these, its banks could form other groups, whose products may round differently.
        self.model.keep([number for number, each in enumerate(packed) if each.alive])
        for position, index in enumerate(start.alive):
            self.model.bank.restore(position, start.tensors_of(index))
        self.before = [each for index, each in enumerate(start.runs) if index not in start.packed]

    @property
    def is_ahead(self) -> bool:
        """Whether the device has been given a step that the clocks of the runs do not count yet."""
        return self._queued is not None

    def step(self, *, ahead: bool = False) -> list[float]:
        """One optimizer step of every run; returns their losses.

        With `ahead`, the step behind it may be queued before the device has taken it, if nothing but that step can come
        next. A run that has failed by then takes part in it, but its tensors stay as they are (see `Stepper`).
        """
        live, started = self.live, time.perf_counter()
        steps = [each.outcome.steps for each in live]
        planned, losses = self._queued or self._queue(live, steps)
        self._queued = None
        free = all(each.runs_on for each in live)
        if self.can_run_ahead and free:  # planned while the device is at work
            after = [step + 1 for step in steps]
            if ahead:
                self._queued = self._queue(live, after)
            else:
                self._planned = self._plan(live, after)
        found = losses.read()
        share = (time.perf_counter() - started) / sum(len(own.rows) for own in planned.batches)
        for each, loss, own in zip(live, found, planned.batches, strict=True):
            if not each.failed:
                each.outcome.note_step(each.outcome.steps + 1, loss, share * len(own.rows))
        return found

    def _queue(self, live: list[LiveRun], steps: list[int]) -> tuple[_PlannedStep, Losses]:
        """Give the device the step of `live` runs that have taken so many `steps` before."""
        planned, self._planned = self._planned, None
        if planned is None or (planned.live, planned.steps) != (live, steps):
            planned = self._plan(live, steps)
        return planned, Losses(self._stepper.take(planned.plan))

    def _plan(self, live: list[LiveRun], steps: list[int]) -> _PlannedStep:
        batches = [
            RunBatch(each.rows(step), each.entry.training.batch_size, step, each.class_weights)
            for each, step in zip(live, steps, strict=True)
        ]
        updates = [each.update(step) for each, step in zip(live, steps, strict=True)]
        return _PlannedStep(live, steps, batches, plan_step(self.model, self.task, self.data.train, batches, updates))

    def evaluate(self, due: Sequence[LiveRun], began: float) -> None:
        """Evaluate some of the runs; `began` is when the pack did, by the clock of `time.perf_counter`."""
        live, started = self.live, time.perf_counter()
        nothing = np.empty(0, dtype=np.int64)
        rows = [each.entry.select_rows if each in due else nothing for each in live]
        found = evaluate(self.model, self.task, self.data.select, rows)
        elapsed = time.perf_counter() - started
        for each, evaluation in zip(due, found, strict=True):
            outcome, steps = each.outcome, each.outcome.steps
            each.evaluated = True
            outcome.eval_seconds += elapsed / len(due)
            outcome.note_evaluation(
                evaluation,
                learning_rate=each.rate(steps - 1),
                epoch=each.samples_seen / each.samples,
                samples_seen=each.samples_seen,
                seconds=time.perf_counter() - began,
            )
            if outcome.improved(self.task.primary_metric) or not self.data.selects:
                outcome.best, outcome.best_step = evaluation, steps
                outcome.best_state = self.model.bank.state(live.index(each))

    def shrink(self, leaving: Sequence[LiveRun]) -> None:
        """Let runs leave; the others go on in a smaller pack."""
        if not leaving:
            return
        live = self.live
        for position, each in enumerate(live):
            if each in leaving and each.outcome.best_step != each.outcome.steps:
                each.outcome.last_state = self.model.bank.state(position)
        self.model.keep([position for position, each in enumerate(live) if each not in leaving])
        for each in leaving:
            each.alive = False
            each.outcome.close()

    def join(self, entries: Sequence[Entry], tick: int) -> None:
        """Let runs join, among the others so that equal groups lie side by side."""
        if not entries:
            return
        live = self.live
        self.before += [each.checkpoint() for each in self.roster if not each.alive]
        for outcome in [each.outcome for each in self.before]:
            if (outcome.best_state or outcome.last_state) and self.callback.is_recorded(outcome.run.id):
                outcome.release()
        self.roster = list(live)
        for entry in entries:
            self.add(entry, tick)
        self.roster.sort(key=lambda each: pack_position(each.run))
        numbers = [live.index(each) if each in live else None for each in self.roster]
        self.model.rearrange([each.entry.member for each in self.roster], numbers)

    def checkpoint(self, seconds: float) -> Checkpoint:
        """All that a later start needs, `seconds` after the pack started."""
        for each in self.live:
            each.evaluated = False
        runs = [*self.before, *(each.checkpoint() for each in self.roster)]
        return Checkpoint(runs, self.model.bank.dump(), seconds)


def _best(metric: str, outcomes: Sequence[Outcome]) -> tuple[str, float] | None:
    """The run with the best score so far, also of those that have left, and that score; None before there is one."""
    best: EvaluationSummary | None = None
    run_id = ""
    for outcome in outcomes:
        if outcome.best is not None and beats(metric, outcome.best, best):
            best, run_id = outcome.best, outcome.run.id
    return None if best is None else (run_id, best.scores[metric])


def class_weights(task: Task, training: Training, data: PackData) -> NDArray[Any] | None:
    """[R, classes] fp32 weights of the classes in each run's loss, or None for equal ones.

    `balanced` weighs a class by n / (classes * its rows), as scikit-learn does.
    """
    if training.class_weights == "none" or not task.type.has_classes:
        return None
    if training.class_weights == "balanced":
        by_run = [task.type.class_counts(task, data.train.labels[rows]) for rows in data.train_rows]
        counts = np.array([list(by_class.values()) for by_class in by_run])
        balanced: NDArray[Any] = counts.sum(1, keepdims=True) / (len(task.labels) * np.maximum(counts, 1))
        return balanced.astype(np.float32)
    return np.tile(np.array(training.class_weights, dtype=np.float32), (len(data.train_rows), 1))
