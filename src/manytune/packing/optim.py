"""AdamW over banks: every run has its own learning rate, moments and gradient norm.

A kernel does the arithmetic (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101). The other runs of a pack do
not change a run's update, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch

from manytune.packing.bank import Bank, BankTensor
from manytune.packing.kernels import AdamWStep, AdamWTensor, Kernels

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
    """AdamW with decoupled weight decay and gradient clipping: each run as if it were alone."""

    bank: Bank  # its trainable tensors are updated; it may shrink between steps
    kernels: Kernels  # they do the arithmetic
    _: KW_ONLY
    # decay of `exp_avg` and of `exp_avg_sq`, the running means of the gradient and of its square
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8  # added to the root of `exp_avg_sq`
    weight_decay: float = 0.0  # not applied to biases and norms, see `decays`
    max_grad_norm: float = 0.0  # A run's gradient is scaled down to this norm if it is larger; 0 for no limit
    steps: int = 0  # updates so far, for the correction of the moments' bias

    @torch.no_grad()
    def step(self, learning_rates: Sequence[float]) -> None:
        """Update every run with its own rate from the gradients in the bank, which are then freed."""
        self.steps += 1
        tensors = [found for found in map(_adamw_tensor, self.bank.tensors) if found is not None]
        step = AdamWStep(self.steps, learning_rates, self.betas, self.epsilon, self.weight_decay, self.max_grad_norm)
        if tensors:
            self.kernels.adamw_(tensors, step)
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
    exp_avg, exp_avg_sq = tensor.moments["exp_avg"], tensor.moments["exp_avg_sq"]
    return AdamWTensor(tensor.group.first, value, grad, exp_avg, exp_avg_sq, copy, bool(tensor.decays), touched)
