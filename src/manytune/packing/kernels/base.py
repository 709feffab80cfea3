"""What a set of kernels computes, and what it is given.

Shape letters are those of `layout.py`; n is the number of rows: tokens, or sequences in the last layer. `hidden` is the
residual stream in the dtype of activations, which products read; the stream itself is fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from manytune.packing.dropout import Drop, token_keys
from manytune.packing.layout import Layout, row_count


@dataclass(frozen=True, eq=False)
class Segments:
    """Which rows belong to which of some neighbouring runs."""

    bounds: tuple[int, ...]  # R + 1 ints; run r has the rows `bounds[r]:bounds[r + 1]`; `bounds[0]` is 0
    device: torch.device  # where the rows are
    tail: int = 0  # padding rows behind them, of no run; they get the last run's bias and enter no sum
    first: int = 0  # which row of the batch the row 0 of `bounds` is
    reach: int = 0  # no run of the batch has more rows; the same for many batches, so that grids may be made of it
    # [R + 1] int64, `bounds` + `first`, and [n] int64, the run of each row, where they are on the device already
    own_offsets: Tensor | None = None
    own_runs: Tensor | None = None

    @cached_property
    def tensor(self) -> Tensor:
        """[R + 1] int64 on the CPU."""
        return torch.tensor(self.bounds)

    @cached_property
    def counts(self) -> Tensor:
        """[R] int64, the rows of each run."""
        return self.tensor.diff().to(self.device)

    @cached_property
    def offsets(self) -> Tensor:
        """[R + 1] int64 on the device; run r has the rows `offsets[r]:offsets[r + 1]` of the batch."""
        return (self.tensor + self.first).to(self.device) if self.own_offsets is None else self.own_offsets

    @cached_property
    def runs(self) -> Tensor:
        """[n] int64, the run of each row."""
        if self.own_runs is not None:
            return self.own_runs
        counts = self.tensor.diff()
        counts[-1] += self.tail
        return torch.repeat_interleave(torch.arange(len(counts)), counts).to(self.device)

    @cached_property
    def within(self) -> Tensor:
        """[n] int64, the index of each row in its run."""
        starts = self.tensor[:-1].to(self.device)
        return torch.arange(len(self.runs), device=self.device) - starts[self.runs]

    @cached_property
    def longest(self) -> int:
        """The most rows that a run has, rounded up by `row_count`."""
        return row_count(int(self.tensor.diff().max()))

    def of(self, rows: Tensor) -> Tensor:
        """The runs' own rows of those of the batch."""
        return rows[self.first : self.first + self.bounds[-1]]

    def __len__(self) -> int:
        return len(self.bounds) - 1


@dataclass(frozen=True)
class AttentionCall:
    """One attention over a packed batch."""

    layout: Layout  # the batch
    heads: int  # number of heads
    q: Tensor  # [T, heads * d]; with `first_only` [S, heads * d], the queries of each sequence's first token
    k: Tensor  # [T, heads * d], rows may be strided
    v: Tensor  # [T, heads * d], likewise
    bias: Tensor  # [R or 1, 3 * heads * d] fp32, added to q, k and v
    scale: float  # factor on the scores
    drop: Drop | None  # dropout of the attention weights, keyed by the queries' tokens; None while evaluating
    first_only: bool  # whether there is one query for each sequence
    # [heads, 2 M - 1] fp32, for sequences of up to M tokens: what is added to the scaled score of the query in place i
    # of its sequence and the key in place j, at i - j + M - 1
    position_bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LoraCall:
    """The update scale * drop(x) A B of one linear layer, by G neighbouring runs, each for its own rows.

    What is given of rows is given of those of all runs; `own` takes these runs' part.
    """

    x: Tensor  # [n, in]; its rows may be strided
    segments: Segments  # the rows of each of the G runs
    drop: Drop | None  # dropout of x; None without
    a: Tensor  # [G, in, r] fp32
    b: Tensor  # [G, r, out] fp32
    scale: Tensor  # [G] fp32

    def own(self) -> LoraCall:
        """The same call over these runs' rows alone, counted from their first."""
        segments = self.segments
        drop = None if self.drop is None else replace(self.drop, keys=segments.of(self.drop.keys))
        return replace(self, x=segments.of(self.x), drop=drop, segments=replace(segments, first=0, own_offsets=None))


@dataclass(frozen=True, eq=False)
class NormCall:
    """A LayerNorm behind a residual connection, with the dropout before it."""

    segments: Segments  # whose rows they are
    drop: Drop | None  # dropout of what is added to the residual
    weight: Tensor  # [H] fp32
    bias: Tensor  # [R or 1, H] fp32
    epsilon: float  # added to the variance


@dataclass(frozen=True)
class AdamWUpdate:
    """One optimizer step of one run."""

    number: int  # of the run's steps, from 1, for the correction of the moments' bias
    rate: float  # the learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # decay of `exp_avg` and of `exp_avg_sq`
    epsilon: float = 1e-8  # added to the root of `exp_avg_sq`
    weight_decay: float = 0.0  # for the tensors whose `decays` is set
    max_grad_norm: float = 0.0  # the run's gradient is scaled down to this norm if it is larger; 0 for no limit


@dataclass(frozen=True, eq=False)
class AdamWTensor:
    """A tensor that G neighbouring runs train, with all that its optimizer step needs."""

    first: int  # the first of these runs
    value: Tensor  # [G, ...] fp32
    # [G, ...] fp32 or bf16. In a pack of one it may be sparse over the rows of `value[0]`, coalesced, fp32.
    grad: Tensor
    exp_avg: Tensor  # [G, ...] fp32, the running mean of the gradient
    exp_avg_sq: Tensor  # [G, ...] fp32, the running mean of its square
    # [G, ...] `value` rounded to bf16, which the step writes anew; None where there is no such copy
    value_bf16: Tensor | None
    decays: bool  # whether weight decay applies
    touched: Tensor | None  # [rows] uint8, of a tensor with a sparse gradient: 1 for the rows that ever had one
    # [G] fp64 on the CPU: the tensor's learning rate as a multiple of its run's; None: it is the run's
    rates: Tensor | None = None


def adamw_settings(updates: Sequence[AdamWUpdate]) -> np.ndarray:
    """[R, 8] fp32: the numbers of each run's step that do not depend on its tensors.

    rate / (1 - beta1 ** t), 1 - beta1, beta2, 1 - beta2, epsilon, rate * weight_decay, max_grad_norm, and
    sqrt(1 - beta2 ** t); computed in double precision.
    """
    rows = [
        (
            u.rate / (1 - u.betas[0] ** u.number),
            1 - u.betas[0],
            u.betas[1],
            1 - u.betas[1],
            u.epsilon,
            u.rate * u.weight_decay,
            u.max_grad_norm,
            math.sqrt(1 - u.betas[1] ** u.number),
        )
        for u in updates
    ]
    return np.array(rows, dtype=np.float32)


class Kernels(Protocol):
    """The functions that a packed encoder layer is made of; activations and their gradients are fp32 or bf16."""

    name: str
    lanes: int  # fp32 numbers in a vector of compiled kernels; 0 where torch decides
    fuses: bool  # whether a step needs nothing of the host, so that it can be recorded and run again as a whole
    multiplies: bool  # whether the products of rows and weights in fp32 are kernels too, rather than torch's

    def attention(self, call: AttentionCall) -> Tensor:
        """[rows of q, heads * d]: softmax(scale q kᵀ) v of each head, within each sequence."""

    def attention_grad(
        self, call: AttentionCall, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, *, of_positions: bool = False
    ) -> Tensor | None:
        """Write the gradients of q, k and v into dq, dk and dv, given that of the output.

        With `of_positions`, returns that of `position_bias`, summed over all sequences.
        """

    def residual_norm(
        self, y: Tensor, bias: Tensor, residual: Tensor, norm: NormCall
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """LayerNorm(residual + drop(y + bias)) of y [n, H], bias [R or 1, H] fp32 and residual [n, H] fp32.

        Returns:
            The output [n, H] in fp32; the same in y's dtype; the input centred and divided by its standard deviation
            [n, H] fp32; 1 / that standard deviation [n] fp32.
        """

    def residual_norm_grad(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, rstd: Tensor, norm: NormCall, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the residual [n, H] fp32, which may be `grad` overwritten, and of y [n, H] in its `dtype`.

        `grad` [n, H] fp32 is that of the fp32 output; `grad_hidden` [n, H] that of the output in y's dtype, None where
        nothing used it; `normed` and `rstd` are what `residual_norm` returned last.
        """

    def norm_sums(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the norm's bias and weight for each run, [R, H] fp32 each."""

    def segment_sums(self, x: Tensor, segments: Segments) -> Tensor:
        """[R, c] fp32: the sum of each run's rows of x [n, c], in the order of the rows."""

    def gelu(self, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        """GELU(x + bias), exact: u Φ(u) (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""

    def gelu_grad_(self, grad: Tensor, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        """The gradient of x, which overwrites `grad`."""

    def pad(self, x: Tensor, segments: Segments, drop: Drop | None) -> Tensor:
        """[R, longest, c]: each run's rows of drop(x) [n, c], padded with zeros."""

    def unpad_add_(self, y: Tensor, padded: Tensor, segments: Segments, drop: Drop | None) -> None:
        """Add drop(rows of padded [R, longest, c]) to y [n, c]: the adjoint of `pad`."""

    def lora_(self, y: Tensor, call: LoraCall) -> Tensor:
        """Add the update to the runs' rows of y [n, out], which may be strided; returns drop(x) A, for `lora_grad`."""

    def lora_grad(self, grad: Tensor, xa: Tensor, call: LoraCall, grad_x: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradients of A and B, given that of y and `xa` from `lora_`; that of x is added to `grad_x`.

        drop(x) is computed again: hashing its mask again is cheaper than keeping it.
        """

    def drop(self, x: Tensor, drop: Drop) -> Tensor:
        """[n, c]: dropout of x."""

    def token_keys(self, layout: Layout, runs: Tensor) -> Tensor:
        """[T] int32: the dropout keys of a batch's tokens from those of its runs, [R] int32; see `packing.dropout`."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """X Wᵀ [n, out] of x [n, in], whose rows may be strided, and W [out, in]."""

    def product_grad(self, grad: Tensor, weight: Tensor) -> Tensor:
        """The gradient of x, g W [n, in], from that of the product, g [n, out], whose rows may be strided."""

    def weight_grad(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of W, gᵀ x [out, in], from that of the product; rows of both may be strided."""

    def before_recording(self) -> None:
        """Called before a step is recorded, where `fuses`; one of its shape has been taken before."""

    def after_recording(self, *, failed: bool = False) -> object:
        """Called after a step has been recorded; returns what must not be freed while it may be taken again."""

    def adamw_(
        self,
        tensors: Sequence[AdamWTensor],
        updates: Sequence[AdamWUpdate],
        settings: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) after clipping, in place.

        `updates` has one for each run of the pack. Where the kernels `fuse`, `settings` [R, 8] fp32 may be what
        `adamw_settings` makes of them, on the device already, and runs that are 0 in `alive` [R] fp32 are left alone.
        """


class UnrecordedKernels:
    """What kernels share whose steps need the host, and so are never recorded."""

    fuses = False

    def token_keys(self, layout: Layout, runs: Tensor) -> Tensor:
        """See `Kernels`."""
        return token_keys(layout, runs)

    def before_recording(self) -> None:
        """Nothing: no step is recorded."""

    def after_recording(self, *, failed: bool = False) -> object:
        """Nothing: no step is recorded."""
