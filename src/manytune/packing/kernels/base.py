"""What the kernels are given and what they compute.

Shape letters are those of `layout.py`; n is the number of rows (tokens, or sequences in the last layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from manytune.packing.dropout import Drop
from manytune.packing.layout import Layout, row_count

__all__ = ["AttentionCall", "Drop", "Kernels", "LoraCall", "Segments", "Step", "Stepped"]


@dataclass(frozen=True, eq=False)
class Segments:
    """The rows of neighbouring runs.

    Attributes:
        bounds: R + 1 ints; run r holds the rows `bounds[r]:bounds[r + 1]`, counted from the first of them.
        device: Where the rows are.
        tail: Rows after those that belong to no run; they are treated as the last run's, but enter no sum.
    """

    bounds: tuple[int, ...]
    device: torch.device
    tail: int = 0

    @cached_property
    def tensor(self) -> Tensor:
        """[R + 1] int64 on the CPU."""
        return torch.tensor(self.bounds)

    @cached_property
    def counts(self) -> Tensor:
        """[R] int64, the rows of each run."""
        return self.tensor.diff().to(self.device)

    @cached_property
    def runs(self) -> Tensor:
        """[n] int64, the run of each row."""
        counts = self.tensor.diff()
        counts[-1] += self.tail
        return torch.repeat_interleave(torch.arange(len(counts)), counts).to(self.device)

    @cached_property
    def within(self) -> Tensor:
        """[n] int64, the place of each row in its run."""
        starts = self.tensor[:-1].to(self.device)
        return torch.arange(len(self.runs), device=self.device) - starts[self.runs]

    @cached_property
    def longest(self) -> int:
        """The rows of the run that has the most, up to one of few numbers."""
        return row_count(int(self.tensor.diff().max()))

    def __len__(self) -> int:
        return len(self.bounds) - 1


@dataclass(frozen=True)
class AttentionCall:
    """One attention over a packed batch.

    Attributes:
        layout: The batch.
        heads: Number of heads.
        q: [T, heads * d], or [S, heads * d] where only each sequence's first token asks (`first_only`).
        k: [T, heads * d], rows may be strided.
        v: [T, heads * d], with the strides of k.
        bias: [R or 1, 3 * heads * d] fp32, added to q, k and v.
        scale: Factor on the scores.
        drop: Of the weights, keyed by the queries' tokens; None while evaluating.
        first_only: Whether there is one query a sequence.
    """

    layout: Layout
    heads: int
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    scale: float
    drop: Drop | None
    first_only: bool


@dataclass(frozen=True, eq=False)
class LoraCall:
    """The update scale * drop(x) A B that neighbouring runs make to one layer, each for its own rows.

    Attributes:
        x: [n, in]; its rows may be strided.
        segments: Whose rows they are, of G runs.
        drop: Of the rows of x; None without dropout.
        a: [G, in, r] fp32.
        b: [G, r, out] fp32.
        scale: [G] fp32.
    """

    x: Tensor
    segments: Segments
    drop: Drop | None
    a: Tensor
    b: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step of all runs of a pack.

    Attributes:
        number: From 1, for the correction of the moments' bias.
        rates: [R] the learning rate of each run.
        betas: Decay of the mean and of the mean square of the gradient.
        epsilon: Added to the root of the mean square.
        weight_decay: Of the tensors that decay.
        max_grad_norm: Each run's gradient is scaled to at most this norm; 0 leaves it alone.
    """

    number: int
    rates: Sequence[float]
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True, eq=False)
class Stepped:
    """A tensor that neighbouring runs hold, with all that its optimizer step needs.

    Attributes:
        first: The first run that holds it.
        value: [G, ...] fp32.
        grad: [G, ...] fp32 or bf16; or, of a pack of one, sparse over the rows of `value[0]` and coalesced.
        mean: [G, ...] fp32, the running mean of the gradient.
        mean_square: [G, ...] fp32, that of its square.
        low: [G, ...] bf16, `value` rounded, which is to be kept so; None where there is no such copy.
        decays: Whether weight decay applies.
        touched: [rows] uint8, of a tensor with a sparse gradient: 1 for the rows that ever had one.
    """

    first: int
    value: Tensor
    grad: Tensor
    mean: Tensor
    mean_square: Tensor
    low: Tensor | None
    decays: bool
    touched: Tensor | None


class Kernels(Protocol):
    """The functions that a packed encoder layer is made of; activations are fp32 or bf16, gradients likewise."""

    name: str

    def attention(self, call: AttentionCall) -> Tensor:
        """[rows of q, heads * d]: every query's weighted sum of the values of its own sequence."""

    def attention_grad(self, call: AttentionCall, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """Write the gradients of q, k and v, given that of the output; dk and dv have the same strides."""

    def residual_norm(
        self,
        y: Tensor,
        bias: Tensor,
        residual: Tensor,
        segments: Segments,
        drop: Drop | None,
        gain: Tensor,
        shift: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """LayerNorm(residual + drop(y + bias)).

        Args:
            y: [n, H].
            bias: [R or 1, H] fp32.
            residual: [n, H] fp32.
            segments: Whose rows they are.
            drop: Keyed dropout of y + bias.
            gain: [H] fp32.
            shift: [R or 1, H] fp32.
            epsilon: Added to the variance.

        Returns:
            The output [n, H] in fp32; the same in y's dtype; the normed input [n, H] before gain and shift, fp32;
            1 / its standard deviation [n], fp32.
        """

    def residual_norm_grad(
        self,
        grad: Tensor,
        grad_low: Tensor | None,
        normed: Tensor,
        rstd: Tensor,
        gain: Tensor,
        drop: Drop | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the residual [n, H] fp32, made in `grad`, and of y [n, H], from those of the two outputs."""

    def norm_sums(
        self, grad: Tensor, grad_low: Tensor | None, normed: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        """Gradients of shift and gain for each run, [R, H] fp32 each."""

    def segment_sums(self, rows: Tensor, segments: Segments) -> Tensor:
        """[R, c] fp32: the sum of each run's rows [n, c], in the order of the rows."""

    def gelu(self, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        """GELU(x + bias), exact: u Φ(u) (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""

    def gelu_grad_(self, grad: Tensor, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        """The gradient of x, made in `grad`."""

    def pad(self, x: Tensor, segments: Segments, drop: Drop | None) -> Tensor:
        """[R, longest, c]: each run's rows of drop(x) [n, c], padded with zeros."""

    def unpad_add_(self, y: Tensor, padded: Tensor, segments: Segments, drop: Drop | None) -> None:
        """Y [n, c] += drop(rows of padded [R, longest, c]): the adjoint of `pad`."""

    def lora_(self, y: Tensor, call: LoraCall) -> Tensor:
        """Add the update to y [n, out], whose rows may be strided; what `lora_grad` needs of drop(x) A."""

    def lora_grad(self, grad: Tensor, low: Tensor, call: LoraCall, grad_x: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradients of A and B, given that of y and what `lora_` returned; that of x is added to `grad_x`.

        The dropped-out input is made anew: hashing its mask again is cheaper than keeping it.
        """

    def drop(self, x: Tensor, drop: Drop) -> Tensor:
        """[n, c]: rows x dropped out."""

    def adamw_(self, tensors: Sequence[Stepped], step: Step) -> None:
        """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), after clipping, in place."""
