"""Banks: the trainable parameters of a pack, stacked; the leading dimension is the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Adaptation", "Bank", "BankTensor", "Group", "HeadMode", "LoraAdapter", "Member", "TensorKind", "decays"]

TensorKind = Literal["backbone", "bias", "adapter", "head"]
HeadMode = Literal["full", "bias", "frozen"]


@dataclass(frozen=True)
class LoraAdapter:
    """Low-rank updates of some linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    y = x W + b + (alpha / rank) * drop(x) A B, with A [in, rank] and B [rank, out].

    Attributes:
        rank: r, the width of the update.
        alpha: Numerator of the scale.
        dropout: Probability that a channel of the adapter's input is dropped while training.
        targets: Paths of the adapted linear layers in the backbone.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Adaptation:
    """What one method trains, in terms that a bank can hold.

    Attributes:
        weights: Every backbone tensor trains in place (full fine-tuning).
        biases: Backbone biases that train, as (module path + ".bias").
        lora: The adapter, if there is one.
        head: Names of the head's tensors that train.
    """

    weights: bool = False
    biases: tuple[str, ...] = ()
    lora: LoraAdapter | None = None
    head: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """What the model needs to know of one run: its seed and what it trains."""

    seed: int
    adaptation: Adaptation


@dataclass
class Group:
    """Runs of a pack that lie next to each other and hold the same tensors: `first` to `last` - 1."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass
class BankTensor:
    """One tensor of every run of a group; it trains where `value.requires_grad` (a frozen head does not).

    Attributes:
        name: The tensor's name in the unpacked model (transformers' or peft's), the same for every run.
        kind: What a parameter count files it under.
        group: The runs that hold it.
        value: The parameter: [len(group), ...], or just [...] where `stacked` is False (a pack of one).
        stacked: Whether the leading dimension of `value` is the run.
        transposed: Whether the unpacked model holds the last two dimensions the other way round.
        moments: What the optimizer keeps of it, by name, with a leading dimension for the runs.
        low: `value` in the activations' dtype, which products read, and which then gets the gradient; the optimizer
            keeps it in step. None where products read `value` itself.
        touched_rows: What `touched` gives, once it has been asked for.
    """

    name: str
    kind: TensorKind
    group: Group
    value: nn.Parameter
    stacked: bool = True
    transposed: bool = False
    moments: dict[str, Tensor] = field(default_factory=dict)
    low: nn.Parameter | None = None
    touched_rows: Tensor | None = None

    @property
    def grad(self) -> Tensor | None:
        """The gradient of all micro-batches so far: in fp32, or that of `low` as it is where there was but one."""
        if self.low is None or self.low.grad is None:
            return self.value.grad
        if self.value.grad is None:
            return self.low.grad
        return self.value.grad + self.low.grad

    def collect_grad(self) -> None:
        """Add the gradient of `low` to that of `value`, so that several of them add up in fp32."""
        if self.low is not None and self.low.grad is not None:
            grad = self.low.grad.to(self.value.dtype)
            self.value.grad = grad if self.value.grad is None else self.value.grad.add_(grad)
            self.low.grad = None

    def forget_grad(self) -> None:
        """Let go of the gradient."""
        self.value.grad = None
        if self.low is not None:
            self.low.grad = None

    @property
    def touched(self) -> Tensor:
        """[rows] uint8 of a tensor of one run: 1 for the rows that ever had a gradient, as their moments tell."""
        if self.touched_rows is None:
            self.touched_rows = self.moments["mean_square"][0].flatten(1).any(1).to(torch.uint8)
        return self.touched_rows

    def stack(self, tensor: Tensor) -> Tensor:
        """A tensor shaped like `value`, with a leading dimension for the runs."""
        return tensor if self.stacked else tensor[None]

    def data(self, run: int) -> Tensor:
        """The tensor of one run of the pack, a view that shares memory with the bank."""
        return self.value.detach()[run - self.group.first] if self.stacked else self.value.detach()

    def get(self, run: int) -> Tensor:
        """A copy of one run's tensor on the CPU, oriented as in the unpacked model."""
        data = self.data(run)
        return (data.mT if self.transposed else data).to("cpu", torch.float32, copy=True).contiguous()

    def set(self, run: int, tensor: Tensor) -> None:
        """Overwrite one run's tensor with one oriented as in the unpacked model.

        Raises:
            ValueError: It has another shape.
        """
        own = self.data(run).mT if self.transposed else self.data(run)
        if tensor.shape != own.shape:
            raise ValueError(f"{self.name} has the shape {tuple(own.shape)}, not {tuple(tensor.shape)}")
        own.copy_(tensor)
        self._refresh_low()

    def overwrite(self, value: Tensor) -> None:
        """Overwrite the tensors of all runs with what has the shape of `value`."""
        self.value.detach().copy_(value)
        self._refresh_low()

    def _refresh_low(self) -> None:
        if self.low is not None:
            self.low.detach().copy_(self.value.detach())

    def holds(self, run: int) -> bool:
        """Whether this run of the pack has the tensor."""
        return self.group.first <= run < self.group.last


@dataclass
class Bank:
    """All trainable tensors of a pack."""

    groups: list[Group] = field(default_factory=list)
    tensors: list[BankTensor] = field(default_factory=list)

    def group(self, first: int, last: int) -> Group:
        """A new group of the runs `first` to `last` - 1."""
        self.groups.append(Group(first, last))
        return self.groups[-1]

    def add(self, tensor: BankTensor) -> BankTensor:
        """Take in a tensor."""
        self.tensors.append(tensor)
        return tensor

    def of(self, run: int) -> list[BankTensor]:
        """The tensors that one run of the pack holds."""
        return [tensor for tensor in self.tensors if tensor.holds(run)]

    def state(self, run: int) -> dict[str, Tensor]:
        """Copies of one run's tensors by name, on the CPU, oriented as in the unpacked model."""
        return {tensor.name: tensor.get(run) for tensor in self.of(run)}

    def load(self, run: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite one run's tensors.

        Raises:
            KeyError: `state` does not have exactly the names that the run holds.
            ValueError: One of its tensors has another shape.
        """
        tensors = {tensor.name: tensor for tensor in self.of(run)}
        if tensors.keys() != state.keys():
            raise KeyError(f"tensors that do not match: {sorted(tensors.keys() ^ state.keys())}")
        for name, tensor in tensors.items():
            tensor.set(run, state[name])

    def dump(self) -> dict[str, Tensor]:
        """All that training changes, on the CPU, as it is held: each tensor's value, moments and touched rows."""
        found: dict[str, Tensor] = {}
        for index, tensor in enumerate(self.tensors):
            parts = {"value": tensor.value.detach(), **tensor.moments}
            if tensor.touched_rows is not None:
                parts["touched"] = tensor.touched_rows
            found |= {f"{index}.{tensor.name}.{part}": data.cpu().contiguous() for part, data in parts.items()}
        return found

    def restore(self, found: Mapping[str, Tensor]) -> None:
        """Take over what `dump` gave of a bank of the same runs.

        Raises:
            ValueError: It is of another bank.
        """
        parts: list[dict[str, Tensor]] = [{} for _ in self.tensors]
        for key, data in found.items():
            index, _, rest = key.partition(".")
            name, _, part = rest.rpartition(".")
            if int(index) >= len(parts) or self.tensors[int(index)].name != name:
                raise ValueError(f"the bank does not hold {key}")
            parts[int(index)][part] = data
        for tensor, own in zip(self.tensors, parts, strict=True):
            value = own.pop("value", None)
            if value is None or value.shape != tensor.value.shape:
                raise ValueError(f"{tensor.name} is missing or has another shape")
            tensor.overwrite(value)
            touched = own.pop("touched", None)
            tensor.touched_rows = None if touched is None else touched.to(tensor.value.device)
            tensor.moments = {part: data.to(tensor.value.device) for part, data in own.items()}

    def collect_grads(self) -> None:
        """Make room for the gradients of another micro-batch of the same step."""
        for tensor in self.tensors:
            tensor.collect_grad()

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink to some runs of the pack, given by their present numbers in ascending order."""
        for tensor in self.tensors:
            if tensor.stacked:
                kept = [run - tensor.group.first for run in runs if tensor.holds(run)]
                tensor.value = nn.Parameter(tensor.value.detach()[kept], tensor.value.requires_grad)
                tensor.moments = {name: moment[kept] for name, moment in tensor.moments.items()}
        self.tensors = [t for t in self.tensors if any(t.holds(run) for run in runs)]
        for group in self.groups:
            first = sum(run < group.first for run in runs)
            last = sum(run < group.last for run in runs)
            group.first, group.last = first, last


_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decays(name: str) -> bool:
    """Whether weight decay applies to a tensor: not to biases and norms, by the name patterns of Trainer."""
    return _NO_DECAY.search(name.lower()) is None
