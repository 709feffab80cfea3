"""AdamW over banks: every run has its own learning rate, moments and gradient norm.

A kernel does the arithmetic (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101). The other runs of a pack do
not change a run's update, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manytune.packing.bank import Bank, BankTensor
from manytune.packing.kernels import AdamWTensor, AdamWUpdate, Kernels

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: max(0.0, 1.0 - progress),
    "constant": lambda _: 1.0,
    "cosine": lambda progress: max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress))),
}
"""Share of the peak learning rate, by the progress (0 to 1) from the end of the warm-up to the last step."""


def schedule_factor(schedule: str, step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate for the update number `step` (from 0), as in transformers' schedulers.

    During the warm-up it is step / warmup, so the first update has rate 0.
    """
    if step < warmup:
        return step / max(1, warmup)
    return SCHEDULES[schedule]((step - warmup) / max(1, total - warmup))


@dataclass
class PackedAdamW:
    """AdamW with decoupled weight decay and gradient clipping: each run as if it were alone.

    The moments are in the bank, and the number of a run's step comes with its update: so runs may join and leave.
    """

    bank: Bank  # its trainable tensors are updated; runs may join and leave it between steps
    kernels: Kernels  # they do the arithmetic

    @torch.no_grad()
    def step(self, updates: Sequence[AdamWUpdate], settings: Tensor | None = None, alive: Tensor | None = None) -> None:
        """Update every run of the bank in its own way from the gradients there, which are then freed.

        `settings` and `alive` are those of `Kernels.adamw_`.
        """
        tensors = [found for found in map(_adamw_tensor, self.bank.tensors) if found is not None]
        if tensors:
            self.kernels.adamw_(tensors, updates, settings, alive)
        for tensor in self.bank.tensors:
            tensor.forget_grad()


def _adamw_tensor(tensor: BankTensor) -> AdamWTensor | None:
    """What the kernel needs of a tensor; None where it has no gradient."""
    grad = tensor.grad
    if grad is None:
        return None
    value = tensor.stack(tensor.value.detach())
    if not tensor.moments:  # made at the first step: tensors that do not train need none
        tensor.moments = {"exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
    touched = None
    if grad.is_sparse:
        grad, touched = grad.coalesce(), tensor.touched
    else:
        grad = tensor.stack(grad).contiguous()
    copy = None if tensor.compute_copy is None else tensor.stack(tensor.compute_copy.detach())
    state = (tensor.group.first, value, grad, tensor.moments["exp_avg"], tensor.moments["exp_avg_sq"])
    return AdamWTensor(*state, copy, bool(tensor.decays), touched, tensor.rates)
