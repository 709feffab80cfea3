"""The end of a sub-layer in a layer of our own, where runs train gains or bottlenecks: by torch's autograd.

norm(residual + A(drop(y + bias))) stands between two products. Without gains and bottlenecks it is one kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manytune.packing.context import Context, dropped
from manytune.packing.dropout import Drop
from manytune.packing.hooks import ModuleHooks
from manytune.packing.linear import PackedLayerNorm, adapted, add_run_rows


class SubLayerEnd:
    """Dropout, bottlenecks behind it, the residual's sum, and the norm with all that runs train there."""

    def __init__(self, behind: ModuleHooks, norm: PackedLayerNorm, context: Context) -> None:
        """`behind` are the hooks behind the dropout."""
        self.behind, self.norm, self.context = behind, norm, context

    @property
    def is_needed(self) -> bool:
        """Whether a run trains what the kernels do not know."""
        hooks = self.norm.hooks
        return bool(self.behind.serial or hooks.serial or hooks.gains)

    def parameters(self) -> list[Tensor]:
        """What trains here, each stacked over the runs of its group."""
        hooks = self.norm.hooks
        networks = [(each.down, each.down_bias, each.up, each.up_bias) for each in (*self.behind.serial, *hooks.serial)]
        return [tensor.value for network in (hooks.gains, hooks.biases, *networks) for tensor in network]

    def forward(
        self, y: Tensor, bias: Tensor, residual: Tensor, drop: Drop | None, *, graph: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output [n, H] fp32 of y [n, H] and residual [n, H] fp32, and, with `graph`, what `backward` needs."""
        y, residual = y.detach().requires_grad_(graph), residual.detach().requires_grad_(graph)
        with torch.set_grad_enabled(graph):
            # In fp32, as in the kernel that does this for runs without gains and bottlenecks.
            h = add_run_rows(y.float(), bias.detach(), self.context)
            h = h if drop is None else dropped(h, drop, self.context.kernels)
            h = adapted(h, self.behind.serial, self.context) if self.behind.serial else h
            out: Tensor = self.norm(residual + h)
        return out.detach(), (out, residual, y)

    def backward(self, kept: tuple[Tensor, ...], grad: Tensor, grad_hidden: Tensor | None) -> tuple[Any, ...]:
        """Gradients of the residual [n, H] fp32, of y [n, H] in its dtype, and of each of `parameters`."""
        out, residual, y = kept
        total = grad if grad_hidden is None else grad + grad_hidden
        grad, *others = torch.autograd.grad(out, [residual, y, *self.parameters()], total)
        # A copy, because the kernels write into it, and where nothing is dropped it is that of y, too.
        return grad.clone(memory_format=torch.contiguous_format), *others
