"""Arrays to a device in one copy that the host does not wait for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16
"""Bytes at whose multiples arrays begin in the copy: the most that a load of a GPU takes at once."""


def put_all(arrays: Mapping[str, NDArray[Any]], device: torch.device, into: Tensor | None = None) -> dict[str, Tensor]:
    """Tensors of the arrays on a device, by the same names.

    On the CPU they share the arrays' memory. Elsewhere one copy takes all, from memory that the system does not page
    out, while the host goes on; into the tensor [`size_of(arrays)`] uint8 if one is given, else into a new one.
    """
    ready = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if device.type == "cpu" and into is None:
        return {name: torch.from_numpy(array) for name, array in ready.items()}
    staged = torch.empty(size_of(arrays), dtype=torch.uint8, pin_memory=device.type == "cuda")
    places, views = _places(ready), staged.numpy()
    for name, array in ready.items():
        views[places[name] : places[name] + array.nbytes] = array.reshape(-1).view(np.uint8)
    unhurried = device.type != "mps"  # which would read memory that is given back when this returns
    there = staged.to(device, non_blocking=unhurried) if into is None else into.copy_(staged, non_blocking=unhurried)
    return {
        name: there[places[name] : places[name] + array.nbytes].view(_torch_dtype(array)).view(array.shape)
        for name, array in ready.items()
    }


def size_of(arrays: Mapping[str, NDArray[Any]]) -> int:
    """The bytes that `put_all` copies."""
    return sum(_padded(array.nbytes) for array in arrays.values())


def _places(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The byte at which each array begins."""
    places, size = {}, 0
    for name, array in arrays.items():
        places[name] = size
        size += _padded(array.nbytes)
    return places


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _torch_dtype(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
