"""Hooks put into the bank: the tensors that runs train on modules of the backbone, whichever way they go through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from itertools import groupby

import torch
from torch import Tensor, nn

from manytune.methods.adaptation import (
    Bottleneck,
    Hook,
    LowRank,
    ScaleInput,
    ScaleOutput,
    SharedLowRank,
    TrainBias,
    TrainGain,
)
from manytune.methods.projections import Projections
from manytune.packing.bank import Bank, BankTensor, Earlier, Group, Member, multiples
from manytune.packing.initial import initial_values
from manytune.packing.updates import LowRankUpdate, SharedUpdate, Update


@dataclass
class SerialAdapter:
    """The bottlenecks that one group of runs has behind a module: y + act(y down + down_bias) up + up_bias.

    Those with `renorms` stand behind a norm, and add to its input instead.
    """

    down: BankTensor  # [G, size, width]
    down_bias: BankTensor  # [G, width]
    up: BankTensor  # [G, width, size]
    up_bias: BankTensor  # [G, size]
    activation: str  # its name in transformers
    renorms: bool

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
    low_rank: list[Update] = field(default_factory=list)  # of a linear layer
    serial: list[SerialAdapter] = field(default_factory=list)  # networks behind the module

    @property
    def kinds(self) -> set[str]:
        """Names of the lists that have entries."""
        return {each.name for each in fields(self) if getattr(self, each.name)}

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink what the bank does not hold to some runs, given by their present numbers, before the bank shrinks."""
        for update in self.low_rank:
            update.keep(runs)

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
        self._projections: dict[tuple[Projections, torch.dtype], tuple[Tensor, Tensor]] = {}  # A and B of each
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
        self._projections.clear()
        first = 0
        for own, same in groupby(members, _group_key):
            last = first + len(list(same))
            group = bank.group(first, last) if own else None
            for index, hook in enumerate(own):
                assert group is not None
                _refuse_unfit(hook, self._modules.get(hook.path))
                each = [member.adaptation.hooks[index] for member in members[first:last]]
                self._note(self.hooks[hook.path], hook, self._stacked(bank, group, hook, each, members, earlier), each)
            first = last

    def _stacked(
        self,
        bank: Bank,
        group: Group,
        hook: Hook,
        each: Sequence[Hook],
        members: Sequence[Member],
        earlier: Earlier,
    ) -> list[BankTensor]:
        """The tensors of a hook, of all runs of a group, in the bank; `each` has the hook of every run."""
        begun = cache(lambda run: initial_values(hook, members[run].seed, self._frozen))
        found = []
        for index, (name, tensor) in enumerate(zip(hook.names, hook.tensors, strict=True)):
            full_name = f"{self._prefix}.{name}"
            value, moments = earlier.stacked(full_name, group, partial(self._begun, begun, index))
            rates = multiples([own.tensors[index].rate for own in each])
            parameter, transposed = nn.Parameter(value, tensor.trains), len(tensor.shape) == 2
            found.append(
                bank.add(
                    BankTensor(
                        full_name, tensor.kind, group, parameter, True, transposed, moments, tensor.decays, rates=rates
                    )
                )
            )
        return found

    def _begun(self, begun: Callable[[int], list[Tensor]], index: int, runs: Sequence[int]) -> Tensor:
        """[G, ...]: one of the tensors of a hook of runs that begin."""
        return torch.stack([begun(run)[index] for run in runs]).to(self._device)

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
                scale = torch.tensor([own.scale for own in each if isinstance(own, LowRank)], device=self._device)
                a, b, *others = tensors
                magnitude = others.pop(0) if hook.magnitude else None
                at.low_rank.append(LowRankUpdate(a, b, scale, hook.dropout, magnitude))
                if others:  # what the factors began as
                    at.low_rank.append(LowRankUpdate(others[0], others[1], -scale, 0.0))
            case SharedLowRank():
                lambda_b, lambda_d = tensors
                at.low_rank.append(SharedUpdate(lambda_b, lambda_d, *self._factors(hook), hook.dropout))
            case Bottleneck():
                down, down_bias, up, up_bias = tensors
                at.serial.append(SerialAdapter(down, down_bias, up, up_bias, hook.activation, hook.renorms))
            case _:
                raise ValueError(f"{type(hook).__name__} is not a hook that packs can apply")

    def _factors(self, hook: SharedLowRank) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] of one layer, parts of what all layers and runs of the pack share."""
        key = hook.projections, self._frozen[f"{hook.path}.weight"].dtype
        if key not in self._projections:
            a, b = (torch.from_numpy(factor).to(self._device, key[1]) for factor in hook.projections.draw())
            self._projections[key] = a, b
        a, b = self._projections[key]
        return a[:, : hook.inputs], b[: hook.outputs]


def _group_key(member: Member) -> list[Hook]:
    """The hooks of a run; all but factors, of the output or a learning rate, must be the same in a group.

    Where factors begin by the scale, it must be the same too.
    """

    def key(hook: Hook) -> Hook:
        if not isinstance(hook, LowRank):
            return hook
        return replace(hook, scale=hook.scale if hook.init == "pissa" else 1.0, b_rate=1.0)

    return [key(hook) for hook in member.adaptation.hooks]


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
