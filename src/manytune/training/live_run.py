"""A run of a pack while it trains: its own clock, order of rows and settings, and where runs that join come from."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from manytune.config import Training
from manytune.config.plan import EvaluationSteps, Run, evaluation_steps, steps_per_epoch, total_steps, warmup_steps
from manytune.data.splits import epoch_order
from manytune.packing import Member, schedule_factor
from manytune.packing.kernels import AdamWUpdate
from manytune.storage.record import RunState
from manytune.training.outcome import Clock, Outcome, RunCheckpoint


@dataclass(frozen=True, eq=False)
class Entry:
    """What a run brings into a pack."""

    run: Run
    member: Member
    training: Training  # its own; precision, max_length, checkpoint_every and max_pack are those of its pack
    train_rows: NDArray[Any]  # of the pack's training split
    select_rows: NDArray[Any]  # of the split that selects snapshots; the same number for all runs of a pack


class RunSource(Protocol):
    """Where the runs come from that join a pack on its way; asked between two steps of the pack.

    A pack that was stopped goes on from a checkpoint that says which runs it had; a source is made anew then, and must
    decide as it did before, given the same ends.
    """

    def next(self, room: int, joined: Mapping[str, int], tick: int) -> Sequence[Entry]:
        """The runs that join now, at most `room`; none where the pack is to go on with those that it has.

        `joined` maps the id of each run that the pack has or had → the pack's ticks when it joined; `tick` counts them
        now. A pack that is empty ends where none joins.
        """

    def leaving(self) -> Mapping[str, int]:
        """Id of each run that is to leave before its end → optimizer steps that it takes before."""

    def ended(self, outcome: Outcome) -> None:
        """A run of the pack has come to its end; called before `next`."""


class WaitingRuns:
    """Runs that join in their order, each as soon as there is room."""

    def __init__(self, runs: Sequence[Run], entry: Callable[[Run], Entry]) -> None:
        """`entry` gives what a run brings, when it joins."""
        self._runs, self._entry = list(runs), entry

    def next(self, room: int, joined: Mapping[str, int], tick: int) -> list[Entry]:
        """As many as there is room for."""
        joining, self._runs = self._runs[:room], self._runs[room:]
        return [self._entry(run) for run in joining]

    def leaving(self) -> Mapping[str, int]:
        """Every run trains to its end."""
        return {}

    def ended(self, outcome: Outcome) -> None:
        """Whatever becomes of a run, the others join."""


def ticks_until_end(steps: Sequence[int], room: int) -> int:
    """Ticks of a pack until runs of so many steps have ended, if each joins as soon as there is `room`."""
    ends = [0] * room
    for count in steps:
        heapq.heapreplace(ends, ends[0] + count)
    return max(ends, default=0)


@dataclass(eq=False)
class LiveRun:
    """A run of a pack, from the tick after which it joined: with each tick it takes one optimizer step of its own."""

    entry: Entry
    outcome: Outcome
    joined: int = 0  # the pack's ticks before its first one
    alive: bool = True  # it has not ended
    # [classes] fp32 weights of the classes in its loss, None for equal ones
    class_weights: NDArray[Any] | None = None
    evaluated: bool = False  # since the last checkpoint
    _order: tuple[int, NDArray[Any]] = field(default=(-1, np.empty(0)))  # an epoch and its rows in their order

    @property
    def run(self) -> Run:
        """Which run it is."""
        return self.entry.run

    @property
    def samples(self) -> int:
        """Rows that it trains on."""
        return len(self.entry.train_rows)

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, unless it ends an epoch."""
        return self.entry.training.batch_size * self.entry.training.accumulate

    @cached_property
    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return steps_per_epoch(self.samples, self.entry.training.batch_size, self.entry.training.accumulate)

    @cached_property
    def total(self) -> int:
        """Optimizer steps from its first to its end."""
        return total_steps(self.entry.training, self.samples)

    @cached_property
    def _warmup(self) -> int:
        return warmup_steps(self.entry.training, self.total)

    @cached_property
    def _evaluations(self) -> EvaluationSteps:
        return evaluation_steps(self.entry.training, self.epoch_steps, self.total)

    @property
    def due(self) -> bool:
        """Whether it is to be evaluated after the step that it took last."""
        return self.outcome.steps in self._evaluations

    @property
    def at_end(self) -> bool:
        """Whether it has nothing left to do, as its last evaluation says."""
        return self.outcome.steps == self.total or self.outcome.exhausted(self.entry.training.early_stopping)

    def rate(self, step: int) -> float:
        """The learning rate of the update number `step`, from 0."""
        factor = schedule_factor(self.entry.training.schedule, step, self._warmup, self.total)
        return self.run.method.learning_rate * factor

    @property
    def failed(self) -> bool:
        """Whether its loss was no finite number."""
        return self.outcome.state is RunState.FAILED

    @property
    def runs_on(self) -> bool:
        """Whether nothing but another step can come after the one that comes next."""
        after = self.outcome.steps + 1
        return not self.failed and after < self.total and after not in self._evaluations

    def update(self, step: int) -> AdamWUpdate:
        """The optimizer step number `step`, from 0."""
        training = self.entry.training
        betas = training.adam_beta1, training.adam_beta2
        decay, norm = training.weight_decay, training.max_grad_norm
        return AdamWUpdate(step + 1, self.rate(step), betas, training.adam_epsilon, decay, norm)

    def rows(self, step: int) -> NDArray[Any]:
        """The rows of the optimizer step number `step`, from 0: of its own order, epoch by epoch."""
        epoch, position = divmod(step, self.epoch_steps)
        if epoch != self._order[0]:
            order = epoch_order(self.samples, self.run.seed, epoch)
            self._order = epoch, self.entry.train_rows[order]
        return self._order[1][position * self.rows_per_step : (position + 1) * self.rows_per_step]

    @property
    def samples_seen(self) -> int:
        """Samples of the steps so far."""
        epochs, rest = divmod(self.outcome.steps, self.epoch_steps)
        return epochs * self.samples + min(rest * self.rows_per_step, self.samples)

    def checkpoint(self) -> RunCheckpoint:
        """What a checkpoint keeps of it, beside tensors."""
        clock = Clock.after(self.outcome.steps, self.entry.training, self.samples)
        return RunCheckpoint(clock, self.outcome, self.alive, self.joined)
