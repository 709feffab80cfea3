"""Updates that groups of runs add to the product of a linear layer: LoRA's, DoRA's and VeRA's.

An update is what a group trains; a use is that update in one forward pass and the backward pass that follows. Shape
letters are those of `layout.py`; n is the number of rows, G that of the runs of a group, m that of their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from manytune.packing.bank import BankTensor, Group
from manytune.packing.dropout import Drop
from manytune.packing.kernels import Kernels, LoraCall, Segments


@dataclass(eq=False)
class Use:
    """How a group's update is applied in one forward pass, to rows of x [n, in] and y [n, out] of all runs.

    `own` are the tensors of the update, `kept` what the backward pass needs of the forward pass. Rows of x, y and of
    gradients may be strided.
    """

    count: ClassVar[int] = 2  # of the update's tensors
    scales: ClassVar[bool] = False  # whether it also scales the frozen product, which must not have its bias yet
    segments: Segments  # the rows of each of its runs
    drop: Drop | None  # dropout of the update's input, keyed for the rows of all runs
    kept: tuple[Tensor, ...] = field(default=(), init=False)

    def add_(self, y: Tensor, x: Tensor, own: Sequence[Tensor], kernels: Kernels) -> None:
        """Add the update to y."""
        raise NotImplementedError

    def scale_grad_(self, grad: Tensor, own: Sequence[Tensor], kernels: Kernels) -> None:
        """Turn the gradient of y into that of the frozen product, in place, before that product's own backward."""

    def grads(
        self, grad: Tensor, x: Tensor, own: Sequence[Tensor], grad_x: Tensor | None, kernels: Kernels
    ) -> list[Tensor]:
        """The gradients of `own`, given what `scale_grad_` made of that of y; adds that of x to `grad_x`."""
        raise NotImplementedError

    @property
    def alone(self) -> Segments:
        """`segments`, counted from these runs' first row."""
        return replace(self.segments, first=0, own_offsets=None)

    @property
    def own_drop(self) -> Drop | None:
        """`drop`, keyed for these runs' rows alone."""
        return None if self.drop is None else replace(self.drop, keys=self.segments.of(self.drop.keys))


@dataclass(eq=False)
class LoraUse(Use):
    """y += scale * drop(x) A B, by A [G, in, r] and B [G, r, out]."""

    scale: Tensor  # [G], of each run

    def call(self, x: Tensor, a: Tensor, b: Tensor) -> LoraCall:
        """The update of this use's rows of x [n, in]."""
        return LoraCall(x, self.segments, self.drop, a, b, self.scale)

    def add_(self, y: Tensor, x: Tensor, own: Sequence[Tensor], kernels: Kernels) -> None:
        """See `Use`."""
        self.kept = (kernels.lora_(y, self.call(x, *own)),)

    def grads(
        self, grad: Tensor, x: Tensor, own: Sequence[Tensor], grad_x: Tensor | None, kernels: Kernels
    ) -> list[Tensor]:
        """See `Use`."""
        return [*kernels.lora_grad(grad, self.kept[0], self.call(x, *own), grad_x)]


@dataclass(eq=False)
class DoraUse(Use):
    """y += (g - 1) * drop(x) W + g * scale * drop(x) A B, by A, B and the gains g [G, out].

    Without dropout that is g times the whole product, so nothing but a multiplication of rows is added to LoRA's work.
    With it, drop(x) W is a product of its own, as in peft.
    """

    count = 3
    scales = True
    scale: Tensor  # [G], of each run
    weight: Tensor  # W [out, in]

    def call(self, x: Tensor, a: Tensor, b: Tensor) -> LoraCall:
        """The low-rank part over this use's rows of x [n, in] alone."""
        return LoraCall(x, self.segments, self.drop, a, b, self.scale).own()

    def add_(self, y: Tensor, x: Tensor, own: Sequence[Tensor], kernels: Kernels) -> None:
        """See `Use`; keeps drop(x) A and drop(x) (W + scale * A B) [m, out]."""
        a, b, gain = own
        rows, call = self.segments.of(y), self.call(x, a, b)
        if call.drop is None:
            inner = kernels.lora_(rows, call)
            whole = rows.clone()
            scale_runs_(rows, gain, call.segments, kernels)
        else:
            product = F.linear(kernels.drop(call.x.contiguous(), call.drop), self.weight)
            whole = product.clone()
            inner = kernels.lora_(whole, call)
            rows += scale_runs_(whole.clone(), gain, call.segments, kernels) - product
        self.kept = inner, whole

    def scale_grad_(self, grad: Tensor, own: Sequence[Tensor], kernels: Kernels) -> None:
        """See `Use`; notes the gradient of g."""
        inner, whole = self.kept
        rows, gain = self.segments.of(grad), own[2]
        self.kept = inner, kernels.segment_sums((rows.to(gain.dtype) * whole).contiguous(), self.alone)
        if self.drop is None:
            scale_runs_(rows, gain, self.alone, kernels)

    def grads(
        self, grad: Tensor, x: Tensor, own: Sequence[Tensor], grad_x: Tensor | None, kernels: Kernels
    ) -> list[Tensor]:
        """See `Use`."""
        a, b, gain = own
        call, rows = self.call(x, a, b), self.segments.of(grad)
        grad_x = None if grad_x is None else self.segments.of(grad_x)
        scaled = rows
        if call.drop is not None:
            scaled = scale_runs_(rows.clone(), gain, call.segments, kernels)
            if grad_x is not None:
                grad_x += kernels.drop((scaled - rows) @ self.weight, call.drop)
        inner, grad_gain = self.kept
        return [*kernels.lora_grad(scaled, inner, call, grad_x), grad_gain]


@dataclass(eq=False)
class VeraUse(Use):
    """y += lambda_b * ((lambda_d * (drop(x) A)) B), by the vectors lambda_b [G, out] and lambda_d [G, r]."""

    a: Tensor  # A [r, in], frozen
    b: Tensor  # B [out, r], frozen

    def add_(self, y: Tensor, x: Tensor, own: Sequence[Tensor], kernels: Kernels) -> None:
        """See `Use`; keeps drop(x) A [m, r] and what lambda_b multiplies [m, out]."""
        lambda_b, lambda_d = own
        rows, segments, drop = self.segments.of(x), self.alone, self.own_drop
        inner = F.linear(rows if drop is None else kernels.drop(rows.contiguous(), drop), self.a)
        update = F.linear(scale_runs_(inner.clone(), lambda_d, segments, kernels), self.b)
        self.kept = inner, update
        self.segments.of(y).add_(scale_runs_(update.clone(), lambda_b, segments, kernels))

    def grads(
        self, grad: Tensor, x: Tensor, own: Sequence[Tensor], grad_x: Tensor | None, kernels: Kernels
    ) -> list[Tensor]:
        """See `Use`."""
        (lambda_b, lambda_d), (inner, update) = own, self.kept
        rows, segments, drop = self.segments.of(grad), self.alone, self.own_drop
        grad_b = kernels.segment_sums((rows.to(lambda_b.dtype) * update).contiguous(), segments)
        grad_scaled = scale_runs_(rows.clone(), lambda_b, segments, kernels) @ self.b
        grad_d = kernels.segment_sums((grad_scaled.to(lambda_d.dtype) * inner).contiguous(), segments)
        if grad_x is not None:
            found = scale_runs_(grad_scaled, lambda_d, segments, kernels) @ self.a
            self.segments.of(grad_x).add_(found if drop is None else kernels.drop(found, drop))
        return [grad_b, grad_d]


@dataclass
class LowRankUpdate:
    """The update that one group of runs adds to one linear layer's output: LoRA's, or with a magnitude DoRA's."""

    a: BankTensor  # [G, in, rank]
    b: BankTensor  # [G, rank, out]
    scale: Tensor  # [G], of each run
    dropout: float  # probability that a channel of the update's input is dropped while training
    magnitude: BankTensor | None = None  # [G, out], the trained norms of the output channels' weights

    @property
    def group(self) -> Group:
        """The runs that make the update."""
        return self.a.group

    @property
    def can_be_recorded(self) -> bool:
        """Whether its uses read nothing of a batch on the host but `Plan.shape`."""
        return self.magnitude is None

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink to some runs, given by their present numbers, before the bank shrinks."""
        self.scale = self.scale[[run - self.group.first for run in runs if self.a.holds(run)]]

    def tensors(self, weight: Tensor) -> list[Tensor]:
        """What a use of the update takes as `own`; `weight` [out, in] is the frozen one."""
        a, b = self.a.value, self.b.value
        gains = [] if self.magnitude is None else [self.magnitude.value / norms(weight, a, b, self.scale)]
        return [a, b, *gains]

    def use(self, segments: Segments, drop: Drop | None, weight: Tensor) -> Use:
        """The update in one forward pass."""
        if self.magnitude is None:
            return LoraUse(segments, drop, self.scale)
        return DoraUse(segments, drop, self.scale, weight)

    def of_run(self, run: int, x: Tensor, weight: Tensor) -> Tensor:
        """[..., out]: what one run's update adds to the layer's output, given drop(x) [..., in]."""
        index = run - self.group.first
        a, b, scale = self.a.of_run(run), self.b.of_run(run), self.scale[index]
        update = x @ a @ b * scale
        if self.magnitude is None:
            return update
        gain = self.magnitude.of_run(run) / norms(weight, a[None], b[None], scale[None])[0]
        return (gain - 1) * F.linear(x, weight) + gain * update


@dataclass
class SharedUpdate:
    """VeRA's update of one linear layer's output by one group of runs."""

    lambda_b: BankTensor  # [G, out]
    lambda_d: BankTensor  # [G, rank]
    a: Tensor  # [rank, in], frozen and shared by all groups of its seed and rank
    b: Tensor  # [out, rank], likewise
    dropout: float  # probability that a channel of the update's input is dropped while training

    @property
    def group(self) -> Group:
        """The runs that make the update."""
        return self.lambda_b.group

    @property
    def can_be_recorded(self) -> bool:
        """Whether its uses read nothing of a batch on the host but `Plan.shape`."""
        return False

    def keep(self, runs: Sequence[int]) -> None:
        """Nothing: the bank shrinks the vectors."""

    def tensors(self, weight: Tensor) -> list[Tensor]:
        """What a use of the update takes as `own`."""
        return [self.lambda_b.value, self.lambda_d.value]

    def use(self, segments: Segments, drop: Drop | None, weight: Tensor) -> Use:
        """The update in one forward pass."""
        return VeraUse(segments, drop, self.a, self.b)

    def of_run(self, run: int, x: Tensor, weight: Tensor) -> Tensor:
        """[..., out]: what one run's update adds to the layer's output, given drop(x) [..., in]."""
        return self.lambda_b.of_run(run) * F.linear(self.lambda_d.of_run(run) * F.linear(x, self.a), self.b)


Update = LowRankUpdate | SharedUpdate


def with_tensors(uses: Sequence[Use], tensors: Sequence[Tensor]) -> Iterator[tuple[Use, Sequence[Tensor]]]:
    """Each use with its own tensors, of those of all uses in turn."""
    first = 0
    for use in uses:
        yield use, tensors[first : first + use.count]
        first += use.count


def row_norms(weight: Tensor) -> Tensor:
    """[out] fp32: the norm of each row of a weight [out, in]."""
    found: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.promote_types(weight.dtype, torch.float32))
    return found


@torch.no_grad()
def norms(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """[G, out]: the norm of each output channel's weights W + scale * A B, of each run; no gradient passes.

    |w + s u|² = |w|² + 2 s w·u + s² |u|² for each channel, where w·u and |u|² are sums over the rank: so A B, which is
    as large as W for each run, is never formed, and W is multiplied once for all runs.
    """
    runs, inputs, rank = a.shape
    side_by_side = a.transpose(0, 1).reshape(inputs, runs * rank)
    product = (weight @ side_by_side.to(weight.dtype)).to(b.dtype).view(-1, runs, rank)  # W A: [out, G, r]
    across = (product.permute(1, 2, 0) * b).sum(1)  # [G, out]
    squares = ((a.mT @ a) @ b * b).sum(1)  # [G, out]
    scale = scale[:, None]
    found = row_norms(weight).square() + 2 * scale * across + scale.square() * squares
    return found.clamp_min(torch.finfo(found.dtype).tiny).sqrt()


def scale_runs_(x: Tensor, rows: Tensor, segments: Segments, kernels: Kernels) -> Tensor:
    """Multiply the rows of each run of x [m, c] by the run's own row of [G, c], in place; returns x."""
    if kernels.fuses:  # every slice is a launch
        return x.mul_(rows[segments.runs])
    for row, first, last in zip(rows, segments.bounds, segments.bounds[1:], strict=False):
        x[first:last] *= row
    return x
