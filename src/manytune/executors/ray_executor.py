"""Packs as tasks of a Ray cluster.

A pack trains in a temporary folder of its node, on encoded rows and a backbone from Ray's object store. Each checkpoint
and each ended run is sent to the driver, which alone writes the study directory; checkpoints go to a storage that all
nodes see instead, where there is one.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from manytune.config.plan import Pack
from manytune.executors import ray_node
from manytune.executors.estimate import HardwareProfile
from manytune.executors.messages import orders_message, pack_message, replay
from manytune.executors.orders import Orders
from manytune.executors.pack_inputs import PackInputs
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.training.callbacks import Callback, PackEnd
from manytune.training.mailbox import Mail, Mailbox
from manytune.utils import hardware
from manytune.utils.errors import DependencyError, StudyError
from manytune.utils.files import write_file
from manytune.utils.signals import StopRequest

_LOOK_SECONDS = 0.05  # between two looks for calls of tasks, and for a request to stop
_NODES_SECONDS = 2.0  # between two looks at which nodes there are
_PREFLIGHT_SECONDS = 120.0  # for a node to start Python and import torch


@dataclass(frozen=True)
class Resources:
    """What each pack is given of a node."""

    cpu: float = 1.0
    gpu: float = 0.0
    memory: int = 0  # Bytes; 0 asks for none

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "gpu=1,cpu=4,memory=8e9"; raises StudyError for texts of another form."""
        values: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if name not in ("cpu", "gpu", "memory") or not 0 <= number < float("inf"):
                raise StudyError(
                    f"--pack-resources: {part!r} is not one of cpu=N, gpu=N (may be a fraction), memory=BYTES."
                )
            values[name] = number
        chosen = cls(values.get("cpu", 1.0), values.get("gpu", 0.0), int(values.get("memory", 0)))
        if chosen.cpu < 1:
            raise StudyError(f"--pack-resources: a pack needs at least cpu=1, not {chosen.cpu:g}.")
        return chosen

    def fit(self, node: Mapping[str, float]) -> int:
        """Packs that a node has room for at once."""
        asked = {"CPU": self.cpu, "GPU": self.gpu, "memory": float(self.memory)}
        return min(int(node.get(name, 0.0) / wanted + 1e-9) for name, wanted in asked.items() if wanted)

    def sharing(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Packs that share memory at most: that of a GPU, where they have one or a part of one, else that of a node."""
        on_a_node = max(map(self.fit, nodes))
        return min(on_a_node, max(int(1 / self.gpu + 1e-9), 1)) if self.gpu else on_a_node

    def options(self) -> dict[str, Any]:
        """As Ray's tasks take them."""
        return {"num_cpus": self.cpu, "num_gpus": self.gpu, **({"memory": self.memory} if self.memory else {})}


@dataclass(frozen=True)
class OnRay:
    """A Ray cluster.

    `address` is `auto` for the cluster that this machine belongs to, or HOST:PORT of a head; None: that of RAY_ADDRESS,
    else one of this machine alone, which is started.
    """

    address: str | None = None
    resources: Resources = field(default_factory=Resources)  # of each pack
    storage: str | None = None  # a path or fsspec URL that all nodes see, for checkpoints; None: they go to the driver
    _connected: ClassVar[bool] = False  # whether this process's one connection was made here, and is to be ended here

    def profile(self, precision: str, width: int) -> tuple[int, HardwareProfile]:
        """As many packs as the nodes have room for now; what one has is measured on one of them."""
        ray = self._connect()
        try:
            nodes = [node["Resources"] for node in _alive(ray)]
            capacity = self._room(ray)
            if not capacity:
                kinds = ("CPU", "GPU", "memory")
                has = "; ".join(", ".join(f"{kind.lower()}={node.get(kind, 0):g}" for kind in kinds) for node in nodes)
                raise StudyError(f"--pack-resources: no node has room for one pack; the nodes have {has}.")
            self._refuse_unlike_nodes(ray)
            most = self.resources.sharing(nodes)
            task = ray.remote(max_retries=0, **self.resources.options())(ray_node.measure)
            there = task.remote(precision, width, int(self.resources.cpu), self._device, most)
            return capacity, ray.get(there)
        except BaseException:
            self._disconnect(ray)
            raise

    def to_plan(self) -> None:
        """Return None: the packs' resources are named at every start."""

    def open(self, inputs: PackInputs, callback: Callback) -> RayExecutor:
        return RayExecutor(self._connect(), self, inputs, callback)

    @property
    def _device(self) -> str:
        return "cuda" if self.resources.gpu else "cpu"

    def _connect(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise DependencyError("--executor ray needs the package ray: pip install 'manytune[ray]'") from None
        if not ray.is_initialized():
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=self.address, **quiet)
            except ConnectionError as error:
                where = self.address or "the cluster that RAY_ADDRESS names"
                raise StudyError(
                    f"--ray-address: {where} cannot be reached: {ray_node.first_line(error)} Start a cluster "
                    "(ray start --head), give another address, or leave it out to use this machine alone."
                ) from error
            finally:
                if threading.current_thread() is threading.main_thread():  # Ray's handler would end the process at once
                    signal.signal(signal.SIGTERM, handler)
            OnRay._connected = True
        return ray

    def _disconnect(self, ray: Any) -> None:
        """End the connection, unless the caller of manytune had made it before."""
        if OnRay._connected:
            OnRay._connected = False
            ray.shutdown()

    def _room(self, ray: Any) -> int:
        """Packs that the nodes which are there now have room for."""
        return sum(self.resources.fit(node["Resources"]) for node in _alive(ray))

    def _refuse_unlike_nodes(self, ray: Any) -> None:
        """Have every node say that it has the same packages and sees the storage, before anything starts."""
        probe = None
        if self.storage is not None:
            probe = ray_node.Storage(self.storage, f"probe-{time.time_ns()}")
            probe.push({"probe": b"seen"}, ["probe"])
        asked = {}
        for node in _alive(ray):
            if self.resources.fit(node["Resources"]):
                task = ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=_on(node["NodeID"]))(
                    ray_node.node_problem
                )
                asked[node["NodeManagerHostname"], node["NodeID"]] = task.remote(hardware.versions(), probe)
        try:
            for (host, node_id), answer in asked.items():
                try:
                    wrong = ray.get(answer, timeout=_PREFLIGHT_SECONDS)
                except Exception as error:  # manytune is not there, or Python does not start
                    wrong = f"cannot import manytune: {ray_node.first_line(error)}"
                if wrong:
                    raise StudyError(f"--executor ray: the node {host} ({node_id[:8]}) {wrong}")
        finally:
            if probe is not None:
                probe.remove()


class RayExecutor:
    """A task for each pack; a small actor through which tasks and driver talk."""

    def __init__(self, ray: Any, spec: OnRay, inputs: PackInputs, callback: Callback) -> None:
        self._ray = ray
        self._spec = spec
        self._inputs = inputs
        self._callback = callback
        self._store = Store(inputs.root)
        self._tasks: dict[Any, tuple[Pack, int]] = {}
        self._attempts: dict[str, int] = {}
        self._stop_sent = False
        self._capacity = spec._room(ray)
        self._looked_at = time.monotonic()
        # On the driver's own node: a node that dies must not take the mailbox along.
        here = _on(ray.get_runtime_context().get_node_id())
        self._mailbox = ray.remote(num_cpus=0, max_concurrency=100, scheduling_strategy=here)(Mailbox).remote()
        self._shipped: dict[str | int, Any] = {}

    @property
    def capacity(self) -> int:
        if time.monotonic() - self._looked_at >= _NODES_SECONDS:
            self._looked_at = time.monotonic()
            self._capacity = self._spec._room(self._ray)
        return max(self._capacity, 1)  # without room, one pack waits for a node to join

    def submit(self, pack: Pack, ended: Collection[str]) -> None:
        attempt = self._attempts[pack.id] = self._attempts.get(pack.id, 0) + 1
        work = self._inputs.works[pack.task]
        outputs = work.task.num_outputs
        task = self._ray.remote(max_retries=0, **self._spec.resources.options())(ray_node.train)
        reference = task.remote(
            ray_node.PackTask(
                message=pack_message(pack, [run.id for run in pack.runs if run.id in ended]),
                attempt=attempt,
                device=self._spec._device,
                threads=int(self._spec.resources.cpu),
                versions=hardware.versions(),
                storage=self._storage(pack),
                work=self._ship(pack.task, lambda: work),
                backbone=self._ship(outputs, lambda: self._inputs.backbones.of(outputs)),
            ),
            self._mailbox,
            {} if self._spec.storage else ray_node.files_in(self._store.pack_dir(pack.id)),
        )
        self._tasks[reference] = (pack, attempt)

    def send(self, orders: Orders) -> None:
        if (attempt := self._attempts.get(orders.pack_id)) is not None:
            self._mailbox.order.remote(orders.pack_id, attempt, orders_message(orders))

    def wait(self, stop: StopRequest) -> Sequence[PackEnd]:
        """Make the calls that tasks sent, then return the ends: a task's calls are all made before its end."""
        if stop.number is not None and not self._stop_sent:
            self._stop_sent = True
            self._mailbox.stop.remote(stop.number)
            begun = set(self._ray.get(self._mailbox.begun.remote()))
            for reference, (pack, attempt) in self._tasks.items():
                if (pack.id, attempt) not in begun:  # it would begin as soon as another one ends
                    self._ray.cancel(reference)
        done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_LOOK_SECONDS)
        for mail in self._ray.get(self._mailbox.take.remote()):
            if self._attempts.get(mail.pack_id) == mail.attempt:  # else it is of an earlier attempt, which was given up
                self._receive(mail)
        return [self._ended(reference) for reference in done]

    def _receive(self, mail: Mail) -> None:
        """Write the files of a call, then make it."""
        if mail.keep:
            ray_node.mirror(self._store.pack_dir(mail.pack_id), mail.files, mail.keep)
        elif mail.files:
            run_id = RunRecord.from_json(mail.message["record"]).run_id
            for name, content in mail.files.items():
                write_file(self._store.run_dir(run_id) / name, content)
        replay(mail.message, self._callback)

    def _ended(self, reference: Any) -> PackEnd:
        pack, _ = self._tasks.pop(reference)
        exceptions = self._ray.exceptions
        try:
            end = replay(json.loads(self._ray.get(reference)), self._callback)
        except exceptions.TaskCancelledError:
            return PackEnd(pack.id, "stopped")
        except exceptions.OutOfMemoryError as error:  # Ray killed it before the system would
            return PackEnd(pack.id, "broken", reason=ray_node.first_line(error), out_of_memory=True)
        except exceptions.RayTaskError as error:
            return PackEnd(pack.id, "broken", reason=ray_node.first_line(error), traceback=str(error))
        except exceptions.RayError as error:
            return PackEnd(pack.id, "lost", reason=f"its worker or node is gone ({type(error).__name__})")
        assert end is not None
        if end.how == "done" and (storage := self._storage(pack)) is not None:
            storage.remove()
        return end

    def _storage(self, pack: Pack) -> ray_node.Storage | None:
        if self._spec.storage is None:
            return None
        return ray_node.Storage(self._spec.storage, f"{self._inputs.works[pack.task].study.hash}-{pack.id}")

    def _ship(self, key: str | int, value: Callable[[], Any]) -> Any:
        """A reference to a task's work, or to the backbone with so many outputs, put into the object store once."""
        if key not in self._shipped:
            self._shipped[key] = self._ray.put(value())
        return self._shipped[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self._tasks:
            with suppress(Exception):
                self._ray.cancel(reference, force=True)
        with suppress(Exception):
            self._ray.kill(self._mailbox)
        self._spec._disconnect(self._ray)


def _on(node_id: str) -> Any:
    """On that node and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)


def _alive(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
