"""The kernels in plain torch, which define what every other set computes; used where no other set can be."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

from manytune.packing.buckets import attend
from manytune.packing.dropout import Drop, dropout_scale
from manytune.packing.kernels.base import (
    AdamWTensor,
    AdamWUpdate,
    AttentionCall,
    LoraCall,
    NormCall,
    Segments,
    UnrecordedKernels,
)
from manytune.packing.kernels.batched_lora import padded_lora, padded_lora_grad


class ReferenceKernels(UnrecordedKernels):
    """See `Kernels` for what each function computes."""

    name = "plain"
    lanes = 0
    multiplies = False

    def attention(self, call: AttentionCall) -> Tensor:
        return _attention(call, call.q, call.k, call.v)

    def attention_grad(
        self, call: AttentionCall, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, *, of_positions: bool = False
    ) -> Tensor | None:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (call.q, call.k, call.v)]
            if of_positions and call.position_bias is not None:
                inputs.append(call.position_bias.detach().requires_grad_())
                call = replace(call, position_bias=inputs[-1])
            out = _attention(call, *inputs[:3])
        found = torch.autograd.grad(out, inputs, grad)
        for to, part in zip((dq, dk, dv), found, strict=False):
            to.copy_(part)
        return found[3] if len(found) > 3 else None

    def residual_norm(
        self, y: Tensor, bias: Tensor, residual: Tensor, norm: NormCall
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        runs = norm.segments.runs
        z = residual + _dropped(y.float() + _rows(bias, runs), norm.drop)
        centred = z - z.mean(1, keepdim=True)
        rstd = (centred.square().mean(1) + norm.epsilon).rsqrt()
        normed = centred * rstd[:, None]
        out = normed * norm.weight + _rows(norm.bias, runs)
        # Copied in fp32 too: two outputs of an autograd node must not be the same tensor.
        return out, out.to(y.dtype, copy=True), normed, rstd

    def residual_norm_grad(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, rstd: Tensor, norm: NormCall, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        g = _total(grad, grad_hidden) * norm.weight
        slope = (g * normed).mean(1, keepdim=True)
        dz = (g - g.mean(1, keepdim=True) - normed * slope) * rstd[:, None]
        return dz, _dropped(dz, norm.drop).to(dtype)

    def norm_sums(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        total = _total(grad, grad_hidden)
        return self.segment_sums(total, segments), self.segment_sums(total * normed, segments)

    def segment_sums(self, x: Tensor, segments: Segments) -> Tensor:
        # Each run's rows are sliced: by products with a mask, a neighbour's NaN would enter every sum.
        rows = x[: segments.bounds[-1]]
        if x.device.type == "cpu":  # segment_reduce takes five times as long there
            parts = rows.split(segments.counts.tolist())
            return torch.stack([part.sum(0, dtype=torch.float32) for part in parts])
        return _reduced(rows, segments)

    def gelu(self, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        return F.gelu(x.float() + _rows(bias, segments.runs)).to(x.dtype)

    def gelu_grad_(self, grad: Tensor, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        u = x.float() + _rows(bias, segments.runs)
        slope = 0.5 * (1 + torch.erf(u / math.sqrt(2))) + u * torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
        return grad.mul_(slope)

    def pad(self, x: Tensor, segments: Segments, drop: Drop | None) -> Tensor:
        padded = x.new_zeros(len(segments), segments.longest, x.shape[1])
        padded[segments.runs, segments.within] = _dropped(x, drop)
        return padded

    def unpad_add_(self, y: Tensor, padded: Tensor, segments: Segments, drop: Drop | None) -> None:
        y += _dropped(padded[segments.runs, segments.within], drop)

    def lora_(self, y: Tensor, call: LoraCall) -> Tensor:
        return padded_lora(self, y, call)

    def lora_grad(self, grad: Tensor, xa: Tensor, call: LoraCall, grad_x: Tensor | None) -> tuple[Tensor, Tensor]:
        return padded_lora_grad(self, grad, xa, call, grad_x)

    def drop(self, x: Tensor, drop: Drop) -> Tensor:
        return _dropped(x, drop)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(x, weight.t())

    def product_grad(self, grad: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(grad, weight)

    def weight_grad(self, grad: Tensor, x: Tensor) -> Tensor:
        return torch.mm(grad.t(), x)

    def adamw_(
        self,
        tensors: Sequence[AdamWTensor],
        updates: Sequence[AdamWUpdate],
        settings: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> None:
        # torch's own fused AdamW takes one rate a call: one call for all slices of runs that have the same update.
        grads = [(t.grad.to_dense()[None] if t.grad.is_sparse else t.grad).float() for t in tensors]
        if any(update.max_grad_norm > 0 for update in updates):
            _clip_(tensors, grads, updates)
        slices: defaultdict[tuple[AdamWUpdate, bool], list[tuple[Tensor, ...]]] = defaultdict(list)
        for tensor, grad in zip(tensors, grads, strict=True):
            own, counts = _stretches(_with_rates(updates[tensor.first : tensor.first + len(grad)], tensor), grad.device)
            whole = (tensor.value, grad, tensor.exp_avg, tensor.exp_avg_sq)
            for update, *part in zip(own, *(x.split(counts) for x in whole), strict=True):
                slices[update, tensor.decays].append(tuple(part))
        for (update, decay), parts in slices.items():
            before = torch.full((len(parts),), update.number - 1.0, device=parts[0][0].device)
            values, slopes, exp_avgs, exp_avg_sqs = map(list, zip(*parts, strict=True))
            options: dict[str, Any] = {"lr": update.rate, "weight_decay": update.weight_decay if decay else 0.0}
            options |= {"beta1": update.betas[0], "beta2": update.betas[1], "eps": update.epsilon}
            options |= {"fused": True, "amsgrad": False, "maximize": False}
            adamw(values, slopes, exp_avgs, exp_avg_sqs, [], list(before.unbind()), **options)
        for tensor in tensors:
            if tensor.value_bf16 is not None:
                tensor.value_bf16.copy_(tensor.value)


def _with_rates(updates: Sequence[AdamWUpdate], tensor: AdamWTensor) -> Sequence[AdamWUpdate]:
    """The updates of a tensor's runs, with its own learning rates."""
    if tensor.rates is None:
        return updates
    return [replace(each, rate=each.rate * rate) for each, rate in zip(updates, tensor.rates.tolist(), strict=True)]


def _stretches(updates: Sequence[AdamWUpdate], device: torch.device) -> tuple[list[AdamWUpdate], list[int]]:
    """Neighbouring runs of one update, which are stepped as one slice: the updates, and how many runs have each.

    On a CPU every run is a slice of its own. There torch rounds the last elements of a tensor, which fill no vector,
    in another way than the others, and what a run's update comes to must not depend on its pack.
    """
    if device.type == "cpu":
        return list(updates), [1] * len(updates)
    found = [(update, len(list(runs))) for update, runs in groupby(updates)]
    return [update for update, _ in found], [count for _, count in found]


def _clip_(tensors: Sequence[AdamWTensor], grads: Sequence[Tensor], updates: Sequence[AdamWUpdate]) -> None:
    """Scale each run's gradient, as `torch.nn.utils.clip_grad_norm_` does."""
    squares = torch.zeros(len(updates), device=grads[0].device)
    for tensor, grad in zip(tensors, grads, strict=True):
        squares[tensor.first : tensor.first + len(grad)] += grad.flatten(1).norm(dim=1).square()
    most = torch.tensor([update.max_grad_norm or math.inf for update in updates], device=squares.device)
    factors = (most / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for tensor, grad in zip(tensors, grads, strict=True):
        run_factors = factors[tensor.first : tensor.first + len(grad)]
        grad.mul_(run_factors.view(-1, *[1] * (grad.dim() - 1)))


def _attention(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    layout = call.layout
    biases = call.bias.chunk(3, 1)
    runs = layout.token_run
    if call.first_only:  # queries of every token, zeros but for the first ones, whose outputs alone are used
        q = q.new_zeros(k.shape).index_copy(0, layout.starts, q)
    q, k, v = (x + _rows(b, runs).to(x.dtype) for x, b in zip((q, k, v), biases, strict=True))
    out = attend(q, k, v, layout, call.heads, call.scale, call.drop, position_bias=call.position_bias)
    return out.index_select(0, layout.starts) if call.first_only else out


def _reduced(rows: Tensor, segments: Segments) -> Tensor:
    """[R, c] fp32: the sums of the runs' rows in one operation; on a GPU each operation is a launch."""
    return torch.segment_reduce(rows.float(), "sum", lengths=segments.counts, unsafe=True)


def _rows(by_run: Tensor, runs: Tensor) -> Tensor:
    """[R or 1, c] → [n or 1, c]."""
    return by_run if len(by_run) == 1 else by_run[runs]


def _dropped(x: Tensor, drop: Drop | None) -> Tensor:
    if drop is None:
        return x
    # In fp32, then rounded: 1 / (1 - p) rounded to bf16 would be off for every element by the same factor.
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x * dropout_scale(drop.keys, drop.site, x.shape[1], drop.p, dtype)).to(x.dtype)


def _total(grad: Tensor, grad_hidden: Tensor | None) -> Tensor:
    return grad if grad_hidden is None else grad + grad_hidden
