"""Packs in worker processes (`worker_process`) of this machine, each with its threads or device.

concurrent.futures and loky do not suffice: in their pools one process that dies takes all packs with it, and threads, a
device, cores and a request to stop cannot be given to each process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any, Self

import torch

from manytune.config.plan import Pack
from manytune.executors.estimate import HardwareProfile
from manytune.executors.messages import encoded, orders_message, pack_message, replay
from manytune.executors.orders import Orders
from manytune.executors.pack_inputs import PackInputs
from manytune.training.callbacks import Callback, PackEnd
from manytune.utils import hardware
from manytune.utils.errors import StudyError
from manytune.utils.signals import StopRequest

_LOOK_SECONDS = 0.2  # between two looks for a request to stop
_GRACE_SECONDS = 10.0  # for a worker to end after its pipe is closed


@dataclass(frozen=True)
class Workers:
    """Worker processes of this machine."""

    count: int = 0  # how many; 0 for one a device
    threads: int = 0  # of each; 0 for an equal share of the cores
    devices: tuple[str, ...] = ()  # one for each worker, such as `cuda:0`; none: the CPU

    def __post_init__(self) -> None:
        if self.devices and self.count not in (0, len(self.devices)):
            raise StudyError(f"--workers: {self.count}, but --devices names {len(self.devices)}. Leave --workers out.")
        if not self.devices and self.count < 1:
            raise StudyError(f"--workers: it must be at least 1, not {self.count}.")

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        """Each worker has its threads, or its device, and its share of the memory."""
        devices = self._devices()
        sharing = max(Counter((device.type, device.index or 0) for device in devices).values())
        profile = HardwareProfile.measure(devices[0], precision, width, threads=self._threads(), sharing=sharing)
        return len(devices), profile

    def to_plan(self) -> dict[str, int] | None:
        """Workers and their threads; nothing, where devices were named."""
        return None if self.devices else {"count": self.count, "threads": self._threads()}

    def open(self, inputs: PackInputs, callback: Callback) -> WorkersExecutor:
        cores, threads = _cores(), self._threads()
        setups = []
        for number, device in enumerate(self._devices()):
            share = cores[number * threads : (number + 1) * threads]
            # A worker is bound to cores that no other uses; to none where the workers want more than there are.
            setups.append({"device": str(device), "threads": threads, "cores": share if len(share) == threads else []})
        return WorkersExecutor(inputs, setups, callback)

    def _devices(self) -> list[torch.device]:
        names = self.devices or ("cpu",) * self.count
        return [hardware.choose_device(name, "--devices") for name in names]

    def _threads(self) -> int:
        return self.threads or max(1, len(_cores()) // len(self._devices()))


class _Worker:
    """A worker process, and the pack that it trains."""

    def __init__(self, setup: Mapping[str, Any], inputs: PackInputs) -> None:
        self.pack_id: str | None = None
        self.connection, theirs = Pipe()
        threads = str(setup["threads"])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "manytune.executors.worker_process", str(theirs.fileno())],
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C reaches the driver alone, which asks the workers to stop
        )
        theirs.close()
        self.send(
            {
                **setup,
                "root": str(inputs.root),
                "lock": inputs.held.token if inputs.held else None,
                "fingerprints": {name: work.fingerprint for name, work in inputs.works.items()},
            }
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.connection.send_bytes(encoded(message))
        except OSError:
            return  # it is dead, which `wait` will notice

    def end(self, grace: float) -> str:
        """End the process, by force after `grace` seconds; returns how it ended."""
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
    """Worker processes, each started when a pack first needs it."""

    def __init__(self, inputs: PackInputs, setups: Sequence[Mapping[str, Any]], callback: Callback) -> None:
        """Start no process yet; a setup is a worker's device, its threads, and the cores that it is bound to."""
        self._inputs = inputs
        self._callback = callback
        self._setups = setups
        self.capacity = len(setups)
        self._workers: dict[int, _Worker] = {}
        self._stop_sent = False

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        number = next(n for n in range(self.capacity) if n not in self._workers or not self._workers[n].pack_id)
        if number in self._workers and not self._workers[number].alive:
            self._workers.pop(number).end(0)
        if number not in self._workers:
            self._workers[number] = _Worker(self._setups[number], self._inputs)
        worker = self._workers[number]
        worker.pack_id = pack.id
        worker.send(pack_message(pack, [run.id for run in pack.runs if run.id in ended]))

    def send(self, orders: Orders) -> None:
        for worker in self._workers.values():
            if worker.pack_id == orders.pack_id:
                worker.send(orders_message(orders))

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        busy = {worker.connection: number for number, worker in self._workers.items() if worker.pack_id}
        if stop.number is not None and not self._stop_sent:
            self._stop_sent = True
            for number in busy.values():
                self._workers[number].send({"stop": stop.number})
        ends = (self._receive(busy[connection]) for connection in wait(list(busy), _LOOK_SECONDS))  # type: ignore[index]
        return [end for end in ends if end is not None]

    def _receive(self, number: int) -> PackEnd | None:
        worker = self._workers[number]
        assert worker.pack_id is not None
        try:
            message = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            del self._workers[number]
            return PackEnd(worker.pack_id, "lost", reason=worker.end(_GRACE_SECONDS))
        end = replay(message, self._callback)
        if end is not None:
            worker.pack_id = None
        if end is not None and end.how == "lost":  # the process lives, but its GPU serves it no more
            self._workers.pop(number).end(_GRACE_SECONDS)
        return end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
