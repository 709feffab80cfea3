"""The training loop: every method trains here, alone or in a pack, and only here is an optimizer stepped."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manytune.config import Training
from manytune.config.plan import Run, pack_position
from manytune.data.splits import Encoded
from manytune.data.tasks import Task
from manytune.packing import PackedAdamW, PackedModel, build_layout
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import EvaluationSummary, beats, evaluate
from manytune.training.live_run import Entry, LiveRun, RunSource
from manytune.training.outcome import Checkpoint, Outcome, RunCheckpoint


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
        losses = pack.step()
        callback.on_step_end(pack_id, tick, losses)
        gone = [each for each, loss in zip(pack.live, losses, strict=True) if not math.isfinite(loss)]
        for each in gone:
            each.outcome.fail(each.outcome.steps)
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
        if evaluated or gone or joining or callback.should_checkpoint(tick):
            callback.save_checkpoint(pack.checkpoint(time.perf_counter() - began))
        for each in gone:
            callback.on_run_trained(each.outcome)

    return pack.outcomes


class _LivePack:
    """The runs of a pack and their model."""

    def __init__(self, model: PackedModel, task: Task, data: PackData, callback: PackCallback) -> None:
        self.model, self.task, self.data = model, task, data
        self.callback = callback
        self.optimizer = PackedAdamW(model.bank, model.context.kernels)
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

    def step(self) -> list[float]:
        """One optimizer step of every run; returns their losses."""
        live, started = self.live, time.perf_counter()
        steps = [each.outcome.steps for each in live]
        rows = [each.rows() for each in live]
        micro = [each.entry.training.batch_size for each in live]
        weights = [each.class_weights for each in live]
        losses = forward_backward(self.model, self.task, self.data.train, rows, weights, micro, steps)
        self.optimizer.step([each.update() for each in live])
        share = (time.perf_counter() - started) / sum(map(len, rows))
        for each, loss, own in zip(live, losses, rows, strict=True):
            each.outcome.note_step(each.outcome.steps + 1, loss, share * len(own))
        return losses

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


def forward_backward(
    model: PackedModel,
    task: Task,
    data: Encoded,
    rows: Sequence[NDArray[Any]],
    class_weights: Sequence[NDArray[Any] | None],
    micro_batches: Sequence[int],
    steps: Sequence[int],
) -> list[float]:
    """Gradients of each run's mean loss over its `rows` of one optimizer step; returns those losses.

    Each run has its own number of rows, of which `micro_batches` are computed at once, and its own step, from 0. The
    mean is over all rows of the step, however they are cut into micro-batches. The runs' losses are added up: each
    depends on its own parameters alone, so every run gets the gradient of its own loss.
    """
    counts = np.array([len(own) for own in rows])
    # [R, the most rows of a run]; behind its own rows, a run has its last one again, whose share in the loss is zero.
    places = np.minimum(np.arange(counts.max()), counts[:, None] - 1)
    drawn = np.stack([data.labels[own[at]] for own, at in zip(rows, places, strict=True)])
    labels = torch.from_numpy(task.type.loss_labels(task, drawn)).to(model.device)
    share = _weights(labels, class_weights, counts)
    share = share / share.sum(1, keepdim=True)
    losses = torch.zeros(len(rows), device=model.device)
    micro = np.array(micro_batches)
    for number in range(int((-(-counts // micro)).max())):
        model.bank.collect_grads()
        firsts = number * micro
        part = [own[first : first + most] for own, first, most in zip(rows, firsts, micro, strict=True)]
        layout = build_layout(data, part, first_index=firsts.tolist(), device=model.device, rounded=model.rounds_rows)
        logits = model.forward(layout, step=steps)
        within = np.arange(max(map(len, part)))
        at = torch.from_numpy(np.minimum(firsts[:, None] + within, places.shape[1] - 1)).to(model.device)
        inside = torch.from_numpy(within < np.array([len(own) for own in part])[:, None]).to(model.device)
        own_share = share.gather(1, at) * inside
        per_run = (task.type.losses(logits, labels.gather(1, at)) * own_share).sum(1)
        per_run.sum().backward()
        losses += per_run.detach()
    return losses.tolist()


def _weights(labels: Tensor, class_weights: Sequence[NDArray[Any] | None], counts: NDArray[Any]) -> Tensor:
    """[R, N] fp32: the weight of each row, by its label; zero behind a run's own rows."""
    weights = torch.ones(labels.shape, device=labels.device)
    for run, of_classes in enumerate(class_weights):
        if of_classes is not None:
            weights[run] = torch.from_numpy(of_classes).to(labels.device)[labels[run]]
        weights[run, counts[run] :] = 0.0
    return weights
