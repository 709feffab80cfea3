"""Tensors that lie in a frame of NaN: what a kernel reads beside them spoils its result, what it writes there is seen.

The frame also fills what is allocated and never written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Frames"]

_BEFORE, _BEHIND = 256, 4096
"""Elements of the frame; more than a tile of any kernel reaches behind the last row of a small tensor."""


class Frames(TorchFunctionMode):
    """While entered, has `torch.empty` and `torch.empty_like` put tensors of floating-point numbers in frames."""

    def __init__(self) -> None:
        super().__init__()
        self._whole: list[Tensor] = []
        self._parts: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (torch.empty, torch.empty_like) and out.dtype.is_floating_point:
            return self._room(out.shape, out.dtype)
        return out

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self.check()

    def of(self, x: Tensor) -> Tensor:
        """A copy of x, with its strides from row to row as if it were contiguous, in a frame."""
        return self._room(x.shape, x.dtype).copy_(x)

    def check(self) -> None:
        """Fails where something was written outside of a tensor."""
        for whole, (first, last) in zip(self._whole, self._parts, strict=True):
            assert whole[:first].isnan().all(), "written in front of a tensor"
            assert whole[last:].isnan().all(), "written behind a tensor"

    def _room(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        count = shape.numel()
        whole = torch.full((_BEFORE + count + _BEHIND,), torch.nan, dtype=dtype)
        self._whole.append(whole)
        self._parts.append((_BEFORE, _BEFORE + count))
        return whole[_BEFORE : _BEFORE + count].view(shape)
