"""Linear layers and norms that every run of a pack sees with its own hooks, over rows sorted by run.

Shape letters are those of `layout.py`; n is the number of rows, G that of the runs of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from manytune.packing.bank import BankTensor
from manytune.packing.context import Context
from manytune.packing.dropout import Drop
from manytune.packing.hooks import ModuleHooks, SerialAdapter
from manytune.packing.kernels import Kernels, Segments
from manytune.packing.updates import Use, scale_runs_, with_tensors


class PackedLinear(nn.Module):
    """y = output_scale * (x' W + bias + scale * drop(x') A B) with x' = input_scale * x, for rows sorted by run.

    Where the weight itself trains (full fine-tuning, a pack of one) the parameter is fp32, and products read a copy of
    it in `dtype` that gets the gradient and that the optimizer keeps in step: casting at every use, and gradients
    back to fp32, took a tenth of a step's time.
    """

    def __init__(
        self, linear: nn.Linear, path: str, context: Context, dtype: torch.dtype, hooks: ModuleHooks | None = None
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = linear.weight  # [out, in] in `dtype`: what products read
        self.bias = linear.bias
        self.path = path
        self.context = context
        self.hooks = hooks or ModuleHooks()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., in] whose flattened rows are sorted by run."""
        hooks, context = self.hooks, self.context
        rows = x.reshape(-1, x.shape[-1]).to(self.dtype)
        if hooks.input_scales:
            rows = _ScaleRuns.apply(rows, run_rows(1.0, hooks.input_scales, context), context)
        if not hooks.biases and not hooks.low_rank:
            y = F.linear(rows, self.weight, None if self.bias is None else self.bias.to(self.dtype))
        else:
            y = _BankedLinear.apply(rows, self.weight, self.run_bias(), context, self.uses(), *self.update_tensors())
        if hooks.output_scales:
            y = _ScaleRuns.apply(y, run_rows(1.0, hooks.output_scales, context), context)
        return y.view(*x.shape[:-1], -1)

    def run_bias(self) -> Tensor | None:
        """[R or 1, out] fp32; None where neither the layer nor a run has a bias."""
        if self.bias is None and not self.hooks.biases:
            return None
        return run_rows(0.0 if self.bias is None else self.bias, self.hooks.biases, self.context)

    def update_tensors(self) -> list[Tensor]:
        """What the uses of all updates take, in turn."""
        return [tensor for update in self.hooks.low_rank for tensor in update.tensors(self.weight)]

    def uses(self) -> list[Use]:
        """How each update is to be applied in this forward pass.

        All groups share the layer's site key, so a run's mask does not depend on which group it is in.
        """
        if not self.hooks.low_rank:
            return []
        context = self.context
        keys, site_key = context.row_keys, context.site(self.path + ".lora")
        uses = []
        for update in self.hooks.low_rank:
            drop = Drop(keys, site_key, update.dropout) if keys is not None and update.dropout > 0 else None
            uses.append(update.use(context.part(update.group.first, update.group.last), drop, self.weight))
        return uses


class PackedLayerNorm(nn.Module):
    """Layer normalization with a gain and bias of each run's own; in fp32, as its input and output are."""

    def __init__(self, norm: nn.LayerNorm, context: Context, hooks: ModuleHooks | None = None) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.shape = norm.normalized_shape
        self.eps = norm.eps
        self.context = context
        self.hooks = hooks or ModuleHooks()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., H] whose flattened rows are sorted by run."""
        biases, gains = self.hooks.biases, self.hooks.gains
        if not biases and not gains:
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        y = F.layer_norm(x, self.shape, None if gains else self.weight, None, self.eps).view(-1, x.shape[-1])
        if gains:
            y = _ScaleRuns.apply(y, run_rows(self.weight, gains, self.context), self.context)
        if biases or self.bias is not None:
            run_bias = run_rows(0.0 if self.bias is None else self.bias, biases, self.context)
            y = _AddRunRows.apply(y, run_bias, self.context)
        out: Tensor = y.view(x.shape)
        return out


def run_rows(frozen: Tensor | float, banks: Sequence[BankTensor], context: Context) -> Tensor:
    """[R, c] fp32: each run's own row where a bank has one, else the frozen one; [1, c] where no bank has one."""
    if isinstance(frozen, float):
        frozen = banks[0].value.new_full(banks[0].value.shape[1:], frozen)
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


def adapted(y: Tensor, adapters: Sequence[SerialAdapter], context: Context, onto: Tensor | None = None) -> Tensor:
    """What the runs' bottlenecks make of y [..., H], whose flattened rows are sorted by run, added to `onto` [..., H].

    Where `onto` is None, it is y.
    """
    rows = y.reshape(-1, y.shape[-1])
    base = rows if onto is None else onto.reshape(-1, y.shape[-1])
    bounds = context.segments.bounds
    pieces, done = [], 0
    for adapter in adapters:
        first, last = adapter.group.first, adapter.group.last
        part = context.part(first, last)
        group_rows = rows[bounds[first] : bounds[last]]
        hidden = group_rows.to(context.dtype)
        for weight, bias in ((adapter.down, adapter.down_bias), (adapter.up, adapter.up_bias)):
            if weight is adapter.up:
                hidden = ACT2FN[adapter.activation](hidden)
            hidden = _RunLinear.apply(hidden, weight.value, bias.value, part, context.kernels)
        pieces += [base[done : bounds[first]], base[bounds[first] : bounds[last]] + hidden.to(base.dtype)]
        done = bounds[last]
    return torch.cat([*pieces, base[done:]]).view(y.shape)


class _RunLinear(torch.autograd.Function):
    """x [n, in] of neighbouring runs, each multiplied by its own W [G, in, out], plus its own bias [G, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, segments: Segments, kernels: Kernels) -> Tensor:
        ctx.segments, ctx.kernels = segments, kernels
        ctx.save_for_backward(x, weight)
        y = x.new_zeros(len(x), weight.shape[2])
        kernels.unpad_add_(y, torch.bmm(kernels.pad(x, segments, None), weight.to(x.dtype)), segments, None)
        _add_run_rows_(y, bias, segments, kernels)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        segments, kernels = ctx.segments, ctx.kernels
        grad = grad.contiguous()
        outer = kernels.pad(grad, segments, None)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = x.new_zeros(x.shape)
            kernels.unpad_add_(grad_x, torch.bmm(outer, weight.to(x.dtype).mT), segments, None)
        grad_weight = torch.bmm(kernels.pad(x, segments, None).mT, outer).to(weight.dtype)
        return grad_x, grad_weight, kernels.segment_sums(grad, segments), None, None


class _BankedLinear(torch.autograd.Function):
    """One node for the frozen product, the run's bias and the updates of all groups.

    As separate autograd nodes these would each add a gradient of the size of x; here they add into one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        context: Context,
        uses: list[Use],
        *tensors: Tensor,
    ) -> Tensor:
        y = F.linear(x, weight)
        ctx.segments, ctx.kernels, ctx.uses = context.segments, context.kernels, uses
        pairs = list(with_tensors(uses, tensors))
        for use, own in pairs:
            if use.scales:
                use.add_(y, x, own, ctx.kernels)
        if bias is not None:
            _add_run_rows_(y, bias, ctx.segments, ctx.kernels)
        for use, own in pairs:
            if not use.scales:
                use.add_(y, x, own, ctx.kernels)
        ctx.save_for_backward(x, weight, *tensors, *(each for use in uses for each in use.kept))
        ctx.kept = [len(use.kept) for use in uses]
        for use in uses:
            use.kept = ()  # autograd lets go of what it holds as soon as the node is done
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *tensors = ctx.saved_tensors
        pairs = list(with_tensors(ctx.uses, tensors))
        kept = iter(tensors[sum(use.count for use in ctx.uses) :])
        for use, count in zip(ctx.uses, ctx.kept, strict=True):
            use.kept = tuple(islice(kept, count))
        grad = grad.contiguous()
        grad_bias = ctx.kernels.segment_sums(grad, ctx.segments) if ctx.needs_input_grad[2] else None
        if any(use.scales for use, _ in pairs):
            grad = grad.clone()  # others may hold it
        for use, own in pairs:
            use.scale_grad_(grad, own, ctx.kernels)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grads = [each for use, own in pairs for each in use.grads(grad, x, own, grad_x, ctx.kernels)]
        for use in ctx.uses:
            use.kept = ()
        return grad_x, None, grad_bias, None, None, *grads


class _AddRunRows(torch.autograd.Function):
    """x [n, c] plus each run's own row of [R or 1, c]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, context: Context) -> Tensor:
        ctx.segments, ctx.kernels = context.segments, context.kernels
        y = x.clone()
        _add_run_rows_(y, rows, ctx.segments, ctx.kernels)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if not ctx.needs_input_grad[1]:
            return grad, None, None
        return grad, ctx.kernels.segment_sums(grad.contiguous(), ctx.segments), None


class _ScaleRuns(torch.autograd.Function):
    """x [n, c] times each run's own row of [R, c]; padding rows stay finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, context: Context) -> Tensor:
        ctx.segments, ctx.kernels = context.segments, context.kernels
        ctx.save_for_backward(x, rows)
        return scale_runs_(x.clone(), rows, ctx.segments, ctx.kernels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, rows = ctx.saved_tensors
        grad_rows = None
        if ctx.needs_input_grad[1]:
            grad_rows = ctx.kernels.segment_sums((grad.to(rows.dtype) * x).contiguous(), ctx.segments)
        return scale_runs_(grad.clone(), rows, ctx.segments, ctx.kernels), grad_rows, None


def add_run_rows(x: Tensor, rows: Tensor, context: Context) -> Tensor:
    """X [n, c] plus each run's own row of [R or 1, c], with a gradient for both."""
    out: Tensor = _AddRunRows.apply(x, rows, context)
    return out


def _add_run_rows_(y: Tensor, run_bias: Tensor, segments: Segments, kernels: Kernels) -> None:
    """Y [n, c] += each run's row of [R or 1, c].

    On a CPU by slices: indexing by run is slower there by an order of magnitude. On a GPU every slice is a launch.
    """
    if len(run_bias) == 1:
        y += run_bias[0]
        return
    if kernels.fuses:
        y += run_bias[segments.runs]
        return
    for row, first, last in zip(run_bias, segments.bounds, segments.bounds[1:], strict=False):
        y[first:last] += row
