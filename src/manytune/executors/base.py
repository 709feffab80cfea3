"""What an executor is: it takes packs, trains them somewhere, and tells how that goes.

An executor knows nothing of the study directory's records, of packs that wait, or of what to do about one that broke:
that is the driver's part (`study`). So every executor passes one suite of tests, and the driver treats them alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from manytune.config.plan import Pack
from manytune.executors.estimate import HardwareProfile
from manytune.executors.pack_inputs import PackInputs
from manytune.storage.record import HistoryRow, RunRecord
from manytune.tracking.progress import Level
from manytune.utils.signals import StopRequest

__all__ = ["Executor", "ExecutorSpec", "How", "PackEnd", "Reports"]

How = Literal["done", "stopped", "broken", "refused", "lost"]
"""How a pack's time with an executor ended: all its runs ended; it was stopped where it can go on; an error broke it;
an error that the user can mend; the process or machine that trained it is gone."""


@dataclass(frozen=True)
class PackEnd:
    """The end of a pack's time with an executor."""

    pack_id: str
    how: How
    seconds: float | None = None
    """Since it started there, where it is done."""
    reason: str | None = None
    """What broke it, what the user can mend, or how its process died."""
    traceback: str | None = None
    out_of_memory: bool = False


class Reports(Protocol):
    """Who is told how packs get on."""

    def pack_started(self, pack_id: str, runs: Sequence[str], total_steps: int) -> None:
        """A pack starts to train: the ids of its runs that have no record yet, and the steps they will take."""

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """An optimizer step was taken; not every one need be told."""

    def evaluated(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float]) -> None:
        """Runs were evaluated: run id → its newest row; the best run so far and its score."""

    def run_ended(self, pack_id: str, record: RunRecord) -> None:
        """A run has ended: its history, snapshot and predictions are in the study directory, its record is not yet."""

    def message(self, text: str, level: Level = "info") -> None:
        """Something that the user should know."""


class Executor(Protocol):
    """Where packs train. A context: leaving it stops all that still trains, at once."""

    @property
    def capacity(self) -> int:
        """Packs that can train at once."""

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        """Take a pack on.

        Args:
            pack: The pack; fewer than `capacity` are with the executor now.
            ended: Ids of runs that have a record.
        """

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        """Let packs train, telling of them, until one ends or a moment has passed; returns those that ended.

        Args:
            stop: Looked at all the while; where somebody asked to stop, every pack stops where it can go on.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ExecutorSpec(Protocol):
    """What a user chooses: where a study's packs shall train."""

    def open(self, inputs: PackInputs, reports: Reports) -> Executor:
        """The executor.

        Raises:
            ManytuneError: There is no such executor, or it cannot be reached or used.
        """

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        """What a study may expect there, before it is opened: packs at once, and what each has to itself.

        Args:
            precision: `auto`, `fp32` or `bf16`.
            width: Hidden width of the backbone.

        Raises:
            ManytuneError: There is no such executor, or it cannot be reached or used.
        """
