"""Packs in several processes of this machine, each with threads, or a device, of its own.

A worker is a fresh process (`worker`) in a session of its own, so that Ctrl-C reaches the driver alone, which then asks
the workers to stop. They talk through a pipe; a worker whose pipe ends, because the driver is gone, ends at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

import torch

from manytune.config.plan import Pack
from manytune.executors.base import PackEnd, Reports
from manytune.executors.estimate import HardwareProfile
from manytune.executors.messages import encoded, end_in, pack_message, pass_on
from manytune.executors.pack_inputs import PackInputs
from manytune.utils import hardware
from manytune.utils.errors import StudyError
from manytune.utils.signals import StopRequest

__all__ = ["Workers", "WorkersExecutor"]

_LOOK_SECONDS = 0.2
"""Between two looks whether somebody asked to stop."""

_GRACE_SECONDS = 10.0
"""That a worker has to end when its pipe is closed."""


@dataclass(frozen=True)
class Workers:
    """Worker processes of this machine.

    Attributes:
        count: How many; 0 for one a device.
        threads: Of each; 0 for an equal share of the cores.
        devices: A device for each worker, such as `cuda:0`; none: the CPU.
    """

    count: int = 0
    threads: int = 0
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.devices and self.count not in (0, len(self.devices)):
            raise StudyError(f"--workers: {self.count}, but --devices names {len(self.devices)}. Leave --workers out.")
        if not self.devices and self.count < 1:
            raise StudyError(f"--workers: it must be at least 1, not {self.count}.")

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        """Each worker has its threads, or its device, and its share of the memory."""
        devices = self._devices()
        sharing = max(devices.count(device) for device in devices)
        profile = HardwareProfile.measure(devices[0], precision, width, threads=self._threads(), sharing=sharing)
        return len(devices), profile

    def keep(self) -> dict[str, int] | None:
        """What a study that goes on must know to round alike; nothing, where devices were named."""
        return None if self.devices else {"count": self.count, "threads": self._threads()}

    def open(self, inputs: PackInputs, reports: Reports) -> WorkersExecutor:
        """The executor."""
        cores, threads = _cores(), self._threads()
        seats = []
        for number, device in enumerate(self._devices()):
            own = cores[number * threads : (number + 1) * threads]
            seats.append(_Seat(str(device), threads, tuple(own) if len(own) == threads else ()))
        return WorkersExecutor(inputs, seats, reports)

    def _devices(self) -> list[torch.device]:
        names = self.devices or ("cpu",) * self.count
        return [hardware.choose_device(name, "--devices") for name in names]

    def _threads(self) -> int:
        return self.threads or max(1, len(_cores()) // len(self._devices()))


@dataclass(frozen=True)
class _Seat:
    """Where a worker sits."""

    device: str
    threads: int
    cores: tuple[int, ...]
    """That it is bound to; none where the workers want more than there are."""


class _Worker:
    """A worker process, and the pack that it trains."""

    def __init__(self, seat: _Seat, inputs: PackInputs) -> None:
        self.pack_id: str | None = None
        self.connection, theirs = Pipe()
        threads = str(seat.threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "manytune.executors.worker_process", str(theirs.fileno())],
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        fingerprints = {name: work.fingerprint for name, work in inputs.works.items()}
        self.send(
            {
                "root": str(inputs.root),
                "lock": inputs.held.token if inputs.held else None,
                "fingerprints": fingerprints,
                "device": seat.device,
                "threads": seat.threads,
                "cores": seat.cores,
            }
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.connection.send_bytes(encoded(message))
        except OSError:
            return  # it is dead, which `wait` will see

    def end(self, grace: float) -> str:
        """See to it that it is gone; returns how it went."""
        self.connection.close()
        try:
            code = self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


class WorkersExecutor:
    """A worker for each seat, started when a pack first needs it."""

    def __init__(self, inputs: PackInputs, seats: Sequence[_Seat], reports: Reports) -> None:
        self._inputs = inputs
        self._reports = reports
        self._seats: dict[int, _Seat] = dict(enumerate(seats))
        self._workers: dict[int, _Worker] = {}
        self._told_to_stop = False

    @property
    def capacity(self) -> int:
        """One pack a worker."""
        return len(self._seats)

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        """Give it to a worker that has none."""
        idle = (number for number in self._seats if number not in self._workers or not self._workers[number].pack_id)
        number = next(idle)
        if number in self._workers and not self._workers[number].alive:
            self._workers.pop(number).end(0)
        if number not in self._workers:
            self._workers[number] = _Worker(self._seats[number], self._inputs)
        worker = self._workers[number]
        worker.pack_id = pack.id
        worker.send(pack_message(pack, [run.id for run in pack.runs if run.id in ended]))

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        """Take in what the workers tell."""
        busy = {worker.connection: number for number, worker in self._workers.items() if worker.pack_id}
        if stop.number is not None and not self._told_to_stop:
            self._told_to_stop = True
            for number in busy.values():
                self._workers[number].send({"stop": stop.number})
        ends = []
        for connection in wait(list(busy), _LOOK_SECONDS):
            assert isinstance(connection, Connection)
            end = self._take_in(busy[connection])
            if end is not None:
                ends.append(end)
        return ends

    def _take_in(self, number: int) -> PackEnd | None:
        worker = self._workers[number]
        assert worker.pack_id is not None
        try:
            message = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            del self._workers[number]
            return PackEnd(worker.pack_id, "lost", reason=worker.end(_GRACE_SECONDS))
        end = end_in(message)
        if end is None:
            pass_on(message, self._reports)
        else:
            worker.pack_id = None
        return end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.end(_GRACE_SECONDS)


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
