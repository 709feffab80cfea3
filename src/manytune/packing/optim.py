"""AdamW over banks: every run has its own learning rate, moments and gradient norm.

The arithmetic (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) is a kernel's. What a run's update comes
to does not depend on its pack, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from manytune.packing.bank import Bank, BankTensor, decays
from manytune.packing.kernels import Kernels, Step, Stepped

__all__ = ["SCHEDULES", "PackedAdamW", "schedule_factor"]


def _linear(progress: float) -> float:
    return max(0.0, 1.0 - progress)


def _constant(_: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": _linear, "constant": _constant, "cosine": _cosine}
"""Share of the peak learning rate, by the progress (0 to 1) from the end of the warm-up to the last step."""


def schedule_factor(schedule: str, step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate for the update number `step` (from 0), as transformers' schedulers.

    During the warm-up it is step / warmup, so that the first update of all has rate 0.
    """
    if step < warmup:
        return step / max(1, warmup)
    return SCHEDULES[schedule]((step - warmup) / max(1, total - warmup))


class PackedAdamW:
    """AdamW with decoupled weight decay and gradient clipping: each run as if it were alone."""

    def __init__(
        self,
        bank: Bank,
        kernels: Kernels,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
    ) -> None:
        """Start with zero moments.

        Args:
            bank: Whose trainable tensors are stepped; it may shrink between steps.
            kernels: To work with.
            betas: Decay of the mean and of the mean square of the gradient.
            epsilon: Added to the root of the mean square.
            weight_decay: Not applied to biases and norms.
            max_grad_norm: A run's gradient is scaled to at most this norm; 0 leaves it alone.
        """
        self.bank = bank
        self.kernels = kernels
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.steps = 0

    @torch.no_grad()
    def step(self, learning_rates: Sequence[float]) -> None:
        """One update of every run with its own rate, from the gradients in the bank, which are then let go."""
        self.steps += 1
        tensors = [stepped for stepped in map(_stepped, self.bank.tensors) if stepped is not None]
        step = Step(self.steps, learning_rates, self.betas, self.epsilon, self.weight_decay, self.max_grad_norm)
        if tensors:
            self.kernels.adamw_(tensors, step)
        for tensor in self.bank.tensors:
            tensor.forget_grad()


def _stepped(tensor: BankTensor) -> Stepped | None:
    """What the kernel needs of a tensor; None where it has no gradient."""
    grad = tensor.grad
    if grad is None:
        return None
    value = tensor.stack(tensor.value.detach())
    if not tensor.moments:
        tensor.moments = {"mean": torch.zeros_like(value), "mean_square": torch.zeros_like(value)}
    touched = None
    if grad.is_sparse:
        grad = grad.coalesce()
        touched = tensor.touched
    else:
        grad = tensor.stack(grad).contiguous()
    low = None if tensor.low is None else tensor.stack(tensor.low.detach())
    moments = tensor.moments
    return Stepped(
        tensor.group.first, value, grad, moments["mean"], moments["mean_square"], low, decays(tensor.name), touched
    )
