"""AdamW over banks: every run has its own learning rate, moments and gradient norm.

The arithmetic is torch's own fused AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), called on
each run's slices of the stacked tensors: what a run's update comes to does not depend on its pack, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from manytune.packing.bank import Bank, BankTensor, decays

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
    """AdamW with decoupled weight decay and gradient clipping, a run at a time over stacked tensors."""

    def __init__(
        self,
        bank: Bank,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
    ) -> None:
        """Start with zero moments.

        Args:
            bank: Whose trainable tensors are stepped; it may shrink between steps.
            betas: Decay of the mean and of the mean square of the gradient.
            epsilon: Added to the root of the mean square.
            weight_decay: Not applied to biases and norms.
            max_grad_norm: A run's gradient is scaled to at most this norm; 0 leaves it alone.
        """
        self.bank = bank
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self._buffers: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, learning_rates: Sequence[float]) -> None:
        """One update of every run with its own rate, from the gradients in the bank, which are then let go."""
        tensors = [t for t in self.bank.tensors if t.value.grad is not None]
        for tensor in tensors:
            if not tensor.moments:
                tensor.moments = _zero_moments(tensor)
        grads = {id(tensor): _stacked(tensor, self._dense(tensor)) for tensor in tensors}
        if self.max_grad_norm > 0:
            self._clip(tensors, grads, len(learning_rates))
        for run, rate in enumerate(learning_rates):
            held = [tensor for tensor in tensors if tensor.holds(run)]
            for decay in (True, False):
                chosen = [tensor for tensor in held if decays(tensor.name) is decay]
                self._update(chosen, grads, run, rate, self.weight_decay if decay else 0.0)
        for tensor in tensors:
            self._let_go(tensor)

    def _dense(self, tensor: BankTensor) -> Tensor:
        """The gradient, dense.

        That of an embedding comes sparse: few of its rows are in a batch, and filling a fresh dense tensor with
        zeros at every step took 15 % of full fine-tuning's time with MiniLM. It is written into a buffer that
        stays, of which only the rows in use are cleared again.
        """
        grad = tensor.value.grad
        assert grad is not None
        if not grad.is_sparse:
            return grad
        tensor.value.grad = grad = grad.coalesce()
        if id(tensor) not in self._buffers:
            self._buffers[id(tensor)] = torch.zeros_like(tensor.value)
        return self._buffers[id(tensor)].index_copy_(0, grad.indices()[0], grad.values())

    def _let_go(self, tensor: BankTensor) -> None:
        grad = tensor.value.grad
        if grad is not None and grad.is_sparse:
            self._buffers[id(tensor)].index_fill_(0, grad.indices()[0], 0.0)
        tensor.value.grad = None

    @torch.no_grad()
    def _update(
        self, tensors: list[BankTensor], grads: dict[int, Tensor], run: int, rate: float, weight_decay: float
    ) -> None:
        if not tensors:
            return
        rows = [run - tensor.group.first for tensor in tensors]
        adamw(
            [tensor.data(run) for tensor in tensors],
            [grads[id(tensor)][row] for tensor, row in zip(tensors, rows, strict=True)],
            [tensor.moments["mean"][row] for tensor, row in zip(tensors, rows, strict=True)],
            [tensor.moments["mean_square"][row] for tensor, row in zip(tensors, rows, strict=True)],
            [],
            [tensor.moments["steps"][row] for tensor, row in zip(tensors, rows, strict=True)],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=self.epsilon,
            maximize=False,
        )

    @torch.no_grad()
    def _clip(self, tensors: list[BankTensor], grads: dict[int, Tensor], runs: int) -> None:
        """Scale each run's gradient to at most `max_grad_norm`, as `torch.nn.utils.clip_grad_norm_` does."""
        if not tensors:
            return
        squares = torch.zeros(runs, device=tensors[0].value.device)
        for tensor in tensors:
            norms = grads[id(tensor)].flatten(1).norm(dim=1)
            squares[tensor.group.first : tensor.group.last] += norms.square()
        factors = (self.max_grad_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for tensor in tensors:
            grad = grads[id(tensor)]
            own = factors[tensor.group.first : tensor.group.last]
            grad.mul_(own.view(-1, *[1] * (grad.dim() - 1)))


def _stacked(tensor: BankTensor, value: Tensor) -> Tensor:
    return value if tensor.stacked else value[None]


def _zero_moments(tensor: BankTensor) -> dict[str, Tensor]:
    stacked = _stacked(tensor, tensor.value.detach())
    return {
        "mean": torch.zeros_like(stacked),
        "mean_square": torch.zeros_like(stacked),
        "steps": torch.zeros(len(stacked), device=stacked.device),
    }
