"""Packs in this process, one after the other on one device."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from manytune.config.plan import Pack
from manytune.executors.estimate import HardwareProfile
from manytune.executors.job import PackJob
from manytune.executors.pack_inputs import PackInputs
from manytune.training.callbacks import Callback, PackEnd
from manytune.utils import hardware
from manytune.utils.errors import ManytuneError
from manytune.utils.signals import Interrupted, StopRequest

_MEMORY_ADVICE = "Not even one row at a time fits: use a smaller model, or lower training.max_length."


@dataclass(frozen=True)
class Inline:
    """This process."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        """One pack at a time has all that there is."""
        return 1, HardwareProfile.measure(hardware.choose_device(self.device), precision, width)

    def to_plan(self) -> dict[str, int]:
        """No workers, and this process's threads."""
        return {"count": 0, "threads": torch.get_num_threads()}

    def open(self, inputs: PackInputs, callback: Callback) -> InlineExecutor:
        """The executor."""
        return InlineExecutor(inputs, hardware.choose_device(self.device), callback)


class InlineExecutor:
    """Trains the pack that it was given while it is waited for."""

    capacity = 1

    def __init__(self, inputs: PackInputs, device: torch.device, callback: Callback) -> None:
        self._inputs = inputs
        self._device = device
        self._callback = callback
        self._submitted: tuple[Pack, Collection[str]] | None = None

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        """Take it on."""
        self._submitted = (pack, ended)

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        """Train it, to its end or to where it stops."""
        if self._submitted is None:
            return ()
        (pack, ended), self._submitted = self._submitted, None
        return (train_here(self._inputs, pack, ended, self._device, self._callback, stop),)

    def __enter__(self) -> Self:
        hardware.keep_freed_memory()
        return self

    def __exit__(self, *_: object) -> None: ...


def train_here(
    inputs: PackInputs,
    pack: Pack,
    ended: Collection[str],
    device: torch.device,
    callback: Callback,
    stop: StopRequest,
) -> PackEnd:
    """Train a pack in this process; returns how it ended.

    Raises:
        ManytuneError: What the user can correct, such as a full disk.
    """
    try:
        return PackEnd(pack.id, "done", seconds=PackJob(inputs, pack, ended, device, callback, stop).execute())
    except Interrupted:
        return PackEnd(pack.id, "stopped")
    except ManytuneError:
        raise
    except Exception as error:  # whatever it is, the other packs can still train
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"
        lacking = hardware.is_out_of_memory(error)
        if lacking:
            reason = f"{reason.removesuffix('.')}. {_MEMORY_ADVICE}"
        end = PackEnd(pack.id, "broken", reason=reason, traceback=traceback.format_exc(), out_of_memory=lacking)
    if end.out_of_memory:
        hardware.let_go_of_memory(device)  # only now does nothing refer to the error, and so to what its frames held
    return end


def train_apart(
    inputs: PackInputs,
    pack: Pack,
    ended: Collection[str],
    device: torch.device,
    callback: Callback,
    stop: StopRequest,
) -> PackEnd:
    """The same for a driver in another process: what the user can correct becomes a "refused" end, not an exception."""
    try:
        return train_here(inputs, pack, ended, device, callback, stop)
    except ManytuneError as error:
        return PackEnd(pack.id, "refused", reason=str(error))
