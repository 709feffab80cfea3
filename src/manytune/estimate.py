"""What a study will take, before it is run: steps, parameters, and rough time, memory and disk."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from manytune import hardware
from manytune.methods import ParameterCount
from manytune.plan import Pack, evaluation_steps, steps_per_epoch, total_steps
from manytune.workload import TaskWork

__all__ = ["PackEstimate", "estimate_pack"]

_PASSES = {"full": 3.0, "adapters": 2.0, "head": 1.0}
"""Matrix products a training token, in forward passes: forward, and back through inputs and weights."""

_SHARE_IN_A_PACK = 0.3
_SHARE_ALONE = 0.15
"""Part of the products' own speed that training reaches, of eight runs and more together and of one alone;
measured on CPUs with MiniLM."""

_BYTES_PER_TRAINED = 16
"""A trained parameter in fp32, its gradient and its two moments."""


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
    share = _SHARE_ALONE + (_SHARE_IN_A_PACK - _SHARE_ALONE) * min(1.0, (runs - 1) / 7)
    speed = _products_per_second(width, dtype, device) * share
    passes = tokens * _PASSES[pack.kind] + dev_tokens * (evaluations + 1)
    parameters = tuple(work.parameters(run) for run in pack.runs)
    return PackEstimate(
        steps=steps,
        evaluations=evaluations,
        tokens=tokens,
        seconds=passes * layers_flops / speed,
        memory_bytes=_memory(work, parameters, runs * training.batch_size * length, dtype, device),
        disk_bytes=sum(_snapshot_bytes(work, count) for count in parameters),
        parameters=parameters,
    )


def _shape(work: TaskWork) -> tuple[int, int]:
    """Hidden width, and floating-point operations of a token's forward pass through the linear layers."""
    linears = [widths for path, widths in work.anatomy.linears.items() if not path.startswith("pooler")]
    return linears[0][0], 2 * sum(inputs * outputs for inputs, outputs in linears)


def _memory(
    work: TaskWork,
    parameters: Sequence[ParameterCount],
    batch_tokens: float,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    frozen = sum(math.prod(shape) for shape in work.anatomy.tensors.values())
    shared = frozen * (4 + (dtype.itemsize if dtype != torch.float32 else 0))
    trained = sum(count.trainable for count in parameters) * _BYTES_PER_TRAINED
    kept_per_token = sum(sum(widths) for widths in work.anatomy.linears.values()) * dtype.itemsize
    process = 0 if device.type == "cuda" else _resident_bytes()
    return round(process + shared + trained + batch_tokens * kept_per_token)


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
