"""What runs on a Ray cluster beside the driver: the tasks that train packs, and how they and the driver talk."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manytune.executors.base import PackEnd
from manytune.executors.estimate import HardwareProfile
from manytune.executors.inline import train_apart
from manytune.executors.messages import Sender, encoded, end_message, pack_in
from manytune.executors.pack_inputs import PackInputs
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.utils import hardware
from manytune.utils.files import write_file
from manytune.utils.signals import StopRequest

__all__ = ["Files", "Order", "Post", "Storage", "files_in", "first_line", "look", "measure", "mirror", "train"]

_ASK_SECONDS = 0.4
"""Between two questions whether to stop."""

_NOT_OURS = ("oom-kills.txt", "traceback.txt")
"""Files of a pack's directory that are no part of its checkpoints."""

Files = dict[str, bytes]
"""Name → content."""


@dataclass(frozen=True)
class Order:
    """What a task is asked to do.

    Attributes:
        message: The pack, and which of its runs have a record.
        attempt: Which time this is for the pack, from 1.
        device: The device's type.
        threads: torch's threads.
        versions: The driver's.
        storage: Where checkpoints go; None: to the driver.
        work: A reference to the task's work.
        backbone: A reference to the backbone.
    """

    message: dict[str, Any]
    attempt: int
    device: str
    threads: int
    versions: dict[str, str]
    storage: Storage | None
    work: Any
    backbone: Any


@dataclass(frozen=True)
class Storage:
    """A folder that all nodes see."""

    url: str
    folder: str

    def push(self, files: Files, keep: Collection[str]) -> None:
        """Write new files, those that name others last, and remove all but `keep`."""
        system, base = self._open()
        system.makedirs(base, exist_ok=True)
        for name in sorted(files, key=_documents_last):
            system.pipe_file(f"{base}/{name}", files[name])
        for path in system.ls(base, detail=False):
            if path.rpartition("/")[2] not in keep:
                system.rm_file(path)

    def pull(self) -> Files:
        """All that is there."""
        system, base = self._open()
        if not system.exists(base):
            return {}
        return {path.rpartition("/")[2]: system.cat_file(path) for path in system.ls(base, detail=False)}

    def remove(self) -> None:
        """Remove it."""
        system, base = self._open()
        if system.exists(base):
            system.rm(base, recursive=True)

    def _open(self) -> tuple[Any, str]:
        import fsspec

        system, path = fsspec.core.url_to_fs(self.url)
        system.invalidate_cache()
        return system, f"{path.rstrip('/')}/{self.folder}"


class Post:
    """Where tasks leave their messages and the driver its wish to stop; an actor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: list[tuple[str, int, dict[str, Any], Files]] = []
        self._begun: list[tuple[str, int]] = []
        self._stop: int | None = None

    def tell(self, pack_id: str, attempt: int, message: dict[str, Any], files: Files) -> None:
        """Leave a message."""
        with self._lock:
            self._messages.append((pack_id, attempt, message, files))

    def take(self) -> list[tuple[str, int, dict[str, Any], Files]]:
        """Take all messages, in their order."""
        with self._lock:
            messages, self._messages = self._messages, []
        return messages

    def begin(self, pack_id: str, attempt: int) -> int | None:
        """Note that a task has begun; returns the wish to stop, if there is one already."""
        with self._lock:
            self._begun.append((pack_id, attempt))
        return self._stop

    def begun(self) -> list[tuple[str, int]]:
        """Tasks that have begun."""
        with self._lock:
            return list(self._begun)

    def stop(self, number: int) -> None:
        """Ask all tasks to stop."""
        self._stop = number

    def stopped(self) -> int | None:
        """Whether that was asked, and by which signal."""
        return self._stop


def measure(precision: str, width: int, threads: int, device: str, sharing: int) -> HardwareProfile:
    """What a pack has to itself on this node."""
    return HardwareProfile.measure(torch.device(device), precision, width, threads=threads, sharing=sharing)


def look(versions: dict[str, str], probe: Storage | None) -> str | None:
    """What keeps a node from training packs as the driver would; None if nothing does."""
    wrong = _unlike(versions)
    if wrong is None and probe is not None and probe.pull() != {"probe": b"seen"}:
        wrong = f"does not see --ray-storage {probe.url}: give a executor that all nodes share."
    return wrong


def _unlike(versions: Mapping[str, str]) -> str | None:
    here = hardware.versions()
    other = [
        f"{name} {here.get(name, 'missing')}, not {version}"
        for name, version in versions.items()
        if here.get(name) != version
    ]
    return f"has other versions than the driver: {'; '.join(other)}. Install the same there." if other else None


_CACHE: dict[str, Any] = {}
"""Of the process: work and backbone by reference, so that the next pack that needs the same reads nothing again."""


def train(order: Order, post: Any, checkpoints: Files) -> bytes:
    """Train a pack in a folder of its own; returns how it ended, as a message."""
    import ray

    pack, ended = pack_in(order.message)
    wrong = _unlike(order.versions)
    if wrong is not None:  # a node that joined later
        return encoded(end_message(PackEnd(pack.id, "refused", reason=f"--executor ray: a node {wrong}")))
    stop = StopRequest()
    stop.number = ray.get(post.begin.remote(pack.id, order.attempt))
    wanted = {reference.hex(): reference for reference in (order.work, order.backbone)}
    for key in _CACHE.keys() - wanted.keys():
        del _CACHE[key]
    for key in wanted.keys() - _CACHE.keys():
        _CACHE[key] = ray.get(wanted[key])
    work, backbone = (_CACHE[key] for key in wanted)
    torch.set_num_threads(order.threads)
    hardware.keep_freed_memory()
    root = Path(tempfile.mkdtemp(prefix="manytune-"))
    over = threading.Event()
    threading.Thread(target=_obey, args=(post, stop, over), daemon=True).start()
    try:
        store = Store(root)
        courier = _Courier(store, post, order, pack.id)
        mirror(store.pack_dir(pack.id), order.storage.pull() if order.storage else checkpoints, None)
        inputs = PackInputs(work.study, root, {pack.task: work}, lambda work: (work, backbone))
        device = torch.device(order.device)
        return encoded(end_message(train_apart(store, inputs, pack, ended, device, courier.sender, stop, courier.kept)))
    finally:
        over.set()
        shutil.rmtree(root, ignore_errors=True)


def _obey(post: Any, stop: StopRequest, over: threading.Event) -> None:
    """Ask again and again whether to stop."""
    import ray

    while stop.number is None and not over.wait(_ASK_SECONDS):
        with suppress(ray.exceptions.RayError):  # the driver is gone, and this process will be in a moment
            stop.number = ray.get(post.stopped.remote())


class _Courier:
    """Brings to the driver what a pack tells, and what must outlive the node."""

    def __init__(self, store: Store, post: Any, order: Order, pack_id: str) -> None:
        self.sender = Sender(self._send)
        self._store = store
        self._post = post
        self._order = order
        self._pack_id = pack_id
        self._there: set[str] = set()

    def kept(self) -> None:
        """Bring the files of a new checkpoint that are not there yet."""
        files = files_in(self._store.pack_dir(self._pack_id))
        names = list(files)
        new = {name: content for name, content in files.items() if name not in self._there}
        if self._order.storage is not None:
            self._order.storage.push(new, names)
        else:
            self._deliver({"kept": names}, new)
        self._there = set(names)

    def _send(self, message: dict[str, Any]) -> None:
        files: Files = {}
        if message["tell"] == "run_ended":
            files = files_in(self._store.run_dir(RunRecord.from_json(message["record"]).run_id))
        self._deliver(message, files)

    def _deliver(self, message: dict[str, Any], files: Files) -> None:
        import ray

        sent = self._post.tell.remote(self._pack_id, self._order.attempt, message, files)
        if message.get("tell") != "step":  # all else is there before training goes on
            ray.get(sent)


def files_in(folder: Path) -> Files:
    """Every file below a folder, by its path in it."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _NOT_OURS)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def mirror(folder: Path, files: Files, keep: Sequence[str] | None) -> None:
    """Write files, those that name others last; then remove all but `keep`, if it is given."""
    for name in sorted(files, key=_documents_last):
        write_file(folder / name, files[name])
    if keep is not None:
        for path in folder.iterdir():
            if path.name not in (*keep, *_NOT_OURS):
                path.unlink()


def _documents_last(name: str) -> tuple[bool, str]:
    return name.endswith(".json"), name


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
