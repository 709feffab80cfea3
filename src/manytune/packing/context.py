"""What the modules of a pack share during a forward pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manytune.packing.dropout import Drop, Keys, site_key
from manytune.packing.kernels import Kernels, Segments
from manytune.packing.layout import Layout, Rows


@dataclass
class Context:
    """The state of one forward pass; a pack has one, and its modules read it."""

    dtype: torch.dtype  # the dtype of activations between the fp32 residuals
    kernels: Kernels
    layout: Layout | None = None  # of the present batch; None between passes
    keys: Keys | None = None  # for dropout; None while evaluating
    # what attention adds to its scores in this pass, as `AttentionCall` says; None where the family has no such thing
    position_bias: Tensor | None = None
    rows: Rows = "tokens"  # whether modules now see one row a token or (last layer, pooler and head) one row a sequence
    _calls: Counter[str] = field(default_factory=Counter)
    _parts: dict[tuple[int, int, int, Rows], Segments] = field(default_factory=dict)

    def begin(self, layout: Layout, keys: Keys | None) -> None:
        """Start a forward pass."""
        self.layout, self.keys, self.rows = layout, keys, "tokens"
        self._calls.clear()
        self._parts.clear()

    def next_turn(self) -> None:
        """Count the calls of every site anew: on the padded path each run of a batch has a pass of its own."""
        self._calls.clear()

    def end(self) -> None:
        """Let go of the batch."""
        self.layout = self.keys = self.position_bias = None
        self._parts.clear()

    def site(self, path: str) -> int:
        """The key of this call of the module at `path`."""
        call = self._calls[path]
        self._calls[path] += 1
        return site_key(path, call)

    def drop(self, path: str, p: float) -> Drop | None:
        """The dropout of this call of the module at `path`; None where nothing is dropped."""
        site = self.site(path)
        keys = self.row_keys
        return None if keys is None or p == 0 else Drop(keys, site, p)

    @property
    def segments(self) -> Segments:
        """The rows of each run, and the padding rows behind them."""
        assert self.layout is not None
        tail = self.layout.rows - self.layout.tokens if self.rows == "tokens" else 0
        return self.part(0, self.layout.runs, tail)

    def part(self, first: int, last: int, tail: int = 0) -> Segments:
        """The rows of the runs `first` to `last` - 1, counted from the first one, and `tail` padding rows behind."""
        layout = self.layout
        assert layout is not None
        key = (first, last, tail, self.rows)
        if key not in self._parts:
            bounds, offsets, runs, reach = layout.of_runs(self.rows)
            from_first = tuple(bound - bounds[first] for bound in bounds[first : last + 1])
            whole = (first, last) == (0, layout.runs)
            self._parts[key] = Segments(
                from_first,
                layout.ids.device,
                tail,
                bounds[first],
                reach,
                offsets[first : last + 1],
                runs[: from_first[-1] + tail] if whole else None,
            )
        return self._parts[key]

    @property
    def row_keys(self) -> Tensor | None:
        """The dropout keys of the rows, or None while evaluating."""
        if self.keys is None:
            return None
        return self.keys.tokens if self.rows == "tokens" else self.keys.sequences


def dropped(x: Tensor, drop: Drop, kernels: Kernels) -> Tensor:
    """Keyed dropout of x [..., c], whose flattened rows have the keys of `drop`."""
    rows: Tensor = _Dropped.apply(x.reshape(-1, x.shape[-1]), drop, kernels)
    return rows.view(x.shape)


class _Dropped(torch.autograd.Function):
    """Dropout of rows; for the gradient the mask is hashed again, which is cheaper than keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: Drop, kernels: Kernels) -> Tensor:
        ctx.drop, ctx.kernels = drop, kernels
        return kernels.drop(x.contiguous(), drop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.kernels.drop(grad.contiguous(), ctx.drop), None, None
