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

from manytune.config import Training
from manytune.config.plan import Run, evaluation_steps, steps_per_epoch, total_steps, warmup_steps
from manytune.data.splits import Encoded, epoch_order
from manytune.data.tasks import Task
from manytune.packing import PackedAdamW, PackedModel, build_layout, schedule_factor
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import EvaluationSummary, beats, evaluate
from manytune.training.outcome import Checkpoint, Clock, Outcome, RunCheckpoint


@dataclass(frozen=True, eq=False)
class PackData:
    """The rows that the runs of a pack train on and are selected by."""

    train: Encoded  # the task's training split
    select: Encoded  # the split that selects snapshots: dev, or train again where a share of it selects
    train_rows: tuple[NDArray[Any], ...]  # for each run, the rows of `train` it trains on; the same number for all
    select_rows: tuple[NDArray[Any], ...]  # for each run, the rows of `select` it is scored on; the same number for all


def train_pack(
    model: PackedModel,
    runs: Sequence[Run],
    task: Task,
    data: PackData,
    training: Training,
    callback: PackCallback,
    start: Checkpoint | None = None,
    pack_id: str = "pack",
) -> list[Outcome]:
    """Train the runs of a pack to their ends; returns one outcome for each run, in the order of `runs`.

    `model`, which shrinks as runs leave, has the runs' banks in the order of `runs` and has not been trained. `start`
    holds checkpoints of the same runs in the same order, whatever packs they were in. A checkpoint is saved after every
    evaluation, when a run leaves, and when `callback` asks for one. `on_run_trained` is called only after a checkpoint
    that contains the run's end, so that no run that has ended is ever trained again. Raises ValueError where `start` is
    of other runs, or those that have not ended are at different steps.
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
    outcomes = [Outcome(run) for run in runs] if start is None else [each.outcome for each in start.runs]
    batches = _Batches(data, runs, training.batch_size * training.accumulate)
    weights = class_weights(task, training, data)
    alive = list(range(len(runs)))
    first, began = 0, time.perf_counter()
    if start is not None:
        if [outcome.run.id for outcome in outcomes] != [run.id for run in runs]:
            raise ValueError("the checkpoint is of other runs than the pack")
        alive, began = start.alive, began - start.seconds
        # The model was built with all runs and shrinks to those that are left, as it did before the stop. Built with
        # only these, its banks could form other groups, whose products may round differently.
        model.keep(alive)
        clocks = {(start.runs[index].clock.step, start.runs[index].clock.optimizer_steps) for index in alive}
        if len(clocks) > 1:
            raise ValueError(f"the runs of a pack go on from the same step, not from {sorted(clocks)}")
        first, optimizer.steps = next(iter(clocks), (0, 0))
        for position, index in enumerate(alive):
            model.bank.restore(position, start.tensors_of(index))
        for index in set(range(len(runs))) - set(alive):
            callback.on_run_trained(outcomes[index])

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
        callback.on_step_end(pack_id, done, losses)

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
            newest = {runs[index].id: outcomes[index].history[-1] for index in alive}
            callback.on_evaluate(pack_id, done, newest, _best(task.primary_metric, outcomes))
            leaving = [each for each in alive if done == total or outcomes[each].exhausted(training.early_stopping)]
            alive = _shrink(model, alive, leaving, outcomes)
            gone = [*gone, *leaving]

        if evaluated or gone or callback.should_checkpoint(done):
            kept = [
                RunCheckpoint(Clock.after(outcome.steps, training, samples), outcome, index in alive)
                for index, outcome in enumerate(outcomes)
            ]
            callback.save_checkpoint(Checkpoint(kept, model.bank.dump(), time.perf_counter() - began))
        for index in gone:
            callback.on_run_trained(outcomes[index])
        if not alive:
            break

    return outcomes


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
    drawn = np.stack([data.labels[run_rows] for run_rows in rows])
    labels = torch.from_numpy(task.type.loss_labels(task, drawn)).to(model.device)
    share = torch.ones(labels.shape, device=model.device)
    if class_weights is not None:
        share = torch.from_numpy(class_weights[list(alive)]).to(model.device).gather(1, labels)
    share = share / share.sum(1, keepdim=True)
    losses = torch.zeros(len(rows), device=model.device)
    for first in range(0, len(rows[0]), batch_size):
        model.bank.collect_grads()
        micro = slice(first, first + batch_size)
        micro_rows = [run_rows[micro] for run_rows in rows]
        layout = build_layout(data, micro_rows, first_index=first, device=model.device, rounded=model.rounds_rows)
        logits = model.forward(layout, step=step)
        per_run = (task.type.losses(logits, labels[:, micro]) * share[:, micro]).sum(1)
        per_run.sum().backward()
        losses += per_run.detach()
    return losses.tolist()


def _shrink(model: PackedModel, alive: list[int], leaving: Sequence[int], outcomes: Sequence[Outcome]) -> list[int]:
    """Let runs leave the pack; returns the positions of the others, which go on in a smaller one."""
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
