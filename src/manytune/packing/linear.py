"""A frozen linear layer that every run of a pack sees with its own bias and its own LoRA update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manytune.packing.bank import BankTensor, Group
from manytune.packing.context import Context
from manytune.packing.dropout import Drop
from manytune.packing.kernels import Kernels, LoraCall, Segments

__all__ = ["LoraSite", "LoraUse", "PackedLayerNorm", "PackedLinear", "lora_backward", "lora_forward", "run_rows"]


@dataclass
class LoraSite:
    """The LoRA update that one group of runs makes to one linear layer.

    Attributes:
        a: [G, in, rank].
        b: [G, rank, out].
        scale: [G], alpha / rank of each run.
        dropout: Probability that a channel of the adapter's input is dropped while training.
    """

    a: BankTensor
    b: BankTensor
    scale: Tensor
    dropout: float

    @property
    def group(self) -> Group:
        """The runs that make the update."""
        return self.a.group


@dataclass(frozen=True, eq=False)
class LoraUse:
    """How a group's update is applied in one forward pass: to the rows `first` to `last` - 1.

    Attributes:
        first: The group's first row.
        last: One past its last row.
        segments: Of its runs, counted from `first`.
        drop: Of the update's input; None without dropout.
        scale: [G], alpha / rank of each run.
    """

    first: int
    last: int
    segments: Segments
    drop: Drop | None
    scale: Tensor

    def call(self, x: Tensor, a: Tensor, b: Tensor) -> LoraCall:
        """The update by A [G, in, r] and B [G, r, out] of this use's rows of x [n, in]."""
        return LoraCall(x[self.first : self.last], self.segments, self.drop, a, b, self.scale)


def lora_forward(
    y: Tensor, x: Tensor, uses: Sequence[LoraUse], factors: Sequence[Tensor], kernels: Kernels
) -> list[Tensor]:
    """Add every group's update scale * drop(x) A B to its rows of y.

    Args:
        y: [n, out], changed in place; its rows may be strided.
        x: [n, in].
        uses: One for each group.
        factors: A [G, in, r] and B [G, r, out] of each group in turn.
        kernels: To work with.

    Returns:
        What `lora_backward` needs of drop(x) A, of each group.
    """
    return [
        kernels.lora_(y[use.first : use.last], use.call(x, a, b))
        for use, a, b in zip(uses, factors[::2], factors[1::2], strict=True)
    ]


def lora_backward(
    grad: Tensor,
    x: Tensor,
    lows: Sequence[Tensor],
    uses: Sequence[LoraUse],
    factors: Sequence[Tensor],
    grad_x: Tensor | None,
    kernels: Kernels,
) -> list[Tensor]:
    """The gradients of A and B of each group in turn; that of x is added to `grad_x`."""
    found: list[Tensor] = []
    for use, low, a, b in zip(uses, lows, factors[::2], factors[1::2], strict=True):
        rows = slice(use.first, use.last)
        below = None if grad_x is None else grad_x[rows]
        found += kernels.lora_grad(grad[rows], low, use.call(x, a, b), below)
    return found


class PackedLinear(nn.Module):
    """y = x W + b_run + scale_run * drop(x) A_run B_run, for rows sorted by run.

    Where the weight itself trains (full fine-tuning, a pack of one) the parameter is fp32, and products read a copy of
    it in `dtype` that gets the gradient and that the optimizer keeps in step: casting at every use, and gradients
    back to fp32, took a tenth of a step's time.

    Attributes:
        weight: What products read, [out, in] in `dtype`.
    """

    def __init__(self, linear: nn.Linear, path: str, context: Context, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = linear.weight
        self.bias = linear.bias
        self.path = path
        self.context = context
        self.biases: list[BankTensor] = []
        self.lora: list[LoraSite] = []

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., in] whose flattened rows are sorted by run."""
        rows = x.reshape(-1, x.shape[-1]).to(self.dtype)
        weight = self.weight
        if not self.biases and not self.lora:
            y = F.linear(rows, weight, None if self.bias is None else self.bias.to(self.dtype))
        else:
            bias = None if self.bias is None else run_rows(self.bias, self.biases, self.context)
            y = _BankedLinear.apply(rows, weight, bias, self.context, self.uses(), *self.factors())
        return y.view(*x.shape[:-1], -1)

    def factors(self) -> list[Tensor]:
        """A and B of each group in turn."""
        return [factor for site in self.lora for factor in (site.a.value, site.b.value)]

    def uses(self) -> list[LoraUse]:
        """How each update is to be applied in this forward pass.

        All groups share the layer's site key, so a run's mask does not depend on which group it is in.
        """
        if not self.lora:
            return []
        context = self.context
        segments, keys = context.segments, context.row_keys
        site_key = context.site(self.path + ".lora")
        uses = []
        for site in self.lora:
            first, last = site.group.first, site.group.last
            start, end = segments.bounds[first], segments.bounds[last]
            drop = None
            if keys is not None and site.dropout > 0:
                drop = Drop(keys[start:end], site_key, site.dropout)
            uses.append(LoraUse(start, end, context.part(first, last), drop, site.scale))
        return uses


class PackedLayerNorm(nn.Module):
    """Layer normalization with a bias of each run's own; in fp32, as its input and output are."""

    def __init__(self, norm: nn.LayerNorm, context: Context) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.shape = norm.normalized_shape
        self.eps = norm.eps
        self.context = context
        self.biases: list[BankTensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., H] whose flattened rows are sorted by run."""
        if not self.biases:
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        normed = F.layer_norm(x, self.shape, self.weight, None, self.eps)
        run_bias = run_rows(self.bias, self.biases, self.context)
        y: Tensor = _AddRunRows.apply(normed.view(-1, x.shape[-1]), run_bias, self.context)
        return y.view(x.shape)


def run_rows(frozen: Tensor, banks: Sequence[BankTensor], context: Context) -> Tensor:
    """[R, out] fp32: each run's own bias where a bank has one, else the frozen one; [1, out] where no bank has."""
    if not banks:
        return frozen[None]
    pieces, done = [], 0
    for bank in banks:
        if bank.group.first > done:
            pieces.append(frozen.expand(bank.group.first - done, -1))
        pieces.append(bank.value)
        done = bank.group.last
    runs = len(context.segments)
    if runs > done:
        pieces.append(frozen.expand(runs - done, -1))
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


class _BankedLinear(torch.autograd.Function):
    """One node for the frozen product, the run's bias and all LoRA groups.

    As separate autograd nodes these would each add a gradient of the size of x; here they add into one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        context: Context,
        uses: list[LoraUse],
        *factors: Tensor,
    ) -> Tensor:
        y = F.linear(x, weight)
        ctx.segments, ctx.kernels, ctx.uses = context.segments, context.kernels, uses
        if bias is not None:
            _add_run_rows_(y, bias, ctx.segments)
        lows = lora_forward(y, x, uses, factors, ctx.kernels)
        ctx.save_for_backward(x, weight, *factors, *lows)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *rest = ctx.saved_tensors
        grad = grad.contiguous()
        factors, lows = rest[: 2 * len(ctx.uses)], rest[2 * len(ctx.uses) :]
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_bias = ctx.kernels.segment_sums(grad, ctx.segments) if ctx.needs_input_grad[2] else None
        grads = lora_backward(grad, x, lows, ctx.uses, factors, grad_x, ctx.kernels)
        return grad_x, None, grad_bias, None, None, *grads


class _AddRunRows(torch.autograd.Function):
    """x [n, c] plus each run's own row of [R, c]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run_bias: Tensor, context: Context) -> Tensor:
        ctx.segments, ctx.kernels = context.segments, context.kernels
        y = x.clone()
        _add_run_rows_(y, run_bias, ctx.segments)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, ctx.kernels.segment_sums(grad.contiguous(), ctx.segments), None


def _add_run_rows_(y: Tensor, run_bias: Tensor, segments: Segments) -> None:
    """Y [n, c] += each run's row of [R or 1, c]; by slices: indexing by run is slower by an order of magnitude."""
    if len(run_bias) == 1:
        y += run_bias[0]
        return
    for own, first, last in zip(run_bias, segments.bounds, segments.bounds[1:], strict=False):
        y[first:last] += own
