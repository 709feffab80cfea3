"""The interface of executors, which train packs and report by callback; all else is the driver's part (`driver`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, Self

from manytune.config.plan import Pack
from manytune.executors.estimate import HardwareProfile
from manytune.executors.orders import Orders
from manytune.executors.pack_inputs import PackInputs
from manytune.training.callbacks import Callback, PackEnd
from manytune.utils.signals import StopRequest


class Executor(Protocol):
    """Where packs train. A context: leaving it stops all that still trains, at once."""

    @property
    def capacity(self) -> int:
        """Packs that can train at once."""

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        """Take on a pack, while fewer than `capacity` are here; `ended` holds the ids of runs that have a record."""

    def send(self, orders: Orders) -> None:
        """Give a pack of a search its orders; nothing happens where it does not train here."""

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        """Let packs train, calling the callback, until one ends or a moment has passed; returns those that ended.

        `stop` is checked all the while: once a stop is requested, every pack stops where it can go on.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class ExecutorSpec(Protocol):
    """What a user chooses: where a study's packs train."""

    def open(self, inputs: PackInputs, callback: Callback) -> Executor:
        """The executor. Raises ManytuneError where there is no such executor, or it cannot be reached or used."""

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        """What a study may expect there, before it is opened: packs at once, and what each has to itself.

        `precision` is auto, fp32 or bf16; `width` is the backbone's hidden width. Raises ManytuneError as `open` does.
        """

    def to_plan(self) -> dict[str, int] | None:
        """`count` of workers, 0 for none, and `threads` of each; None where that does not apply.

        The number of threads decides how sums round, so a study that goes on uses the same.
        """
