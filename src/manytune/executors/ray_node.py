"""The part that runs on a Ray cluster's nodes: tasks that train packs."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manytune.executors.estimate import HardwareProfile
from manytune.executors.inline import train_here
from manytune.executors.messages import CallSender, call_message, encoded, orders_in, pack_in
from manytune.executors.orders import Inbox
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.training.callbacks import PackEnd
from manytune.training.mailbox import Files, Mail
from manytune.utils import hardware
from manytune.utils.files import write_file
from manytune.utils.signals import StopRequest

_ASK_SECONDS = 0.4  # between two looks for a request to stop
_DRIVERS_OWN = ("oom-kills.txt", "traceback.txt")
"""Files of a pack's directory that the driver writes, and that are no part of its checkpoints."""


@dataclass(frozen=True)
class PackTask:
    """What a Ray task is asked to do."""

    message: dict[str, Any]  # the pack, and which of its runs have a record
    attempt: int  # which time this is for the pack, from 1
    device: str
    threads: int
    versions: dict[str, str]  # of the driver's packages
    storage: Storage | None  # where checkpoints go; None: to the driver
    work: Any
    backbone: Any  # references to objects in Ray's store


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


def measure(precision: str, width: int, threads: int, device: str, sharing: int) -> HardwareProfile:
    """What a pack has to itself on this node."""
    return HardwareProfile.measure(torch.device(device), precision, width, threads=threads, sharing=sharing)


def node_problem(versions: dict[str, str], probe: Storage | None) -> str | None:
    """What keeps a node from training packs as the driver would; None if nothing does."""
    wrong = _unlike(versions)
    if wrong is None and probe is not None and probe.pull() != {"probe": b"seen"}:
        wrong = f"does not see --ray-storage {probe.url}: give a folder or URL that all nodes share."
    return wrong


def _unlike(versions: Mapping[str, str]) -> str | None:
    here = hardware.versions()
    differing = [(name, version) for name, version in versions.items() if here.get(name) != version]
    other = [f"{name} {here.get(name, 'missing')}, not {version}" for name, version in differing]
    return f"has other versions than the driver: {'; '.join(other)}. Install the same there." if other else None


_CACHE: dict[str, Any] = {}
"""Reference → work or backbone, kept in the process so that the next pack with the same ones reads nothing again."""


def train(task: PackTask, mailbox: Any, checkpoints: Files) -> bytes:
    """Train a pack in a folder of its own; returns how it ended, as a message."""
    import ray

    pack, ended = pack_in(task.message)
    wrong = _unlike(task.versions)
    if wrong is not None:  # a node that joined after the preflight
        return _end_message(PackEnd(pack.id, "refused", reason=f"--executor ray: a node {wrong}"))
    stop = StopRequest()
    stop.number = ray.get(mailbox.begin.remote(pack.id, task.attempt))
    wanted = {reference.hex(): reference for reference in (task.work, task.backbone)}
    for key in _CACHE.keys() - wanted.keys():
        del _CACHE[key]
    for key in wanted.keys() - _CACHE.keys():
        _CACHE[key] = ray.get(wanted[key])
    work, backbone = (_CACHE[key] for key in wanted)
    torch.set_num_threads(task.threads)
    hardware.keep_freed_memory()
    root = Path(tempfile.mkdtemp(prefix="manytune-"))
    over = threading.Event()
    inbox = Inbox()
    poll = (mailbox, stop, over, inbox, (pack.id, task.attempt) if pack.expected is not None else None)
    threading.Thread(target=_poll, args=poll, daemon=True).start()
    try:
        mirror(Store(root).pack_dir(pack.id), task.storage.pull() if task.storage else checkpoints, None)
        inputs = PackInputs(root, {pack.task: work}, Backbones(work.study.model, backbone))
        callback = CallSender(_mail_sender(Store(root), mailbox, task, pack.id))
        device = torch.device(task.device)
        end = train_here(inputs, pack, ended, device, callback, stop, inbox, apart=True)
        if end.how == "lost":  # Ray would give this process, whose GPU serves it no more, the next pack
            callback.on_message(f"{pack.id}: {end.reason}", "warning")
            shutil.rmtree(root, ignore_errors=True)
            os._exit(1)
        return _end_message(end)
    finally:
        over.set()
        shutil.rmtree(root, ignore_errors=True)


def _end_message(end: PackEnd) -> bytes:
    return encoded(call_message("on_pack_end", {"end": end}))


def _poll(
    mailbox: Any, stop: StopRequest, over: threading.Event, inbox: Inbox, searched: tuple[str, int] | None
) -> None:
    """Poll the mailbox for a request to stop, until there is one or the pack is `over`.

    `searched` is the pack's id and attempt where it is one of a search: its orders are polled too.
    """
    import ray

    while stop.number is None and not over.wait(_ASK_SECONDS):
        with suppress(ray.exceptions.RayError):  # the driver is gone, and this process will be in a moment
            stop.number = ray.get(mailbox.stopped.remote())
            if searched is not None:
                for message in ray.get(mailbox.orders.remote(*searched)):
                    inbox.put(orders_in(message))


def _mail_sender(store: Store, mailbox: Any, task: PackTask, pack_id: str) -> Callable[[dict[str, Any]], None]:
    """A function that sends the calls of a pack to the driver, with the files that must outlive the node."""
    import ray

    before: Collection[str] = ()  # files of the checkpoint that was sent last

    def send(message: dict[str, Any]) -> None:
        nonlocal before
        files: Files = {}
        keep: tuple[str, ...] = ()
        if message["hook"] == "on_run_end":
            files = files_in(store.run_dir(RunRecord.from_json(message["record"]).run_id))
        elif message["hook"] == "on_checkpoint":
            whole = files_in(store.pack_dir(pack_id))
            files = {name: content for name, content in whole.items() if name not in before}
            before = keep = tuple(whole)
            if task.storage is not None:
                task.storage.push(files, keep)
                files, keep = {}, ()
        sent = mailbox.put.remote(Mail(pack_id, task.attempt, message, files, keep))
        if message["hook"] != "on_step_end":  # training goes on only when the driver can read the call
            ray.get(sent)

    return send


def files_in(folder: Path) -> Files:
    """Every file in a folder and its subfolders, by its path in it."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _DRIVERS_OWN)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def mirror(folder: Path, files: Files, keep: Sequence[str] | None) -> None:
    """Write files, those that name others last; then remove all but `keep`, if it is given."""
    for name in sorted(files, key=_documents_last):
        write_file(folder / name, files[name])
    if keep is not None:
        for path in folder.iterdir():
            if path.name not in (*keep, *_DRIVERS_OWN):
                path.unlink()


def _documents_last(name: str) -> tuple[bool, str]:
    return name.endswith(".json"), name


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
