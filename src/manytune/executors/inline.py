"""Packs in this process, one after the other on one device."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from manytune.config.plan import Pack
from manytune.executors.base import PackEnd, Reports
from manytune.executors.estimate import HardwareProfile
from manytune.executors.job import PackJob, failure_of
from manytune.executors.pack_inputs import PackInputs
from manytune.storage.directory import Store
from manytune.utils import hardware
from manytune.utils.errors import ManytuneError
from manytune.utils.signals import Interrupted, StopRequest

__all__ = ["Inline", "InlineExecutor", "train_apart"]


@dataclass(frozen=True)
class Inline:
    """This process."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        """One pack at a time has all that there is."""
        return 1, HardwareProfile.measure(hardware.choose_device(self.device), precision, width)

    def keep(self) -> dict[str, int]:
        """What a study that goes on must know to round alike."""
        return {"count": 0, "threads": torch.get_num_threads()}

    def open(self, inputs: PackInputs, reports: Reports) -> InlineExecutor:
        """The executor."""
        return InlineExecutor(inputs, hardware.choose_device(self.device), reports)


class InlineExecutor:
    """Trains the pack that it was given while it is waited for."""

    capacity = 1

    def __init__(self, inputs: PackInputs, device: torch.device, reports: Reports) -> None:
        self._inputs = inputs
        self._device = device
        self._reports = reports
        self._taken: tuple[Pack, Collection[str]] | None = None

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        """Take it on."""
        self._taken = (pack, ended)

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        """Train it, to its end or to where it stops."""
        if self._taken is None:
            return ()
        (pack, ended), self._taken = self._taken, None
        store = Store(self._inputs.root)
        return (train_here(store, self._inputs, pack, ended, self._device, self._reports, stop),)

    def __enter__(self) -> Self:
        hardware.keep_freed_memory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def train_here(
    store: Store,
    inputs: PackInputs,
    pack: Pack,
    ended: Collection[str],
    device: torch.device,
    reports: Reports,
    stop: StopRequest,
    kept: Callable[[], None] = lambda: None,
) -> PackEnd:
    """Train a pack in this process; returns how it ended.

    Raises:
        ManytuneError: What the user can mend, such as a full disk.
    """
    try:
        work, backbone = inputs.backbone(inputs.works[pack.task])
        job = PackJob(store, work, backbone, pack, ended, device, reports, stop, check=inputs.check, kept=kept)
        return PackEnd(pack.id, "done", seconds=job.execute())
    except Interrupted:
        return PackEnd(pack.id, "stopped")
    except ManytuneError:
        raise
    except Exception as error:  # whatever it is, the other packs can still train
        lacking = hardware.is_out_of_memory(error)
        where = traceback.format_exc()
        end = PackEnd(pack.id, "broken", reason=failure_of(error), traceback=where, out_of_memory=lacking)
    if end.out_of_memory:
        hardware.let_go_of_memory(device)  # now that nothing refers to the error, and so to what it held
    return end


def train_apart(
    store: Store,
    inputs: PackInputs,
    pack: Pack,
    ended: Collection[str],
    device: torch.device,
    reports: Reports,
    stop: StopRequest,
    kept: Callable[[], None] = lambda: None,
) -> PackEnd:
    """The same for a driver in another process, to which no error can be raised: it is told what the user can mend."""
    try:
        return train_here(store, inputs, pack, ended, device, reports, stop, kept)
    except ManytuneError as error:
        return PackEnd(pack.id, "refused", reason=str(error))
