"""LoRA's products as batched matrix products over the runs, each padded to the rows of the longest one."""

from __future__ import annotations

import torch
from torch import Tensor

from manytune.packing.kernels.base import Kernels, LoraCall


def padded_lora(kernels: Kernels, y: Tensor, call: LoraCall) -> Tensor:
    """See `Kernels.lora_`; returns drop(x) A, [G, longest, r]."""
    y = call.segments.of(y)
    call = call.own()
    x, segments = call.x, call.segments
    xa = torch.bmm(kernels.pad(x, segments, call.drop), call.a.to(x.dtype))
    update = torch.bmm(xa, (call.b * call.scale[:, None, None]).to(x.dtype))
    kernels.unpad_add_(y, update, segments, None)
    return xa


def padded_lora_grad(
    kernels: Kernels, grad: Tensor, xa: Tensor, call: LoraCall, grad_x: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `Kernels.lora_grad`."""
    grad, grad_x = call.segments.of(grad), None if grad_x is None else call.segments.of(grad_x)
    call = call.own()
    x, segments, a, b = call.x, call.segments, call.a, call.b
    factor = call.scale[:, None, None]
    inputs, outer = kernels.pad(x, segments, call.drop), kernels.pad(grad, segments, None)
    grad_xa = torch.bmm(outer, (b * factor).to(x.dtype).mT)
    grad_a = torch.bmm(inputs.mT, grad_xa).to(a.dtype)
    grad_b = torch.bmm(xa.mT, outer).to(b.dtype) * factor
    if grad_x is not None:
        kernels.unpad_add_(grad_x, torch.bmm(grad_xa, a.to(x.dtype).mT), segments, call.drop)
    return grad_a, grad_b
