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
from manytune.executors.estimate import HardwareProfile, counts, seconds_of, seconds_per_step
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

SHORTEST = 20.0
"""Seconds; a study that is expected to take less is not worth a probe."""

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

    steps: float = 1.0  # how many times as long as from products alone a step takes
    scores: float = 0.0  # seconds that the scores of a run's best and last tensors take, a token of dev


def probed_seconds(
    packs: Sequence[Pack], works: Mapping[str, TaskWork], profile: HardwareProfile, backbones: Backbones
) -> list[float]:
    """Seconds that each pack trains and is evaluated, from some steps of the largest pack of each kind.

    `profile` is of this machine's CPU. Nothing is kept of the steps. Where the packs are expected to take less than
    `SHORTEST` seconds, nothing is trained, and the estimate from products alone is returned.
    """
    rough = seconds_of(packs, works, profile)
    if sum(rough) < SHORTEST:
        return rough
    return paced_seconds(packs, works, profile, measure_paces(packs, works, profile, backbones))


def measure_paces(
    packs: Sequence[Pack], works: Mapping[str, TaskWork], profile: HardwareProfile, backbones: Backbones
) -> dict[PackKind, Pace]:
    """Train some steps of the largest pack of each kind; that takes some seconds a kind."""
    paces: dict[PackKind, Pace] = {}
    rough = seconds_of(packs, works, profile)
    for _, pack in sorted(zip(rough, packs, strict=True), key=lambda pair: -pair[0]):
        if pack.kind not in paces:
            paces[pack.kind] = _probe(pack, works[pack.task], profile, backbones)
    return paces


def paced_seconds(
    packs: Sequence[Pack], works: Mapping[str, TaskWork], profile: HardwareProfile, paces: Mapping[PackKind, Pace]
) -> list[float]:
    """Seconds that each pack trains and is evaluated, by the paces of all kinds of packs."""
    return [
        paces[pack.kind].steps * seconds
        + paces[pack.kind].scores * len(pack.runs) * counts(works[pack.task]).dev_tokens
        + _bytes_written(pack, works[pack.task]) / _BYTES_PER_SECOND
        for seconds, pack in zip(seconds_of(packs, works, profile), packs, strict=True)
    ]


def _probe(pack: Pack, work: TaskWork, profile: HardwareProfile, backbones: Backbones) -> Pace:
    """Train some steps of a pack, and score one of its runs."""
    hardware.keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(profile.threads)
    try:
        backbone = backbones.of(work.task.num_outputs)
        step, state = _train(pack, work, profile, backbone)
        return Pace(
            step / seconds_per_step(work, pack.kind, len(pack.runs), profile) if step else 1.0,
            2 * _score(pack.runs[0], work, backbone, state),
        )
    except Exception:  # whatever it is, training meets it too, and reports it
        return Pace()
    finally:
        torch.set_num_threads(before)
        hardware.give_back_memory()  # else every pack's peak would begin at the probe's


def _train(
    pack: Pack, work: TaskWork, profile: HardwareProfile, backbone: Backbone
) -> tuple[float | None, dict[str, Tensor]]:
    """Seconds that a step takes, and the first run's tensors."""
    members = [Member(run.seed, work.adaptation(run)) for run in pack.runs]
    model = PackedModel(backbone, members, dtype=profile.dtype, device=torch.device(profile.device))
    state, timer = model.bank.state(0), _Timer()
    data, training = work.pack_data(pack.runs), work.study.training
    few = PackData(data.train, data.select, data.train_rows, tuple(rows[:1] for rows in data.select_rows))
    once = training.model_copy(update={"eval_every": total_steps(training, work.train_size)})
    with suppress(_EnoughError):
        train_pack(model, pack.runs, work.task, few, once, timer)
    return timer.step, state


def _score(run: Run, work: TaskWork, backbone: Backbone, state: dict[str, Tensor]) -> float:
    """Seconds that scoring a run's tensors alone takes, as its best and last ones are at its end; a token of dev."""
    rows = np.arange(min(_SCORED_ROWS, work.dev.size))
    for _ in range(2):  # the first time, oneDNN compiles products of these shapes
        began = time.perf_counter()
        model = snapshot.restore(backbone, [Member(run.seed, work.adaptation(run))], [state])
        built = time.perf_counter()
        evaluate(model, work.task, work.dev, [rows])
        ended = time.perf_counter()
    return (built - began) / counts(work).dev_tokens + (ended - built) / int(work.dev.lengths[rows].sum())


def _bytes_written(pack: Pack, work: TaskWork) -> float:
    """Values and moments of the runs after each evaluation, and each run's best and last tensors."""
    per_run = 3 * counts(work).evaluations + 2
    return 4.0 * per_run * sum(work.parameters(run).trainable for run in pack.runs)
