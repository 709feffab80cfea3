"""A short training of a study's own packs, which says how long training will take on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from manytune.config.plan import Pack, Run, total_steps
from manytune.executors.estimate import (
    HardwareProfile,
    counts,
    seconds_of,
    seconds_per_step,
    training_seconds,
    trainings,
)
from manytune.executors.pack_inputs import Backbones
from manytune.methods import PackKind
from manytune.models.loading import Backbone
from manytune.packing import Member, PackedModel
from manytune.training import snapshot
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import evaluate
from manytune.training.loop import PackData, train_pack
from manytune.training.workload import TaskWork
from manytune.utils import hardware

_WARM_UP, _STEPS = 3, 8
"""Steps before the clock starts, and those that are timed at least, where both fit into `_MOST_SECONDS`."""

_SECONDS, _MOST_SECONDS = 1.0, 6.0
"""How long steps are timed; after the second one ends a probe of steps that are slow."""

_SCORED_ROWS = 32
_BYTES_PER_SECOND = 5e8  # of checkpoints, until they are on the disk; assumed


class _EnoughError(Exception):
    """Ends a probe."""


@dataclass
class _Timer(PackCallback):
    """Notes when steps end, and ends the training when there are enough."""

    began: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.ends.append(time.perf_counter())
        quick = len(self.ends) >= _WARM_UP + _STEPS and self.ends[-1] - self.ends[_WARM_UP - 1] >= _SECONDS
        if quick or (len(self.ends) > 1 and self.ends[-1] - self.began >= _MOST_SECONDS):
            raise _EnoughError

    @property
    def step(self) -> float | None:
        """Seconds a step; None where there were too few."""
        timed = self.ends[min(_WARM_UP, len(self.ends) - 1) - 1 :] if len(self.ends) > 1 else []
        return (timed[-1] - timed[0]) / (len(timed) - 1) if timed else None


@dataclass(frozen=True)
class Pace:
    """What a probe of one kind of pack found."""

    steps: float  # how many times as long as from products alone a step takes
    score: float  # seconds that scoring a run's tensors alone takes, as at its end; a token


@dataclass(frozen=True)
class Probe:
    """Says how long packs of one study take on this machine's CPU; each kind of them is measured once.

    Studies that differ in their seeds, rows and epochs alone are one here.
    """

    paces: dict[tuple[PackKind, int], Pace | None] = field(default_factory=dict)
    """Kind of packs and threads of each → what was measured; None where that broke, which training then reports."""
    shortest: float = 20.0
    """Seconds; a study that is expected to take less is not worth a probe."""

    def expected(
        self, packs: Sequence[Pack], works: Mapping[str, TaskWork], profile: HardwareProfile, backbones: Backbones
    ) -> list[float]:
        """As `measured`; but where that is less than `shortest` in all, from products alone, and at once."""
        rough = seconds_of(packs, works, profile)
        known = all((pack.kind, profile.threads) in self.paces for pack in packs)
        return self.measured(packs, works, profile, backbones) if known or sum(rough) >= self.shortest else rough

    def measured(
        self, packs: Sequence[Pack], works: Mapping[str, TaskWork], profile: HardwareProfile, backbones: Backbones
    ) -> list[float]:
        """Seconds until each pack has ended.

        Of a kind that was not measured with so many threads, some steps of the largest pack are trained, which takes
        some seconds, and of which nothing is kept. `profile` is of this machine's CPU.
        """
        rough = seconds_of(packs, works, profile)
        for _, pack in sorted(zip(rough, packs, strict=True), key=lambda pair: -pair[0]):
            if (pack.kind, profile.threads) not in self.paces:
                self.paces[pack.kind, profile.threads] = _probe(pack, works[pack.task], profile, backbones)
        return [
            each if pace is None else _seconds(pack, works[pack.task], profile, pace)
            for each, pack in zip(rough, packs, strict=True)
            for pace in [self.paces[pack.kind, profile.threads]]
        ]


def _seconds(pack: Pack, work: TaskWork, profile: HardwareProfile, pace: Pace) -> float:
    """Seconds that a pack trains and is evaluated, its runs are scored at their ends, and their files written."""
    trained = pace.steps * sum(
        training_seconds(work, pack.kind, len(pack.runs), profile, training) * runs / len(pack.runs)
        for training, runs in trainings(pack).items()
    )
    scored = pace.score * len(pack.runs) * counts(work).scored_tokens
    return trained + scored + _bytes_written(pack, work) / _BYTES_PER_SECOND


def _probe(pack: Pack, work: TaskWork, profile: HardwareProfile, backbones: Backbones) -> Pace | None:
    """Train some steps of a pack, and score one of its runs."""
    hardware.keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(profile.threads)
    try:
        backbone = backbones.of(work.task.num_outputs)
        step, state = _train(pack, work, profile, backbone)
        return Pace(
            step / seconds_per_step(pack, work, profile) if step else 1.0,
            _score(pack.runs[0], work, backbone, state),
        )
    except Exception:  # whatever it is, training meets it too, and reports it
        return None
    finally:
        torch.set_num_threads(before)


def _train(
    pack: Pack, work: TaskWork, profile: HardwareProfile, backbone: Backbone
) -> tuple[float | None, dict[str, Tensor]]:
    """Seconds that a step takes, and the first run's tensors."""
    runs = pack.runs[: pack.size]
    members = [Member(run.seed, work.adaptation(run)) for run in runs]
    model = PackedModel(backbone, members, dtype=profile.dtype, device=torch.device(profile.device))
    state, timer = model.bank.state(0), _Timer()
    data = work.pack_data(runs)
    few = PackData(data.train, data.select, data.train_rows, tuple(rows[:1] for rows in data.select_rows))
    own = (run.training or work.study.training for run in runs)
    once = [each.model_copy(update={"eval_every": total_steps(each, work.train_size)}) for each in own]
    with suppress(_EnoughError):
        train_pack(model, runs, work.task, few, once, timer)
    return timer.step, state


def _score(run: Run, work: TaskWork, backbone: Backbone, state: dict[str, Tensor]) -> float:
    """Seconds that scoring a run's tensors alone takes, as its best and last ones are at its end; a token."""
    rows = np.arange(min(_SCORED_ROWS, work.dev.size))
    for _ in range(2):  # the first time, oneDNN compiles products of these shapes
        began = time.perf_counter()
        model = snapshot.restore(backbone, [Member(run.seed, work.adaptation(run))], [state])
        built = time.perf_counter()
        evaluate(model, work.task, work.dev, [rows])
        ended = time.perf_counter()
    return (built - began) / int(work.dev.lengths.sum()) + (ended - built) / int(work.dev.lengths[rows].sum())


def _bytes_written(pack: Pack, work: TaskWork) -> float:
    """Values and moments of the runs after each evaluation, and each run's best and last tensors."""
    times = {training: 3 * counts(work, training).evaluations + 2 for training in trainings(pack)}
    return sum(4.0 * times[run.training] * work.parameters(run).trainable for run in pack.runs)
