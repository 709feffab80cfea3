"""Banks: the trainable parameters of a pack, stacked; the leading dimension is the run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor, nn

from manytune.methods.adaptation import Adaptation, TensorKind

_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def multiples(rates: Sequence[float]) -> Tensor | None:
    """`BankTensor.rates` of runs whose learning rates are multiplied so; None where none is."""
    return None if all(rate == 1 for rate in rates) else torch.tensor(rates, dtype=torch.float64)


def decays(name: str) -> bool:
    """Whether weight decay applies to a tensor of this name: not to biases and norms, as Trainer tells them."""
    return _NO_DECAY.search(name.lower()) is None


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
    """One tensor of every run of a group; it trains where `value.requires_grad` (a frozen head does not)."""

    name: str  # the tensor's name in the unpacked model (transformers' or peft's), the same for every run
    kind: TensorKind  # the part of a parameter count that it belongs to
    group: Group  # the runs that hold it
    value: nn.Parameter  # the parameter: [len(group), ...], or just [...] where `stacked` is False (a pack of one)
    stacked: bool = True  # whether the leading dimension of `value` is the run
    transposed: bool = False  # whether the unpacked model holds the last two dimensions the other way round
    # what the optimizer keeps of it, by name, with a leading dimension for the runs
    moments: dict[str, Tensor] = field(default_factory=dict)
    decays: bool | None = None  # whether weight decay applies; unless given, the name says
    # `value` in the activations' dtype, which products read, and which then gets the gradient; the optimizer keeps it
    # in step. None where products read `value` itself.
    compute_copy: nn.Parameter | None = None
    touched_rows: Tensor | None = None  # the value of `touched`, once computed
    # [G] fp64 on the CPU: its learning rate as a multiple of its runs'; None: it is theirs
    rates: Tensor | None = None

    def __post_init__(self) -> None:
        if self.decays is None:
            self.decays = decays(self.name)

    @property
    def grad(self) -> Tensor | None:
        """The gradient of all micro-batches so far, in fp32; of a single one, that of `compute_copy` as it is."""
        if self.compute_copy is None or self.compute_copy.grad is None:
            return self.value.grad
        if self.value.grad is None:
            return self.compute_copy.grad
        return self.value.grad + self.compute_copy.grad

    def collect_grad(self) -> None:
        """Add the gradient of `compute_copy` to that of `value`, so that several of them add up in fp32."""
        if self.compute_copy is not None and self.compute_copy.grad is not None:
            grad = self.compute_copy.grad.to(self.value.dtype)
            self.value.grad = grad if self.value.grad is None else self.value.grad.add_(grad)
            self.compute_copy.grad = None

    def forget_grad(self) -> None:
        """Free the gradient."""
        self.value.grad = None
        if self.compute_copy is not None:
            self.compute_copy.grad = None

    @property
    def touched(self) -> Tensor:
        """[rows] uint8 of a tensor of one run: 1 for the rows that ever had a gradient, which their moments show."""
        if self.touched_rows is None:
            self.touched_rows = self.moments["exp_avg_sq"][0].flatten(1).any(1).to(torch.uint8)
        return self.touched_rows

    def stack(self, tensor: Tensor) -> Tensor:
        """A tensor shaped like `value`, with a leading dimension for the runs."""
        return tensor if self.stacked else tensor[None]

    def data(self, run: int) -> Tensor:
        """The tensor of one run of the pack, a view that shares memory with the bank."""
        return self.of_run(run).detach()

    def of_run(self, run: int) -> Tensor:
        """The tensor of one run of the pack, a view that gradients flow through."""
        return self.value[run - self.group.first] if self.stacked else self.value

    def get(self, run: int) -> Tensor:
        """A copy of one run's tensor on the CPU, oriented as in the unpacked model."""
        return self._oriented(self.data(run)).to("cpu", torch.float32, copy=True).contiguous()

    def set(self, run: int, tensor: Tensor) -> None:
        """Overwrite one run's tensor with one oriented as in the unpacked model; a ValueError for another shape."""
        self._copy(self._oriented(self.data(run)), tensor)
        if self.compute_copy is not None:
            self.compute_copy.detach().copy_(self.value.detach())

    def _oriented(self, tensor: Tensor) -> Tensor:
        """A view of tensors of the bank as the unpacked model holds them."""
        return tensor.mT if self.transposed else tensor

    def _copy(self, target: Tensor, tensor: Tensor) -> None:
        if tensor.shape != target.shape:  # copy_ would broadcast it
            raise ValueError(f"{self.name} has the shape {tuple(target.shape)}, not {tuple(tensor.shape)}")
        target.copy_(tensor)

    def dump(self) -> dict[str, Tensor]:
        """What training changes, on the CPU, with a leading dimension for the runs; it may share memory with the bank.

        Returns `value` and the optimizer's moments by name, oriented as in the unpacked model; `touched`, [1, rows], if
        rows have been.
        """
        stacked = {"value": self.stack(self.value.detach()), **self.moments}
        parts = {part: self._oriented(data).cpu().contiguous() for part, data in stacked.items()}
        if self.touched_rows is not None:
            parts["touched"] = self.touched_rows[None].cpu()
        return parts

    def restore(self, run: int, parts: Mapping[str, Tensor]) -> None:
        """Take over what `dump` gave of one run's tensor, without the leading dimension; the bank may be another one.

        Raises a ValueError where a part has another shape, or there is no value.
        """
        if "value" not in parts:
            raise ValueError(f"{self.name} has no value")
        self.set(run, parts["value"])
        for part, data in parts.items():
            if part == "touched":
                self.touched_rows = data.to(self.value.device)
            elif part != "value":
                if part not in self.moments:
                    self.moments[part] = torch.zeros_like(self.stack(self.value.detach()))
                self._copy(self._oriented(self.moments[part][run - self.group.first]), data)

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
        """Add a tensor; returns it."""
        self.tensors.append(tensor)
        return tensor

    def of(self, run: int) -> list[BankTensor]:
        """The tensors that one run of the pack holds."""
        return [tensor for tensor in self.tensors if tensor.holds(run)]

    def state(self, run: int) -> dict[str, Tensor]:
        """Copies of one run's tensors by name, on the CPU, oriented as in the unpacked model."""
        return {tensor.name: tensor.get(run) for tensor in self.of(run)}

    def load(self, run: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite one run's tensors; raises what `restore` raises."""
        self.restore(run, {name: {"value": tensor} for name, tensor in state.items()})

    def dump(self) -> dict[str, Tensor]:
        """All that training changes, by `<first>-<last>/<part>/<name>`: see `BankTensor.dump`.

        Neighbouring runs are stacked, the runs `first` to `last` - 1 of the bank: there are many small tensors, and
        writing each costs more than its bytes.
        """
        return {
            f"{tensor.group.first}-{tensor.group.last}/{part}/{tensor.name}": data
            for tensor in self.tensors
            for part, data in tensor.dump().items()
        }

    def restore(self, run: int, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `run_of_dump` found of one run, in whatever bank it was.

        Raises:
            KeyError: It does not have exactly the names that the run holds.
            ValueError: A part has another shape, or there is no value.
        """
        tensors = {tensor.name: tensor for tensor in self.of(run)}
        if tensors.keys() != found.keys():
            raise KeyError(f"tensors that do not match: {sorted(tensors.keys() ^ found.keys())}")
        for name, tensor in tensors.items():
            tensor.restore(run, found[name])

    def collect_grads(self) -> None:
        """Make room for the gradients of another micro-batch of the same step."""
        for tensor in self.tensors:
            tensor.collect_grad()

    def let_go(self) -> Bank:
        """Become empty, for another set of runs; returns a bank with all that was held."""
        held = Bank(self.groups, self.tensors)
        self.groups, self.tensors = [], []
        return held

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink to some runs of the pack, given by their present numbers in ascending order."""
        for tensor in self.tensors:
            if tensor.stacked:
                kept = [run - tensor.group.first for run in runs if tensor.holds(run)]
                tensor.value = nn.Parameter(tensor.value.detach()[kept], tensor.value.requires_grad)
                tensor.moments = {name: moment[kept] for name, moment in tensor.moments.items()}
                tensor.rates = None if tensor.rates is None else tensor.rates[kept]
        self.tensors = [t for t in self.tensors if any(t.holds(run) for run in runs)]
        for group in self.groups:
            first = sum(run < group.first for run in runs)
            last = sum(run < group.last for run in runs)
            group.first, group.last = first, last


@dataclass(frozen=True, eq=False)
class Earlier:
    """The bank in which the runs of a new one were before."""

    bank: Bank = field(default_factory=Bank)
    # For each run of the new bank its number in the earlier one, None for a run that begins; empty: all runs begin
    numbers: Sequence[int | None] = ()

    @cached_property
    def _by_name(self) -> dict[str, list[BankTensor]]:
        found: dict[str, list[BankTensor]] = {}
        for tensor in self.bank.tensors:
            found.setdefault(tensor.name, []).append(tensor)
        return found

    def _holder(self, name: str, run: int) -> BankTensor | None:
        """The tensor in which a run of the new bank was; None for a run that begins."""
        number = self.numbers[run] if self.numbers else None
        if number is None:
            return None
        return next(tensor for tensor in self._by_name[name] if tensor.holds(number))

    def stacked(
        self, name: str, group: Group, draw: Callable[[Sequence[int]], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[G, ...]: a tensor of the runs of a group of the new bank, and the optimizer's moments of it, by name.

        `draw` gives the tensor of runs that begin, by their numbers; their moments are zero.
        """
        parts: list[dict[str, Tensor]] = []
        for _, same in groupby(range(group.first, group.last), key=lambda run: id(self._holder(name, run))):
            runs = list(same)
            holder = self._holder(name, runs[0])
            if holder is None:
                parts.append({"value": draw(runs)})
            else:
                rows = [(self.numbers[run] or 0) - holder.group.first for run in runs]
                whole = {"value": holder.value.detach(), **holder.moments}
                parts.append({part: tensor[rows] for part, tensor in whole.items()})
        names = list(dict.fromkeys(part for each in parts for part in each))
        joined = {
            part: torch.cat([each[part] if part in each else torch.zeros_like(each["value"]) for each in parts])
            for part in names
        }
        return joined.pop("value"), joined


def run_of_dump(dump: Mapping[str, Tensor], run: int) -> dict[str, dict[str, Tensor]]:
    """What a bank's dump holds of one of its runs, by tensor name and part; views of the dump."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, data in dump.items():
        span, part, name = key.split("/", 2)
        first, last = map(int, span.split("-"))
        if first <= run < last:
            found.setdefault(name, {})[part] = data[run - first]
    return found


def join_dumps(runs: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """A dump of several runs, from what `run_of_dump` found of each."""
    return {
        f"{run}-{run + 1}/{part}/{name}": data[None]
        for run, found in enumerate(runs)
        for name, parts in found.items()
        for part, data in parts.items()
    }
