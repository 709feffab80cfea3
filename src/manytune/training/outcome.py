"""The state of runs while they train, which checkpoints keep and records are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydantic import ConfigDict
from torch import Tensor

from manytune.config import Training
from manytune.config.plan import Run, steps_per_epoch, total_steps, warmup_steps
from manytune.packing.bank import join_dumps, run_of_dump
from manytune.storage.record import LOSS_FAILURE, SCORE_FAILURE, HistoryRow, RunState
from manytune.training.evaluation import Evaluation, EvaluationSummary, beats


@dataclass
class Outcome:
    """The state of one run while it trains, and at its end.

    A checkpoint keeps every field. Their types are checked on reading, so each must be one that pydantic knows, or
    `dict[str, Tensor]`. Such a dict is replaced, never changed in place: a checkpoint writes only the dicts that were
    replaced since the last one.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    run: Run
    # How it ended: finished, pruned or failed. Whether it collapsed, only the last score of its snapshot says.
    state: RunState = RunState.FINISHED
    failure: str | None = None  # why it failed, if it did
    history: list[HistoryRow] = field(default_factory=list)  # one row an evaluation
    # What the best evaluation found, at step `best_step`; None before the first one
    best: EvaluationSummary | None = None
    best_step: int | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)  # the run's tensors at that step, by name, on the CPU
    last: EvaluationSummary | None = None  # what the last evaluation found
    # The run's tensors at its end, where that is not the best step
    last_state: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0  # optimizer steps taken
    train_seconds: float = 0.0  # the run's share of the pack's training time
    eval_seconds: float = 0.0  # its share of the time of evaluation
    losses: list[float] = field(default_factory=list)  # of the steps since the last evaluation
    evaluations_since_best: int = 0  # how many found nothing better

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
            f"{LOSS_FAILURE} {self.losses[-1]} at step {step}. The usual cause is a learning rate that "
            f"is too high (it was {rate} at its peak): use a lower one, a longer warm-up, or max_grad_norm."
        )

    def prune(self) -> None:
        """End the run because a search wants it to."""
        self.state = RunState.PRUNED

    @property
    def released(self) -> bool:
        """Whether `release` was called."""
        return self.best is not None and not self.best_state

    def release(self) -> None:
        """Let go of all that its record was made of, once that is kept elsewhere."""
        self.best_state, self.last_state = {}, {}
        if self.best is not None:
            self.best = EvaluationSummary(self.best.scores, self.best.loss, self.best.collapsed)
        self.last = None

    def close(self) -> None:
        """Settle the state of a run that has come to its end."""
        if self.state is RunState.FINISHED and self.best is None:
            self.state = RunState.FAILED
            self.failure = SCORE_FAILURE


@dataclass(frozen=True)
class Clock:
    """How far a run is. With its seed it says which rows, dropout masks and learning rate come next."""

    step: int  # optimizer steps taken
    epoch: int  # whole passes over its training rows
    batch: int  # optimizer steps in the present pass
    schedule: str  # of the learning rate
    warmup_steps: int
    total_steps: int  # from its first step to its end
    optimizer_steps: int  # AdamW's count, for the correction of the moments' bias

    @classmethod
    def after(cls, step: int, training: Training, samples: int) -> Clock:
        """The clock after a number of optimizer steps on `samples` training rows."""
        epoch, batch = divmod(step, steps_per_epoch(samples, training.batch_size, training.accumulate))
        total = total_steps(training, samples)
        return cls(step, epoch, batch, training.schedule, warmup_steps(training, total), total, step)


@dataclass(frozen=True)
class RunCheckpoint:
    """One run of a checkpoint; its tensors are in the checkpoint."""

    clock: Clock
    outcome: Outcome
    alive: bool  # it has not ended, so it has tensors to go on with
    joined: int = 0  # ticks of the pack before the run joined it; with each tick it took a step since

    @property
    def tick(self) -> int:
        """The pack's ticks after the run's last step."""
        return self.joined + self.clock.step


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that is needed to go on with the runs of a pack after a step, to the bit, and with any of them elsewhere."""

    # Every run that the pack has had; those in `packed` are in the order of the pack
    runs: list[RunCheckpoint]
    tensors: dict[str, Tensor]  # what `Bank.dump` gives of a bank of the runs that are alive, in their order
    seconds: float  # since the pack started

    @property
    def step(self) -> int:
        """Ticks of the pack; one in which no run joined has taken as many optimizer steps."""
        return max(each.tick for each in self.runs)

    @property
    def alive(self) -> list[int]:
        """Positions of the runs that have not ended."""
        return [index for index, each in enumerate(self.runs) if each.alive]

    @property
    def packed(self) -> list[int]:
        """Positions of the runs that the pack's banks were built for: those there when a run joined last."""
        built = max(each.joined for each in self.runs)
        return [index for index, each in enumerate(self.runs) if each.alive or each.tick > built]

    def tensors_of(self, index: int) -> dict[str, dict[str, Tensor]]:
        """What a bank holds of the run at a position that is alive; see `run_of_dump`."""
        return run_of_dump(self.tensors, self.alive.index(index))

    @classmethod
    def gather(cls, runs: Sequence[Run], checkpoints: Sequence[Checkpoint]) -> Checkpoint:
        """The checkpoint of a pack of these runs, in this order, from `checkpoints` of the packs that had them.

        Raises KeyError where none of the checkpoints has one of the runs.
        """
        positions = {run.outcome.run.id: (each, index) for each in checkpoints for index, run in enumerate(each.runs)}
        found = [positions[run.id] for run in runs]
        alive = [(each, index) for each, index in found if each.runs[index].alive]
        tensors = join_dumps([each.tensors_of(index) for each, index in alive])
        seconds = max(each.seconds for each, _ in found)
        # They go on as if they had joined at such ticks that each has taken its steps by now.
        now = max(each.step for each, _ in found)
        joined = [each.runs[index] for each, index in found]
        joined = [replace(run, joined=now - run.clock.step) if run.alive else run for run in joined]
        return cls(joined, tensors, seconds)
