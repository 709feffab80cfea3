"""A worker process: trains the packs that it is given, one after the other, until its pipe ends.

python -m manytune.executors.worker_process FD
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from manytune.config import Study
from manytune.executors.inline import train_here
from manytune.executors.messages import CallSender, encoded, orders_in, pack_in
from manytune.executors.orders import Inbox
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.storage.directory import Store
from manytune.storage.lock import Held
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware
from manytune.utils.errors import DataError
from manytune.utils.signals import StopRequest

__all__: list[str] = []


class _Works(dict[str, TaskWork]):
    """Task name → its work, made ready when it is first asked for."""

    def __init__(self, study: Study, backbones: Backbones, fingerprints: dict[str, str]) -> None:
        super().__init__()
        self._study = study
        self._backbones = backbones
        self._fingerprints = fingerprints

    def __missing__(self, name: str) -> TaskWork:
        work = prepare(self._study, name, self._backbones.spec)
        if work.fingerprint != self._fingerprints[name]:
            raise DataError(f"The data of {name} has changed since the study was started. Start it again.")
        self[name] = work
        return work


def main(descriptor: int) -> None:
    """Train what comes through the pipe."""
    connection = Connection(descriptor)
    setup = json.loads(connection.recv_bytes())
    if setup["cores"]:
        os.sched_setaffinity(0, setup["cores"])
    torch.set_num_threads(setup["threads"])
    device = hardware.choose_device(setup["device"])
    hardware.keep_freed_memory()
    stop = StopRequest()
    packs: queue.SimpleQueue[tuple[dict[str, Any], Inbox]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, packs, stop), daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        with suppress(OSError):  # the driver is gone: so are we, in a moment
            connection.send_bytes(encoded(message))

    store, callback = Store(Path(setup["root"])), CallSender(send)
    study = store.study()
    backbones = Backbones(study.model)
    held = Held(store.root, setup["lock"]) if setup["lock"] else None
    inputs = PackInputs(store.root, _Works(study, backbones, setup["fingerprints"]), backbones, held)
    while True:
        message, inbox = packs.get()
        pack, ended = pack_in(message)
        callback.on_pack_end(train_here(inputs, pack, ended, device, callback, stop, inbox, apart=True))


def _listen(connection: Connection, packs: queue.SimpleQueue[tuple[dict[str, Any], Inbox]], stop: StopRequest) -> None:
    """Receive what the driver sends; where it is gone, exit: another driver may have taken the directory over."""
    inbox = Inbox()  # of the pack that came last
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)
        if "stop" in message:
            stop.number = message["stop"]
        elif "orders" in message:
            inbox.put(orders_in(message))
        else:
            inbox = Inbox()
            packs.put((message, inbox))


if __name__ == "__main__":
    main(int(sys.argv[1]))
