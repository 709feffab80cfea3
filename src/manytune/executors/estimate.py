"""What a study will take, before it is run: steps, parameters, and rough time, memory and disk."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch

from manytune.config.plan import Pack, Run, evaluation_steps, plan_packs, steps_per_epoch, total_steps
from manytune.methods import Method, PackKind, ParameterCount
from manytune.training.workload import TaskWork
from manytune.utils import hardware

_PASSES = {"full": 3.0, "adapters": 2.0, "head": 1.0}
"""Matrix products a training token, in forward passes: forward, and back through inputs and weights."""

_SHARE_IN_A_PACK = 0.8
_SHARE_ALONE = 0.4
"""Part of the speed of `_products_per_second` that training reaches, of eight runs and more together and of one alone;
measured on CPUs with MiniLM and batches of 8 and 16. Products inside a pack are laid out better than that probe's."""

_TWICE_THE_THREADS = {4.4e6: 0.79, 22.7e6: 0.83, 124.6e6: 1.33}
"""Parameters of the backbone → what is left of a lone run's share with twice the threads, half as many such runs at
once: small ones wait at every kernel, large ones share the memory's bandwidth. In a pack it is all
(docs/performance.md)."""

_BYTES_PER_TRAINED = 16
"""A trained parameter in fp32, its gradient and its two moments."""


_FASTEST = {"cpu": 16, "cuda": 64, "mps": 16}
"""Runs of a pack beyond which training gets little faster: on a CPU 4 % from 16 to 32 (docs/performance.md)."""

SHARE_OF_MEMORY = 0.7
"""Part of the memory now free that a pack that was sized by itself may take: estimates are rough."""


@dataclass(frozen=True)
class HardwareProfile:
    """What one pack has to itself where it trains, which may be another machine.

    Attributes:
        device: The device's type.
        dtype: What products are computed in.
        free_bytes: Memory that is free there, of the GPU or of the machine.
        products_per_second: Floating-point operations a second of matrix products of the backbone's width.
        threads: Of a pack on a CPU.
    """

    device: str
    dtype: torch.dtype
    free_bytes: int
    products_per_second: float
    threads: int = 1

    @classmethod
    def measure(cls, device: torch.device, precision: str, width: int, *, threads: int = 0, sharing: int = 1) -> Self:
        """Look at a device of this machine, in about 0.1 s, with products of the backbone's hidden `width`.

        `threads` are a pack's, 0 for as many as torch uses; `sharing` packs train at once in the same memory.
        """
        dtype = hardware.choose_dtype(precision, device)
        before = torch.get_num_threads()
        used = threads or before
        torch.set_num_threads(used)
        try:
            speed = _products_per_second(width, dtype, device, used)
        finally:
            torch.set_num_threads(before)
        return cls(device.type, dtype, hardware.free_memory(device) // sharing, speed, used)


@dataclass(frozen=True)
class PackEstimate:
    """What one pack will take.

    Attributes:
        steps: Optimizer steps, each of all runs.
        evaluations: How often the runs are evaluated.
        tokens: Training tokens of all runs together.
        seconds: Training and evaluation, roughly.
        memory_bytes: Peak of the process (CPU) or of the GPU, roughly.
        disk_bytes: The runs' snapshots.
        parameters: Of each run.
    """

    steps: int
    evaluations: int
    tokens: int
    seconds: float
    memory_bytes: int
    disk_bytes: int
    parameters: tuple[ParameterCount, ...]


def estimate_pack(work: TaskWork, pack: Pack, profile: HardwareProfile) -> PackEstimate:
    """Estimate a pack from its token counts and the speed of matrix products where it trains."""
    training, counts = work.study.training, _counts(work)
    length = float(work.train.lengths.mean())
    parameters = _parameters(work, pack.runs)
    head = sum(math.prod(shape) for shape in work.model_spec.head.shapes().values())  # whole in each snapshot
    return PackEstimate(
        steps=counts.steps,
        evaluations=counts.evaluations,
        tokens=counts.tokens * len(pack.runs),
        seconds=pack_seconds(work, pack.kind, len(pack.runs), profile),
        memory_bytes=round(
            (0 if profile.device == "cuda" else _resident_bytes())
            + _shared_bytes(work, profile)
            + sum(_run_bytes(work, count, training.batch_size * length, profile.dtype) for count in parameters)
        ),
        disk_bytes=sum(4 * (count.trainable - count.head + head) for count in parameters),
        parameters=parameters,
    )


def pack_seconds(work: TaskWork, kind: PackKind, runs: int, profile: HardwareProfile) -> float:
    """Seconds that a pack of so many runs trains and is evaluated, roughly."""
    counts = _counts(work)
    together = 1 if work.model_spec.padded else runs  # in the padded way each run has passes of its own
    packed = min(1.0, (together - 1) / 7)
    share = _SHARE_ALONE + (_SHARE_IN_A_PACK - _SHARE_ALONE) * packed
    if profile.device == "cpu":
        share *= (_twice(work) + (1.0 - _twice(work)) * packed) ** (math.log2(profile.threads) - 1)  # they hold for two
    passes = counts.tokens * _PASSES[kind] + counts.dev_tokens * (counts.evaluations + 1)
    flops_a_token = 2 * work.model_spec.passes * _matrices(work)
    return runs * passes * flops_a_token / (profile.products_per_second * share)


def seconds_of(packs: Iterable[Pack], works: Mapping[str, TaskWork], profile: HardwareProfile) -> list[float]:
    """Seconds that each of some packs trains and is evaluated, roughly."""
    return [pack_seconds(works[pack.task], pack.kind, len(pack.runs), profile) for pack in packs]


def largest_packs(
    runs: Sequence[Run], works: Mapping[str, TaskWork], profile: HardwareProfile, capacity: int = 1
) -> dict[str, int]:
    """How many runs a pack may hold, for each task.

    It is `max_pack`, or as many as make a pack faster and fit into memory; and where several packs train at once
    (`capacity`), no more than lets the study end soonest: a few full packs leave workers idle.
    """
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    most = {name: _largest_pack(by_task.get(name, []), work, profile) for name, work in works.items()}
    if capacity == 1 or any(work.study.training.max_pack != "auto" for work in works.values()):
        return most
    top = max(most.values(), default=1)
    limits = sorted({math.ceil(top / parts) for parts in range(1, top + 1)}, reverse=True)

    def seconds(limit: int) -> float:
        packs = plan_packs(runs, {name: min(own, limit) for name, own in most.items()})
        return makespan(seconds_of(packs, works, profile), capacity)

    best = min(limits, key=seconds)  # of equals the largest packs, which come first
    return {name: min(own, best) for name, own in most.items()}


def makespan(seconds: Iterable[float], capacity: int) -> float:
    """When the last of some packs ends, `capacity` at once, the longest first (Graham's rule)."""
    free_at = [0.0] * capacity
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free_at, free_at[0] + each)
    return max(free_at)


def _parameters(work: TaskWork, runs: Sequence[Run]) -> tuple[ParameterCount, ...]:
    """Of each run; runs that differ in their seed alone are counted once."""
    known: dict[Method, ParameterCount] = {}
    for run in runs:
        if run.method not in known:
            known[run.method] = work.parameters(run)
    return tuple(known[run.method] for run in runs)


def _largest_pack(runs: Sequence[Run], work: TaskWork, profile: HardwareProfile) -> int:
    training = work.study.training
    if training.max_pack != "auto":
        return training.max_pack
    if work.model_spec.padded:  # a pack would be no faster than its runs one after the other
        return 1
    tokens = training.batch_size * float(work.train.lengths.mean())
    packed = [run for run in runs if run.method.pack_kind != "full"]
    counts = set(_parameters(work, packed))
    each = max((_run_bytes(work, count, tokens, profile.dtype) for count in counts), default=1.0)
    room = SHARE_OF_MEMORY * profile.free_bytes - _shared_bytes(work, profile)
    return max(1, min(_FASTEST[profile.device], int(room // each)))


@dataclass(frozen=True)
class _Counts:
    """Of one run."""

    steps: int
    evaluations: int
    tokens: int
    dev_tokens: int


def _counts(work: TaskWork) -> _Counts:
    training, rows = work.study.training, work.train_size
    per_epoch = steps_per_epoch(rows, training.batch_size, training.accumulate)
    steps = total_steps(training, rows)
    samples = min(steps * training.batch_size * training.accumulate, math.ceil(steps / per_epoch * rows))
    return _Counts(
        steps=steps,
        evaluations=len(evaluation_steps(training, per_epoch, steps)),
        tokens=round(samples * float(work.train.lengths.mean())),
        dev_tokens=int(work.dev.lengths.sum()),
    )


def _twice(work: TaskWork) -> float:
    size = sum(math.prod(shape) for shape in work.model_spec.tensors.values())
    known = sorted(_TWICE_THE_THREADS.items())
    return float(np.interp(math.log(size), [math.log(at) for at, _ in known], [left for _, left in known]))


def _matrices(work: TaskWork) -> int:
    """Elements of the encoder's matrices."""
    linears = work.model_spec.linears.items()
    return sum(inputs * outputs for path, (inputs, outputs) in linears if not path.startswith("pooler"))


def _shared_bytes(work: TaskWork, profile: HardwareProfile) -> float:
    """The backbone, and its matrices in bf16: on a CPU three times, as they are and packed for two products."""
    frozen = sum(math.prod(shape) for shape in work.model_spec.tensors.values())
    copies = 0 if profile.dtype == torch.float32 else 3 if profile.device == "cpu" else 1
    return float(4 * frozen + copies * profile.dtype.itemsize * _matrices(work))


def _run_bytes(work: TaskWork, parameters: ParameterCount, batch_tokens: float, dtype: torch.dtype) -> float:
    """What one run adds: what it trains, and the activations of its part of a batch."""
    outputs = sum(sum(widths) for widths in work.model_spec.linears.values())
    kept_per_token = outputs * work.model_spec.passes * dtype.itemsize
    return parameters.trainable * _BYTES_PER_TRAINED + batch_tokens * kept_per_token


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


@cache
def _products_per_second(width: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Floating-point operations a second of [1024, width] x [width, 4 width] on the device, in about 0.1 s."""
    x = torch.randn(1024, width, device=device, dtype=dtype)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype)
    torch.nn.functional.linear(x, weight)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.1:
        torch.nn.functional.linear(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += 1
    return done * 2 * 1024 * width * 4 * width / (time.perf_counter() - started)
