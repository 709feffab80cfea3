"""The bank's tensors of runs that train biases or LoRA updates, whichever way they go through the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor, nn

from manytune.packing.bank import Bank, BankTensor, LoraAdapter
from manytune.packing.dropout import generator
from manytune.packing.linear import LoraSite

__all__ = ["add_adapters", "add_biases", "keep_sites"]

T = TypeVar("T")


def add_biases(
    bank: Bank, biases: Sequence[tuple[str, ...]], prefix: str, frozen: Callable[[str], Tensor]
) -> Iterator[tuple[str, BankTensor]]:
    """Put the biases that train into the bank.

    Args:
        bank: To put them into.
        biases: Of each run, the names of those that train; equal ones that stand side by side form a group.
        prefix: Path of the backbone.
        frozen: Gives the pretrained bias of a name.

    Yields:
        The name of a bias, and what holds those of a group of runs.
    """
    for first, last, names in _stretches(biases):
        group = bank.group(first, last)
        for name in names:
            start = frozen(name).detach().expand(last - first, -1).clone()
            yield name, bank.add(BankTensor(f"{prefix}.{name}", "bias", group, nn.Parameter(start)))


def add_adapters(
    bank: Bank,
    adapters: Sequence[LoraAdapter | None],
    seeds: Sequence[int],
    prefix: str,
    weight: Callable[[str], Tensor],
) -> Iterator[tuple[str, LoraSite]]:
    """Put LoRA's factors into the bank: A from peft's Kaiming-uniform draw, keyed by each run's seed; B zero.

    Args:
        bank: To put them into.
        adapters: Of each run; equal ones that stand side by side form a group.
        seeds: Of each run.
        prefix: Path of the backbone.
        weight: Gives the weight of the linear layer at a path.

    Yields:
        The path of a linear layer, and the update that a group of runs makes to it.
    """
    # Runs of one group may differ in alpha, which is but a factor.
    kinds = [None if a is None else replace(a, alpha=1.0) for a in adapters]
    for first, last, kind in _stretches(kinds):
        group = bank.group(first, last)
        alphas = [a.alpha for a in adapters[first:last] if a is not None]
        for path in kind.targets:
            frozen = weight(path)
            outputs, inputs = frozen.shape
            draws = []
            for seed in seeds[first:last]:
                drawn = torch.empty(kind.rank, inputs)
                nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=generator("lora", seed, path, kind.rank))
                draws.append(drawn.mT)
            a = nn.Parameter(torch.stack(draws).contiguous().to(frozen.device))
            b = nn.Parameter(torch.zeros(last - first, kind.rank, outputs, device=frozen.device))
            name = f"{prefix}.{path}"
            yield (
                path,
                LoraSite(
                    bank.add(BankTensor(f"{name}.lora_A.weight", "adapter", group, a, transposed=True)),
                    bank.add(BankTensor(f"{name}.lora_B.weight", "adapter", group, b, transposed=True)),
                    torch.tensor([alpha / kind.rank for alpha in alphas], device=frozen.device),
                    kind.dropout,
                ),
            )


def keep_sites(sites: Sequence[LoraSite], runs: Sequence[int]) -> None:
    """Shrink the scales to some runs, given by their present numbers, before the bank shrinks."""
    for site in sites:
        group = site.group
        site.scale = site.scale[[run - group.first for run in runs if group.first <= run < group.last]]


def _stretches(items: Sequence[T | None]) -> list[tuple[int, int, T]]:
    """Neighbours with equal, non-empty items: (first, last, item)."""
    found: list[tuple[int, int, T]] = []
    first = 0
    for item, members in groupby(items):
        last = first + len(list(members))
        if item:
            found.append((first, last, item))
        first = last
    return found
