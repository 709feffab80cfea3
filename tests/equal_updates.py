"""AdamW for tests in which all runs of a bank have the same settings and step together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manytune.packing import Bank, PackedAdamW
from manytune.packing.kernels import AdamWUpdate, Kernels


class EqualAdamW:
    """Steps every run of a bank with a rate of its own; `settings` are those of an `AdamWUpdate`."""

    def __init__(self, bank: Bank, kernels: Kernels, **settings: Any) -> None:
        self.optimizer, self.settings, self.steps = PackedAdamW(bank, kernels), settings, 0

    def step(self, rates: Sequence[float]) -> None:
        self.steps += 1
        self.optimizer.step([AdamWUpdate(self.steps, rate, **self.settings) for rate in rates])
