"""How many rows of a batch fill a GPU: beyond them, larger packs train little faster."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_LITTLE = 1.1
"""A GPU that gets through less than this many times as many rows a second with twice the rows is full."""

_FEWEST, _MOST = 256, 65536
"""Rows between which a GPU is looked at."""

_LAYERS, _TIMES = 8, 4
"""Layers one behind the other in a measurement, and measurements of each size, of which the shortest counts."""


def full_rows(width: int, dtype: torch.dtype, device: torch.device, free_bytes: int) -> int:
    """Rows of a batch that fill a GPU, for products in `dtype` of a backbone of this hidden `width`; in about 0.3 s.

    Measured with the feed-forward network and norm of a layer, launched one operation after the other as a step's are:
    with few rows a GPU waits for launches.
    """
    wide = torch.randn(4 * width, width, device=device, dtype=dtype) / width**0.5
    narrow = torch.randn(width, 4 * width, device=device, dtype=dtype) / width**0.5
    most = min(_MOST, free_bytes // (4 * 48 * width))  # a quarter of the memory, with 12 numbers a channel in fp32

    def speed(rows: int) -> float:
        x = torch.randn(rows, width, device=device)
        return rows / min(_seconds(x, wide, narrow) for _ in range(_TIMES))

    return saturated(speed, most)


def saturated(speed: Callable[[int], float], most: int) -> int:
    """The fewest rows, doubled from 256, with whose double the `speed`, rows a second, grows little; `most` at most."""
    rows, now = _FEWEST, speed(_FEWEST)
    while 2 * rows <= most and (twice := speed(2 * rows)) > _LITTLE * now:
        rows, now = 2 * rows, twice
    return rows


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(x: Tensor, wide: Tensor, narrow: Tensor) -> float:
    finish(x.device)
    began = time.perf_counter()
    for _ in range(_LAYERS):
        inner = functional.gelu(functional.linear(x.to(wide.dtype), wide))
        x = functional.layer_norm(x + functional.linear(inner, narrow), x.shape[1:])
    finish(x.device)
    return time.perf_counter() - began
