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
from manytune.executors.orders import Inbox, Orders
from manytune.executors.pack_inputs import PackInputs
from manytune.storage.directory import Store
from manytune.training.callbacks import Callback, PackEnd
from manytune.utils import hardware
from manytune.utils.errors import ManytuneError
from manytune.utils.signals import Interrupted, StopRequest

_GOES_ON = (
    "After such an error a GPU refuses whatever a process asks of it. Start the same command again, and the study goes "
    "on from its checkpoints. With --devices {device} packs train in a process of their own, and a fresh one goes on "
    "by itself."
)


@dataclass(frozen=True)
class Inline:
    """This process."""

    device: str = "auto"  # `auto`, `cpu`, `cuda`, `cuda:1` or `mps`

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        return 1, HardwareProfile.measure(hardware.choose_device(self.device), precision, width)

    def to_plan(self) -> dict[str, int]:
        return {"count": 0, "threads": torch.get_num_threads()}

    def open(self, inputs: PackInputs, callback: Callback) -> InlineExecutor:
        return InlineExecutor(inputs, hardware.choose_device(self.device), callback)


@dataclass
class InlineExecutor:
    """Trains the submitted pack in `wait`."""

    inputs: PackInputs
    device: torch.device
    callback: Callback
    capacity: int = 1
    _submitted: tuple[Pack, Collection[str]] | None = None
    _inbox: tuple[str, Inbox] | None = None  # of the pack that trains

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        self._submitted = (pack, ended)

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        if self._submitted is None:
            return ()
        (pack, ended), self._submitted = self._submitted, None
        self._inbox = pack.id, Inbox()
        return (train_here(self.inputs, pack, ended, self.device, self.callback, stop, self._inbox[1]),)

    def send(self, orders: Orders) -> None:
        if self._inbox is not None and self._inbox[0] == orders.pack_id:
            self._inbox[1].put(orders)

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
    inbox: Inbox | None = None,
    *,
    apart: bool = False,
) -> PackEnd:
    """Train a pack in this process; returns how it ended.

    `inbox` is where orders for a pack of a search arrive. ManytuneError is raised for what the user can correct, such
    as a full disk, and where the GPU serves this process no more; `apart` from the driver's process, the end is
    "refused" instead, or "lost": then this process is to end.
    """
    try:
        return PackEnd(
            pack.id, "done", seconds=PackJob(inputs, pack, ended, device, callback, stop, inbox or Inbox()).execute()
        )
    except Interrupted:
        return PackEnd(pack.id, "stopped")
    except ManytuneError as error:
        if not apart:
            raise
        return PackEnd(pack.id, "refused", reason=str(error))
    except Exception as error:  # whatever it is, the other packs can still train
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"
        if hardware.has_lost_device(error):
            return _lost(inputs, pack, device, reason, apart=apart)
        lacking = hardware.is_out_of_memory(error)
        end = PackEnd(pack.id, "broken", reason=reason, traceback=traceback.format_exc(), out_of_memory=lacking)
    if end.out_of_memory:
        hardware.let_go_of_memory(device)  # only now: inside the except block, the error's frames still hold tensors
    return end


def _lost(inputs: PackInputs, pack: Pack, device: torch.device, reason: str, *, apart: bool) -> PackEnd:
    """What follows from an error that has just lost the GPU to this process; see `train_here`."""
    end = PackEnd(pack.id, "lost", reason=f"the GPU failed: {reason}", traceback=traceback.format_exc())
    if apart:
        return end
    inputs.check()
    Store(inputs.root).write_traceback(pack.id, end.traceback or reason)
    name = f"{device.type}:{device.index or 0}"
    raise ManytuneError(f"{pack.id}: {end.reason}\n{_GOES_ON.format(device=name)}")
