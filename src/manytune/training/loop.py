"""The one loop: every method trains here, alone or in a pack, and only here is an optimizer stepped."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manytune.config import Training
from manytune.config.plan import Run, evaluation_steps, steps_per_epoch, total_steps, warmup_steps
from manytune.data.splits import Encoded, epoch_order
from manytune.data.tasks import Task
from manytune.packing import PackedAdamW, PackedModel, build_layout, schedule_factor
from manytune.storage.record import HistoryRow, RunState
from manytune.training.evaluation import Evaluation, beats, evaluate, example_losses

__all__ = ["Checkpoint", "Keeper", "Listener", "Outcome", "PackData", "class_weights", "train_pack"]


@dataclass(frozen=True, eq=False)
class PackData:
    """The rows that the runs of a pack train on and are selected by.

    Attributes:
        train: The task's training split.
        select: The split that selects snapshots: dev, or train again where a share of it selects.
        train_rows: For each run, the rows of `train` it trains on; the same number for all.
        select_rows: For each run, the rows of `select` it is scored on; the same number for all.
    """

    train: Encoded
    select: Encoded
    train_rows: tuple[NDArray[Any], ...]
    select_rows: tuple[NDArray[Any], ...]


@dataclass
class Outcome:
    """What became of one run.

    Attributes:
        run: The run.
        state: How it ended: finished or failed. Whether it collapsed, only the last score of its snapshot says.
        failure: Why it failed, if it did.
        history: One row an evaluation.
        best: What the best evaluation found, at step `best_step`; None before the first one.
        best_state: The run's tensors at that step, by name, on the CPU.
        last: What the last evaluation found.
        last_state: The run's tensors at its end, where that is not the best step.
        steps: Optimizer steps taken.
        train_seconds: The run's share of the pack's training time.
        eval_seconds: Its share of the time of evaluation.
        losses: Of the steps since the last evaluation.
        evaluations_since_best: How many found nothing better.
    """

    run: Run
    state: RunState = RunState.FINISHED
    failure: str | None = None
    history: list[HistoryRow] = field(default_factory=list)
    best: Evaluation | None = None
    best_step: int | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    last: Evaluation | None = None
    last_state: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    evaluations_since_best: int = 0

    def note_step(self, step: int, loss: float, seconds: float) -> None:
        """Take in one optimizer step."""
        self.steps = step
        self.losses.append(loss)
        self.train_seconds += seconds

    def note_evaluation(
        self, evaluation: Evaluation, *, learning_rate: float, epoch: float, samples_seen: int, seconds: float
    ) -> None:
        """Take in one evaluation, as a row of the history."""
        self.last = evaluation
        self.history.append(
            HistoryRow(
                step=self.steps,
                epoch=epoch,
                samples_seen=samples_seen,
                train_loss=sum(self.losses) / len(self.losses) if self.losses else None,
                learning_rate=learning_rate,
                eval_loss=evaluation.loss,
                metrics=evaluation.scores,
                seconds=seconds,
            )
        )
        self.losses = []

    def improved(self, metric: str) -> bool:
        """Whether the last evaluation beats the best one before it; the earlier of two equals stays best."""
        assert self.last is not None
        better = beats(metric, self.last, self.best)
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better

    def exhausted(self, patience: int | None) -> bool:
        """Whether early stopping ends the run."""
        return patience is not None and self.evaluations_since_best >= patience

    def fail(self, step: int) -> None:
        """End the run because its loss is not a number."""
        self.state = RunState.FAILED
        rate = f"{self.run.method.learning_rate:g}"
        self.failure = (
            f"The training loss became {self.losses[-1]} at step {step}. The usual cause is a learning rate that "
            f"is too high (it was {rate} at its peak): use a lower one, a longer warm-up, or max_grad_norm."
        )

    def close(self) -> None:
        """Settle the state of a run that has come to its end."""
        if self.state is RunState.FINISHED and self.best is None:
            self.state = RunState.FAILED
            self.failure = "No evaluation gave a score that is a number."


@dataclass
class Checkpoint:
    """All that is needed to go on with a pack after a step, to the bit: batches and dropout follow from the step.

    Attributes:
        step: Optimizer steps taken.
        alive: Which runs are still in the pack.
        outcomes: What became of each run so far.
        tensors: The bank's dump.
        seconds: Since the pack started.
    """

    step: int
    alive: list[int]
    outcomes: list[Outcome]
    tensors: dict[str, Tensor]
    seconds: float


class Keeper(Protocol):
    """Who keeps checkpoints."""

    def due(self, step: int) -> bool:
        """Whether one is wanted after this step, although nothing but the weights has changed."""

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep one; may raise to stop the training there."""


class Listener(Protocol):
    """Who is told how a pack gets on."""

    def step(self, step: int, losses: Sequence[float]) -> None:
        """An optimizer step was taken; the losses are those of the runs still in the pack."""

    def evaluated(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """The runs still in the pack were evaluated."""

    def ended(self, outcome: Outcome) -> None:
        """A run left the pack."""


def train_pack(
    model: PackedModel,
    runs: Sequence[Run],
    task: Task,
    data: PackData,
    training: Training,
    listener: Listener,
    keeper: Keeper | None = None,
    start: Checkpoint | None = None,
) -> list[Outcome]:
    """Train the runs of a pack to their ends.

    Args:
        model: The backbone with the runs' banks, in the order of `runs`; it shrinks as runs leave.
        runs: The runs.
        task: What they train for.
        data: The rows of each run.
        training: The settings that all runs share.
        listener: Told of every step, evaluation and end; of an end only when a checkpoint knows of it, so that whoever
            goes on from there never trains a run again that has ended.
        keeper: Given a checkpoint after every evaluation, when a run leaves, and when it says that one is due.
        start: Where to go on from, with a model of the same runs that has not been trained.

    Returns:
        One outcome for each run, in the order of `runs`.
    """
    samples = len(data.train_rows[0])
    epoch_steps = steps_per_epoch(samples, training.batch_size, training.accumulate)
    total = total_steps(training, samples)
    warmup = warmup_steps(training, total)
    evaluations = evaluation_steps(training, epoch_steps, total)
    optimizer = PackedAdamW(
        model.bank,
        model.context.kernels,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
    )
    outcomes = [Outcome(run) for run in runs] if start is None else start.outcomes
    batches = _Batches(data, runs, training.batch_size * training.accumulate)
    weights = class_weights(task, training, data)
    alive = list(range(len(runs)))
    first, began = 0, time.perf_counter()
    if start is not None:
        first, alive, began = start.step, start.alive, began - start.seconds
        model.keep(alive)
        model.bank.restore(start.tensors)
        optimizer.steps = first
        for index in set(range(len(runs))) - set(alive):
            listener.ended(outcomes[index])

    for step in range(first, total if alive else first):
        started = time.perf_counter()
        rows = batches.at(step, alive)
        losses = _forward_backward(model, task, data.train, rows, weights, alive, training.batch_size, step)
        factor = schedule_factor(training.schedule, step, warmup, total)
        optimizer.step([runs[index].method.learning_rate * factor for index in alive])
        done = step + 1
        elapsed = time.perf_counter() - started
        for index, loss in zip(alive, losses, strict=True):
            outcomes[index].note_step(done, loss, elapsed / len(alive))
        listener.step(done, losses)

        gone = [index for index, loss in zip(alive, losses, strict=True) if not math.isfinite(loss)]
        for index in gone:
            outcomes[index].fail(done)
        alive = _shrink(model, alive, gone, outcomes)

        evaluated = done in evaluations and bool(alive)
        if evaluated:
            started = time.perf_counter()
            found = evaluate(model, task, data.select, [data.select_rows[index] for index in alive])
            elapsed = time.perf_counter() - started
            for position, (index, evaluation) in enumerate(zip(alive, found, strict=True)):
                outcome = outcomes[index]
                outcome.eval_seconds += elapsed / len(alive)
                outcome.note_evaluation(
                    evaluation,
                    learning_rate=runs[index].method.learning_rate * factor,
                    epoch=batches.epochs(done),
                    samples_seen=batches.seen(done),
                    seconds=time.perf_counter() - began,
                )
                if outcome.improved(task.primary_metric):
                    outcome.best, outcome.best_step = evaluation, done
                    outcome.best_state = model.bank.state(position)
            listener.evaluated(done, [outcomes[index] for index in alive])
            leaving = [index for index in alive if outcomes[index].exhausted(training.early_stopping)]
            if done == total:
                leaving = alive
            alive = _shrink(model, alive, leaving, outcomes)
            gone = [*gone, *leaving]

        if keeper is not None and (evaluated or gone or keeper.due(done)):
            elapsed = time.perf_counter() - began
            keeper.keep(Checkpoint(done, alive, outcomes, model.bank.dump(), elapsed))
        for index in gone:
            listener.ended(outcomes[index])
        if not alive:
            break

    return outcomes


def class_weights(task: Task, training: Training, data: PackData) -> NDArray[Any] | None:
    """[R, classes] fp32 weights of the classes in each run's loss, or None for equal ones.

    `balanced` weighs a class by n / (classes * its rows), as scikit-learn does.
    """
    if training.class_weights == "none" or task.kind != "classification":
        return None
    classes = len(task.labels)
    if training.class_weights == "balanced":
        counts = np.stack([np.bincount(data.train.labels[r], minlength=classes) for r in data.train_rows])
        balanced: NDArray[Any] = counts.sum(1, keepdims=True) / (classes * np.maximum(counts, 1))
        return balanced.astype(np.float32)
    return np.tile(np.array(training.class_weights, dtype=np.float32), (len(data.train_rows), 1))


def _forward_backward(
    model: PackedModel,
    task: Task,
    data: Encoded,
    rows: Sequence[NDArray[Any]],
    class_weights: NDArray[Any] | None,
    alive: Sequence[int],
    batch_size: int,
    step: int,
) -> list[float]:
    """Gradients of each run's mean loss over its rows of one optimizer step; returns those losses.

    The mean is over all rows of the step, however they are cut into micro-batches. The runs' losses are added
    up: each depends on its own parameters alone, so every run gets the gradient of its own loss.
    """
    drawn = np.stack([data.labels[own] for own in rows])
    labels = torch.from_numpy(task.learned(drawn)).to(model.device)
    share = torch.ones(labels.shape, device=model.device)
    if class_weights is not None:
        share = torch.from_numpy(class_weights[list(alive)]).to(model.device).gather(1, labels)
    share = share / share.sum(1, keepdim=True)
    losses = torch.zeros(len(rows), device=model.device)
    for first in range(0, len(rows[0]), batch_size):
        model.bank.collect_grads()
        micro = slice(first, first + batch_size)
        layout = build_layout(data, [own[micro] for own in rows], first_index=first, device=model.device)
        logits = model.forward(layout, step=step)
        per_run = (example_losses(task.kind, logits, labels[:, micro]) * share[:, micro]).sum(1)
        per_run.sum().backward()
        losses += per_run.detach()
    return losses.tolist()


def _shrink(
    model: PackedModel,
    alive: list[int],
    leaving: Sequence[int],
    outcomes: Sequence[Outcome],
) -> list[int]:
    """Let runs leave the pack; the others go on in a smaller one."""
    if not leaving:
        return alive
    for position, index in enumerate(alive):
        if index in leaving and outcomes[index].best_step != outcomes[index].steps:
            outcomes[index].last_state = model.bank.state(position)
    model.keep([position for position, index in enumerate(alive) if index not in leaving])
    for index in leaving:
        outcomes[index].close()
    return [index for index in alive if index not in leaving]


class _Batches:
    """The rows that every run sees at every step: its own order, epoch by epoch."""

    def __init__(self, data: PackData, runs: Sequence[Run], per_step: int) -> None:
        self.data = data
        self.seeds = [run.seed for run in runs]
        self.per_step = per_step
        self.samples = len(data.train_rows[0])
        self.epoch_steps = math.ceil(self.samples / per_step)
        self._epoch = -1
        self._orders: dict[int, NDArray[Any]] = {}

    def at(self, step: int, alive: Sequence[int]) -> list[NDArray[Any]]:
        """The rows of each run in `alive` for the update number `step`, from 0."""
        epoch, position = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            self._epoch = epoch
            self._orders = {
                index: self.data.train_rows[index][epoch_order(self.samples, self.seeds[index], epoch)]
                for index in alive
            }
        window = slice(position * self.per_step, (position + 1) * self.per_step)
        return [self._orders[index][window] for index in alive]

    def seen(self, steps: int) -> int:
        """Samples of one run that `steps` updates have used."""
        epochs, rest = divmod(steps, self.epoch_steps)
        return epochs * self.samples + min(rest * self.per_step, self.samples)

    def epochs(self, steps: int) -> float:
        """Passes over the training rows in `steps` updates."""
        return self.seen(steps) / self.samples
