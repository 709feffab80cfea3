"""Estimates before a study is run: steps, parameters, and rough time, memory and disk."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Self

import numpy as np
import psutil
import torch
from torch.nn import functional

from manytune.config import Training
from manytune.config.plan import Pack, Run, evaluation_steps, plan_packs, steps_per_epoch, total_steps
from manytune.executors.saturation import finish, full_rows
from manytune.methods import PackKind, ParameterCount
from manytune.training.evaluation import most_tokens
from manytune.training.workload import TaskWork
from manytune.utils import hardware

_PASSES = {"full": 3.0, "adapters": 2.0, "head": 1.0}
"""Matrix products a training token, in forward passes: forward, and back through inputs and weights."""

_SHARE_IN_A_PACK = 0.8
_SHARE_ALONE = 0.4
"""Part of `_products_per_second` that training reaches, with eight runs or more in a pack and with one; measured on two
threads with MiniLM and batches of 8 and 16."""

_TWICE_THE_THREADS = {4.4e6: 0.79, 22.7e6: 0.83, 124.6e6: 1.33}
"""Parameters of the backbone → factor on `_SHARE_ALONE` for each doubling of the threads: small backbones wait at every
kernel, large ones share the memory's bandwidth. In a full pack the factor is 1 (docs/performance.md)."""

_LEAST_PRODUCTS = 20
"""Products whose time is measured, however long they take."""

_BYTES_PER_TRAINED = 16  # a trained parameter in fp32, its gradient and its two moments

_FASTEST = 16
"""Runs of a pack beyond which training gets little faster on a CPU: 4 % from 16 to 32 (docs/performance.md)."""

SHARE_OF_MEMORY = 0.7
"""Part of the free memory that a pack sized by `max_pack: auto` may take: estimates are rough."""


@dataclass(frozen=True)
class HardwareProfile:
    """What one pack has to itself where it trains, which may be another machine."""

    device: str  # the device's type
    dtype: torch.dtype  # what products are computed in
    free_bytes: int  # memory that is free there, of the GPU or of the machine
    products_per_second: float  # floating-point operations a second of matrix products of the backbone's width
    threads: int = 1  # of a pack on a CPU
    full_rows: int | None = None  # rows of a batch beyond which a GPU gets little faster; None where 16 runs are enough

    @classmethod
    def measure(cls, device: torch.device, precision: str, width: int, *, threads: int = 0, sharing: int = 1) -> Self:
        """Measure a device of this machine, in about 0.1 s, with products of the backbone's hidden `width`.

        `threads` are a pack's, 0 for as many as torch uses; `sharing` packs train at once in the same memory.
        """
        hardware.use_exact_products()
        dtype = hardware.choose_dtype(precision, device)
        before = torch.get_num_threads()
        used = threads or before
        torch.set_num_threads(used)
        try:
            speed = _products_per_second(width, dtype, device, used)
        finally:
            torch.set_num_threads(before)
        free = hardware.free_memory(device) // sharing
        full = full_rows(width, dtype, device, free) if device.type == "cuda" else None
        return cls(device.type, dtype, free, speed, used, full)


@dataclass(frozen=True)
class PackEstimate:
    """What one pack will take."""

    steps: int  # optimizer steps, each of all runs; where runs have training of their own, of the longest one
    evaluations: int  # how often the runs are evaluated, likewise
    tokens: int  # training tokens of all runs together
    seconds: float  # training and evaluation, roughly
    memory_bytes: int  # peak of the process (CPU) or of the GPU, roughly
    disk_bytes: int  # the runs' snapshots
    parameters: tuple[ParameterCount, ...]  # of each run


def estimate_pack(work: TaskWork, pack: Pack, profile: HardwareProfile) -> PackEstimate:
    """Estimate a pack from its token counts and the speed of matrix products where it trains."""
    each = {training: counts(work, training) for training in trainings(pack)}
    parameters = _parameters(work, pack.runs)
    head = sum(math.prod(shape) for shape in work.model_spec.head.shapes().values())  # whole in each snapshot
    return PackEstimate(
        steps=max(found.steps for found in each.values()),
        evaluations=max(found.evaluations for found in each.values()),
        tokens=sum(each[training].tokens * runs for training, runs in trainings(pack).items()),
        seconds=_seconds_of(pack, work, profile),
        memory_bytes=round(
            (0 if profile.device == "cuda" else _resident_bytes())
            + _shared_bytes(work, profile)
            + _evaluation_bytes(work, profile)
            + sum(
                sorted(_run_bytes(work, *run, profile.dtype) for run in _batches(work, pack.runs, parameters))[
                    -pack.size :
                ]
            )
        ),
        disk_bytes=sum(4 * (count.trainable - count.head + head) for count in parameters),
        parameters=parameters,
    )


def pack_seconds(
    work: TaskWork, kind: PackKind, runs: int, profile: HardwareProfile, training: Training | None = None
) -> float:
    """Seconds until a pack of `runs` runs has ended, roughly: training, its evaluations, and the scores at the end.

    `training` is that of the runs, where it is not the study's.
    """
    scores = counts(work).scored_tokens * _seconds_per_pass(work, runs, profile)
    return training_seconds(work, kind, runs, profile, training) + scores


def training_seconds(
    work: TaskWork, kind: PackKind, runs: int, profile: HardwareProfile, training: Training | None = None
) -> float:
    """Seconds that a pack of `runs` runs trains and is evaluated, roughly, without the scores at the end."""
    _, evaluations, tokens, evaluated, _ = counts(work, training)
    passes = tokens * _PASSES[kind] + evaluated * evaluations
    return passes * _seconds_per_pass(work, runs, profile)


def seconds_per_step(pack: Pack, work: TaskWork, profile: HardwareProfile) -> float:
    """Seconds that a pack takes for an optimizer step, roughly, as `pack_seconds` has it."""
    first = Counter(run.training for run in pack.runs[: pack.size])
    each = {training: counts(work, training) for training in first}
    tokens = sum(each[training].tokens / each[training].steps * runs for training, runs in first.items()) / pack.size
    return tokens * _PASSES[pack.kind] * _seconds_per_pass(work, pack.size, profile)


def _seconds_per_pass(work: TaskWork, runs: int, profile: HardwareProfile) -> float:
    """Seconds of a forward pass over a token of each of some runs."""
    together = 1 if work.model_spec.padded else runs  # in padded batches, runs go through the backbone one by one
    packed = min(1.0, (together - 1) / 7)
    share = _SHARE_ALONE + (_SHARE_IN_A_PACK - _SHARE_ALONE) * packed
    if profile.device == "cpu":
        doublings = math.log2(profile.threads) - 1  # beyond the two threads of the measurement
        share *= (_twice(work) + (1.0 - _twice(work)) * packed) ** doublings
    flops_a_token = 2 * work.model_spec.passes * matrix_elements(work)
    return runs * flops_a_token / (profile.products_per_second * share)


def seconds_of(packs: Iterable[Pack], works: Mapping[str, TaskWork], profile: HardwareProfile) -> list[float]:
    """Seconds until each of some packs has ended, roughly."""
    return [_seconds_of(pack, works[pack.task], profile) for pack in packs]


def _seconds_of(pack: Pack, work: TaskWork, profile: HardwareProfile) -> float:
    """Where runs join as others leave, each takes its time in a pack that is full."""
    return sum(
        pack_seconds(work, pack.kind, pack.size, profile, training) * runs / pack.size
        for training, runs in trainings(pack).items()
    )


def trainings(pack: Pack) -> Counter[Training | None]:
    """How the runs of a pack train, None as the study says → how many of them."""
    found = Counter(run.training for run in pack.runs)
    found[None] += max((pack.expected or 0) - len(pack.runs), 0)  # trials that have not begun
    return +found


def largest_packs(
    runs: Sequence[Run], works: Mapping[str, TaskWork], profile: HardwareProfile, capacity: int = 1
) -> dict[str, int]:
    """How many runs a pack may hold, for each task: `max_pack`, or as many as make a pack faster and fit into memory.

    Where several packs train at once (`capacity`), it may be fewer, so that the study ends sooner: a few full packs
    leave workers idle.
    """
    most = {
        name: _largest_pack([run for run in runs if run.task == name], work, profile) for name, work in works.items()
    }
    if capacity == 1 or any(work.study.training.max_pack != "auto" for work in works.values()):
        return most
    top = max(most.values(), default=1)
    limits = sorted({math.ceil(top / parts) for parts in range(1, top + 1)}, reverse=True)

    def seconds(limit: int) -> float:
        packs = plan_packs(runs, {name: min(count, limit) for name, count in most.items()})
        return makespan(seconds_of(packs, works, profile), capacity)

    best = min(limits, key=seconds)  # of equals the largest packs, which come first
    return {name: min(count, best) for name, count in most.items()}


def makespan(seconds: Iterable[float], capacity: int) -> float:
    """When the last of some packs ends, `capacity` at once, the longest first (Graham's rule)."""
    free_at = [0.0] * capacity
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free_at, free_at[0] + each)
    return max(free_at)


def _parameters(work: TaskWork, runs: Sequence[Run]) -> tuple[ParameterCount, ...]:
    """Of each run; runs that differ in their seed alone are counted once."""
    of_method = {method: work.parameters(run) for method, run in {run.method: run for run in runs}.items()}
    return tuple(of_method[run.method] for run in runs)


def _batches(
    work: TaskWork, runs: Sequence[Run], parameters: Sequence[ParameterCount]
) -> list[tuple[ParameterCount, float]]:
    """The parameters of each run, and the tokens of its batch."""
    sizes = ((run.training or work.study.training).batch_size for run in runs)
    tokens = float(work.train.lengths.mean())
    return [(count, size * tokens) for count, size in zip(parameters, sizes, strict=True)]


def _largest_pack(runs: Sequence[Run], work: TaskWork, profile: HardwareProfile) -> int:
    training = work.study.training
    if training.max_pack != "auto":
        return training.max_pack
    if work.model_spec.padded:  # a pack would be no faster than its runs one after the other
        return 1
    packed = [run for run in runs if run.method.pack_kind != "full"]
    sizes = set(_batches(work, packed, _parameters(work, packed)))
    each = max((_run_bytes(work, *size, profile.dtype) for size in sizes), default=1.0)
    taken = _shared_bytes(work, profile) + _evaluation_bytes(work, profile)
    room = SHARE_OF_MEMORY * profile.free_bytes - taken
    fastest = _FASTEST
    if profile.full_rows is not None:  # that many runs fill the device, by their mean batch
        tokens = [size for _, size in sizes] or [float(training.batch_size)]
        fastest = math.ceil(profile.full_rows * len(tokens) / sum(tokens))
    return max(1, min(fastest, int(room // each)))


class Counts(NamedTuple):
    """What one run of a task goes through."""

    steps: int  # optimizer steps
    evaluations: int
    tokens: int  # that it trains on
    evaluated_tokens: int  # of one evaluation: of the rows that select
    scored_tokens: int  # of the scores at its end: of its best tensors, and of its last ones where dev selects


def counts(work: TaskWork, training: Training | None = None) -> Counts:
    """What each run of a task goes through that trains so; None: as the study says."""
    training, rows = training or work.study.training, work.train_size
    per_epoch = steps_per_epoch(rows, training.batch_size, training.accumulate)
    steps = total_steps(training, rows)
    samples = min(steps * training.batch_size * training.accumulate, math.ceil(steps / per_epoch * rows))
    evaluations = len(evaluation_steps(training, per_epoch, steps))
    tokens = round(samples * float(work.train.lengths.mean()))
    # Where the last tensors are the best ones, they are scored once; nobody knows before for which runs that will be.
    scored = [*([work.dev] * (2 if work.study.selection == "dev" else 1)), *work.also.values()]
    return Counts(steps, evaluations, tokens, work.evaluated_tokens, sum(int(rows.lengths.sum()) for rows in scored))


def _twice(work: TaskWork) -> float:
    """`_TWICE_THE_THREADS` at the backbone's size, interpolated over the logarithm of the parameters."""
    size = sum(math.prod(shape) for shape in work.model_spec.tensors.values())
    known = sorted(_TWICE_THE_THREADS.items())
    return float(np.interp(math.log(size), [math.log(at) for at, _ in known], [left for _, left in known]))


def matrix_elements(work: TaskWork) -> int:
    """Elements of the encoder's matrices."""
    linears = work.model_spec.linears.items()
    return sum(inputs * outputs for path, (inputs, outputs) in linears if not path.startswith("pooler"))


def _shared_bytes(work: TaskWork, profile: HardwareProfile) -> float:
    """The backbone, and its matrices as products read them (`packing.products`).

    In bf16 they are there once, on a CPU three times, as they are and packed for two products; in fp32, which is the
    backbone's own, once transposed on a CPU without AVX-512. Kernels that multiply need no such copy, but whether they
    do is known only once they are compiled.
    """
    frozen = sum(math.prod(shape) for shape in work.model_spec.tensors.values())
    on_cpu = profile.device == "cpu"
    copies = 3 if on_cpu else 1
    if profile.dtype == torch.float32:
        copies = int(on_cpu and not hardware.has_avx512())
    return float(4 * frozen + copies * profile.dtype.itemsize * matrix_elements(work))


def _run_bytes(work: TaskWork, parameters: ParameterCount, batch_tokens: float, dtype: torch.dtype) -> float:
    """What one run adds: what it trains, and the activations of its part of a batch."""
    linears = work.model_spec.linears
    outputs = sum(sum(widths) for widths in linears.values())
    # Of each layer, which has one widest product, both norms keep what they have normalized in fp32.
    width, widest = min(inputs for inputs, _ in linears.values()), max(wide for _, wide in linears.values())
    normed = 2 * 4 * width * sum(wide == widest for _, wide in linears.values())
    kept_per_token = (outputs * dtype.itemsize + normed) * work.model_spec.passes
    return parameters.trainable * _BYTES_PER_TRAINED + batch_tokens * kept_per_token


def _evaluation_bytes(work: TaskWork, profile: HardwareProfile) -> float:
    """What an evaluation takes beside that: what a step has freed is kept for the next step, in pieces of its sizes.

    On a GPU its batches follow the memory that is left; a tenth of what is free is left to them at most.
    """
    each = work.model_spec.evaluated_bytes(profile.dtype.itemsize, int(work.dev.lengths.max()))
    most = float(each * min(most_tokens(profile.device), work.evaluated_tokens))
    return min(most, 0.1 * profile.free_bytes) if profile.device == "cuda" else most


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@cache
def _products_per_second(width: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Floating-point operations a second of [1024, width] x [width, 4 width] on the device, in about 0.1 s."""
    x = torch.randn(1024, width, device=device, dtype=dtype)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype)
    functional.linear(x, weight)
    done, started = 0, time.perf_counter()
    # On a busy machine, 0.1 s may see few products, and the one that had to wait would count for all.
    while time.perf_counter() - started < 0.1 or done < _LEAST_PRODUCTS:
        functional.linear(x, weight)
        finish(device)
        done += 1
    return done * 2 * 1024 * width * 4 * width / (time.perf_counter() - started)
