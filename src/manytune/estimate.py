"""What a study will take, before it is run: steps, parameters, and rough time, memory and disk."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from manytune import hardware
from manytune.methods import ParameterCount
from manytune.plan import Pack, Run, evaluation_steps, steps_per_epoch, total_steps
from manytune.workload import TaskWork

__all__ = ["PackEstimate", "estimate_pack", "largest_packs"]

_PASSES = {"full": 3.0, "adapters": 2.0, "head": 1.0}
"""Matrix products a training token, in forward passes: forward, and back through inputs and weights."""

_SHARE_IN_A_PACK = 0.3
_SHARE_ALONE = 0.15
"""Part of the products' own speed that training reaches, of eight runs and more together and of one alone;
measured on CPUs with MiniLM."""

_BYTES_PER_TRAINED = 16
"""A trained parameter in fp32, its gradient and its two moments."""


_FASTEST = {"cpu": 16, "cuda": 64, "mps": 16}
"""Runs of a pack beyond which training gets little faster: on a CPU 4 % from 16 to 32 (docs/performance.md)."""

_SHARE_OF_MEMORY = 0.7
"""Part of the memory now free that a pack that was sized by itself may take: estimates are rough."""


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


def estimate_pack(work: TaskWork, pack: Pack, device: torch.device) -> PackEstimate:
    """Estimate a pack from its token counts and a probe of the device's matrix products."""
    training = work.study.training
    rows = work.train_size
    per_epoch = steps_per_epoch(rows, training.batch_size, training.accumulate)
    steps = total_steps(training, rows)
    evaluations = len(evaluation_steps(training, per_epoch, steps))
    runs = len(pack.runs)
    length = float(work.train.lengths.mean())
    samples = min(steps * training.batch_size * training.accumulate, math.ceil(steps / per_epoch * rows))
    tokens = round(samples * length) * runs
    dev_tokens = int(work.dev.lengths.sum()) * runs
    dtype = hardware.choose_dtype(training.precision, device)
    width, layers_flops = _shape(work)
    together = 1 if work.anatomy.padded else runs  # in the padded way each run has passes of its own
    share = _SHARE_ALONE + (_SHARE_IN_A_PACK - _SHARE_ALONE) * min(1.0, (together - 1) / 7)
    speed = _products_per_second(width, dtype, device) * share
    passes = tokens * _PASSES[pack.kind] + dev_tokens * (evaluations + 1)
    parameters = tuple(work.parameters(run) for run in pack.runs)
    return PackEstimate(
        steps=steps,
        evaluations=evaluations,
        tokens=tokens,
        seconds=passes * layers_flops / speed,
        memory_bytes=round(
            (0 if device.type == "cuda" else _resident_bytes())
            + _shared_bytes(work, dtype, device)
            + sum(_run_bytes(work, count, training.batch_size * length, dtype) for count in parameters)
        ),
        disk_bytes=sum(_snapshot_bytes(work, count) for count in parameters),
        parameters=parameters,
    )


def largest_packs(runs: Sequence[Run], works: Mapping[str, TaskWork], device: torch.device) -> dict[str, int]:
    """How many runs a pack may hold, for each task: `max_pack`, or as many as make it faster and fit into memory."""
    return {
        name: _largest_pack([run for run in runs if run.task == name], work, device) for name, work in works.items()
    }


def _largest_pack(runs: Sequence[Run], work: TaskWork, device: torch.device) -> int:
    training = work.study.training
    if training.max_pack != "auto":
        return training.max_pack
    if work.anatomy.padded:  # a pack would be no faster than its runs one after the other
        return 1
    dtype = hardware.choose_dtype(training.precision, device)
    tokens = training.batch_size * float(work.train.lengths.mean())
    packed = [run for run in runs if run.method.method != "full"]
    each = max((_run_bytes(work, work.parameters(run), tokens, dtype) for run in packed), default=1.0)
    room = _SHARE_OF_MEMORY * hardware.free_memory(device) - _shared_bytes(work, dtype, device)
    return max(1, min(_FASTEST[device.type], int(room // each)))


def _shape(work: TaskWork) -> tuple[int, int]:
    """Hidden width, and floating-point operations of a token's forward pass through the linear layers."""
    return next(iter(work.anatomy.linears.values()))[0], 2 * work.anatomy.passes * _matrices(work)


def _matrices(work: TaskWork) -> int:
    """Elements of the encoder's matrices."""
    linears = work.anatomy.linears.items()
    return sum(inputs * outputs for path, (inputs, outputs) in linears if not path.startswith("pooler"))


def _shared_bytes(work: TaskWork, dtype: torch.dtype, device: torch.device) -> float:
    """The backbone, and its matrices in bf16: on a CPU three times, as they are and packed for two products."""
    frozen = sum(math.prod(shape) for shape in work.anatomy.tensors.values())
    copies = 0 if dtype == torch.float32 else 3 if device.type == "cpu" else 1
    return float(4 * frozen + copies * dtype.itemsize * _matrices(work))


def _run_bytes(work: TaskWork, parameters: ParameterCount, batch_tokens: float, dtype: torch.dtype) -> float:
    """What one run adds: what it trains, and the activations of its part of a batch."""
    outputs = sum(sum(widths) for widths in work.anatomy.linears.values())
    kept_per_token = outputs * work.anatomy.passes * dtype.itemsize
    return parameters.trainable * _BYTES_PER_TRAINED + batch_tokens * kept_per_token


def _snapshot_bytes(work: TaskWork, count: ParameterCount) -> int:
    head = sum(math.prod(shape) for shape in work.anatomy.head.shapes().values())
    return 4 * (count.trainable - count.head + head)


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


@cache
def _products_per_second(width: int, dtype: torch.dtype, device: torch.device) -> float:
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
