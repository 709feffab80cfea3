"""Hooks put into the bank: the tensors that runs train on modules of the backbone, whichever way they go through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from manytune.methods.adaptation import (
    Bottleneck,
    Hook,
    HookTensor,
    LowRank,
    ScaleInput,
    ScaleOutput,
    TrainBias,
    TrainGain,
)
from manytune.packing.bank import Bank, BankTensor, Earlier, Group, Member
from manytune.packing.dropout import generator


@dataclass
class LowRankUpdate:
    """The update that one group of runs adds to one linear layer's output: scale * drop(x) A B."""

    a: BankTensor  # [G, in, rank]
    b: BankTensor  # [G, rank, out]
    scale: Tensor  # [G], alpha / rank of each run
    dropout: float  # probability that a channel of the update's input is dropped while training

    @property
    def group(self) -> Group:
        """The runs that make the update."""
        return self.a.group


@dataclass
class SerialAdapter:
    """The bottlenecks that one group of runs has behind a module: y + act(y down + down_bias) up + up_bias."""

    down: BankTensor  # [G, size, width]
    down_bias: BankTensor  # [G, width]
    up: BankTensor  # [G, width, size]
    up_bias: BankTensor  # [G, size]
    activation: str  # its name in transformers

    @property
    def group(self) -> Group:
        """The runs that have one."""
        return self.down.group


@dataclass
class ModuleHooks:
    """What the runs of a pack train at one module; each list has an entry for each group, in the order of runs."""

    biases: list[BankTensor] = field(default_factory=list)  # [G, out] each
    gains: list[BankTensor] = field(default_factory=list)  # [G, out] each, of a norm
    input_scales: list[BankTensor] = field(default_factory=list)  # [G, in] each, of a linear layer
    output_scales: list[BankTensor] = field(default_factory=list)  # [G, out] each, of a linear layer
    low_rank: list[LowRankUpdate] = field(default_factory=list)  # updates of a linear layer
    serial: list[SerialAdapter] = field(default_factory=list)  # networks behind the module

    @property
    def kinds(self) -> set[str]:
        """Names of the lists that have entries."""
        return {each.name for each in fields(self) if getattr(self, each.name)}

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink the scales to some runs, given by their present numbers, before the bank shrinks."""
        for update in self.low_rank:
            first, last = update.group.first, update.group.last
            update.scale = update.scale[[run - first for run in runs if first <= run < last]]

    def clear(self) -> None:
        """Let go of everything, before the runs of another pack are put in."""
        for each in fields(self):
            setattr(self, each.name, [])

    def forget_empty(self) -> None:
        """Let go of what no run of the pack has any more."""
        for each in fields(self):
            setattr(self, each.name, [entry for entry in getattr(self, each.name) if len(entry.group)])


class HookSites:
    """The modules of transformers' own encoder on which hooks stand."""

    def __init__(self, prefix: str, encoder: nn.Module, device: torch.device) -> None:
        """`prefix` is the path of `encoder` in the unpacked model; its modules may be replaced later."""
        self._prefix, self._device = prefix, device
        self._modules = dict(encoder.named_modules())
        self._frozen = dict(encoder.named_parameters(remove_duplicate=False))
        self.hooks: defaultdict[str, ModuleHooks] = defaultdict(ModuleHooks)  # of each module, by its path

    def fill(self, bank: Bank, members: Sequence[Member], earlier: Earlier | None = None) -> None:
        """Put what the hooks of all runs train into the bank, and what they do into `hooks`, which forgets other runs.

        Neighbours with equal hooks form a group. `earlier` has the tensors of the runs that trained before.

        Raises:
            ValueError: A hook does not fit the module at its path, or there is no such module.
        """
        earlier = earlier or Earlier()
        for hooks in self.hooks.values():
            hooks.clear()
        first = 0
        for own, same in groupby(members, _group_key):
            last = first + len(list(same))
            group = bank.group(first, last) if own else None
            for index, hook in enumerate(own):
                assert group is not None
                _refuse_unfit(hook, self._modules.get(hook.path))
                tensors = [
                    self._stacked(bank, group, name, tensor, hook, members, earlier)
                    for name, tensor in zip(hook.names, hook.tensors, strict=True)
                ]
                each = [member.adaptation.hooks[index] for member in members[first:last]]
                self._note(self.hooks[hook.path], hook, tensors, each)
            first = last

    def _stacked(
        self,
        bank: Bank,
        group: Group,
        name: str,
        tensor: HookTensor,
        hook: Hook,
        members: Sequence[Member],
        earlier: Earlier,
    ) -> BankTensor:
        """One tensor of a hook, of all runs of a group, in the bank."""
        full_name = f"{self._prefix}.{name}"
        value, moments = earlier.stacked(
            full_name,
            group,
            lambda runs: _initial(tensor, hook, [members[run] for run in runs], self._frozen.get(name)).to(
                self._device
            ),
        )
        transposed = len(tensor.shape) == 2
        return bank.add(
            BankTensor(full_name, tensor.kind, group, nn.Parameter(value), True, transposed, moments, tensor.decays)
        )

    def _note(self, at: ModuleHooks, hook: Hook, tensors: list[BankTensor], each: Sequence[Hook]) -> None:
        """Note what a group's hook does to its module; `each` has that of every run."""
        match hook:
            case TrainBias():
                at.biases += tensors
            case TrainGain():
                at.gains += tensors
            case ScaleInput():
                at.input_scales += tensors
            case ScaleOutput():
                at.output_scales += tensors
            case LowRank():
                scale = [update.alpha / update.rank for update in each if isinstance(update, LowRank)]
                a, b = tensors
                at.low_rank.append(LowRankUpdate(a, b, torch.tensor(scale, device=self._device), hook.dropout))
            case Bottleneck():
                down, down_bias, up, up_bias = tensors
                at.serial.append(SerialAdapter(down, down_bias, up, up_bias, hook.activation))
            case _:
                raise ValueError(f"{type(hook).__name__} is not a hook that packs can apply")


def _group_key(member: Member) -> list[Hook]:
    """The hooks of a run; all but alpha, which is only a factor, must be the same in a group."""
    hooks = member.adaptation.hooks
    return [replace(hook, alpha=1.0) if isinstance(hook, LowRank) else hook for hook in hooks]


def _refuse_unfit(hook: Hook, module: nn.Module | None) -> None:
    """Raise a ValueError where a hook is for another linear layer than the module at its path, or there is none."""
    if module is None:
        raise ValueError(f"{type(hook).__name__} is for {hook.path}; the encoder has no module of this path")
    if hook.linear is None:
        return
    shape = tuple(module.weight.shape) if isinstance(module, nn.Linear) else ()
    if not shape or any(needed not in (None, found) for needed, found in zip(hook.linear, shape, strict=True)):
        raise ValueError(
            f"{type(hook).__name__} is for a linear layer (out, in) {hook.linear}; {hook.path} is a "
            f"{type(module).__name__} {shape or ''}"
        )


def _initial(tensor: HookTensor, hook: Hook, members: Sequence[Member], frozen: Tensor | None) -> Tensor:
    """[G, ...]: what the tensor begins with in each run; a matrix lies as (in, out), as rows are multiplied by it."""
    shape = tensor.shape[::-1]
    if tensor.init == "pretrained" and (frozen is not None or not isinstance(hook, TrainBias)):
        if frozen is None or frozen.shape != shape:
            has = "nothing" if frozen is None else f"the shape {tuple(frozen.shape)}"
            raise ValueError(f"{type(hook).__name__} is for a {tensor.name} {shape}; {hook.path} has {has}")
        return frozen.detach().expand(len(members), *shape).clone()
    if tensor.init != "kaiming":
        return torch.full((len(members), *shape), float(tensor.init == "ones"))
    draws = []
    for member in members:
        key = (hook.stream, member.seed, hook.path, tensor.shape[0])
        draws.append(nn.init.kaiming_uniform_(torch.empty(tensor.shape), a=5**0.5, generator=generator(*key)).mT)
    return torch.stack(draws).contiguous()
