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
from manytune.packing.bank import Bank, BankTensor, Group, Member
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

    def forget_empty(self) -> None:
        """Let go of what no run of the pack has any more."""
        for each in fields(self):
            setattr(self, each.name, [entry for entry in getattr(self, each.name) if len(entry.group)])


def add_hooks(
    bank: Bank, members: Sequence[Member], prefix: str, encoder: nn.Module, device: torch.device
) -> defaultdict[str, ModuleHooks]:
    """Put what the hooks of all runs train into the bank; neighbours with equal hooks form a group.

    `prefix` is the path of `encoder`, which is transformers' own, in the unpacked model.

    Returns the hooks of each module by its path, empty ones for a module that has none; raises ValueError where a hook
    does not fit the module at its path.
    """
    frozen = dict(encoder.named_parameters(remove_duplicate=False))
    found: defaultdict[str, ModuleHooks] = defaultdict(ModuleHooks)
    first = 0
    for hooks, same in groupby(members, _group_key):
        group_members = list(same)
        group = bank.group(first, first + len(group_members)) if hooks else None
        for index, hook in enumerate(hooks):
            assert group is not None
            _refuse_unfit(hook, encoder.get_submodule(hook.path))
            tensors = [
                bank.add(
                    BankTensor(
                        f"{prefix}.{name}",
                        tensor.kind,
                        group,
                        nn.Parameter(_initial(tensor, hook, group_members, frozen.get(name)).to(device)),
                        transposed=len(tensor.shape) == 2,
                        decays=tensor.decays,
                    )
                )
                for name, tensor in zip(hook.names, hook.tensors, strict=True)
            ]
            at = found[hook.path]
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
                    updates = [member.adaptation.hooks[index] for member in group_members]
                    scale = [update.alpha / update.rank for update in updates if isinstance(update, LowRank)]
                    a, b = tensors
                    at.low_rank.append(LowRankUpdate(a, b, torch.tensor(scale, device=device), hook.dropout))
                case Bottleneck():
                    down, down_bias, up, up_bias = tensors
                    at.serial.append(SerialAdapter(down, down_bias, up, up_bias, hook.activation))
                case _:
                    raise ValueError(f"{type(hook).__name__} is not a hook that packs can apply")
        first += len(group_members)
    return found


def _group_key(member: Member) -> list[Hook]:
    """The hooks of a run; all but alpha, which is only a factor, must be the same in a group."""
    hooks = member.adaptation.hooks
    return [replace(hook, alpha=1.0) if isinstance(hook, LowRank) else hook for hook in hooks]


def _refuse_unfit(hook: Hook, module: nn.Module) -> None:
    """Raise a ValueError where a hook is for another linear layer than the module at its path."""
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
