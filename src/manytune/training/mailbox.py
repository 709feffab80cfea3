"""The actor that carries calls of callbacks from a Ray cluster's tasks to the driver; its process imports no torch."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

Files = dict[str, bytes]  # name → content


@dataclass(frozen=True)
class Mail:
    """A call of a task's callback on its way to the driver, with the files that go with it."""

    pack_id: str
    attempt: int
    message: dict[str, Any]
    files: Files
    keep: tuple[str, ...] = ()  # of a checkpoint: the names of all its files, those that were sent before too


class Mailbox:
    """An actor that carries the calls of tasks to the driver, and the driver's orders and request to stop to tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mail: list[Mail] = []
        self._begun: list[tuple[str, int]] = []
        self._orders: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._stop: int | None = None

    def put(self, mail: Mail) -> None:
        """Leave a call."""
        with self._lock:
            self._mail.append(mail)

    def take(self) -> list[Mail]:
        """Take all calls, in their order."""
        with self._lock:
            mail, self._mail = self._mail, []
        return mail

    def begin(self, pack_id: str, attempt: int) -> int | None:
        """Note that a task has begun; returns the signal to stop by, if there is one already."""
        with self._lock:
            self._begun.append((pack_id, attempt))
        return self._stop

    def begun(self) -> list[tuple[str, int]]:
        """Tasks that have begun."""
        with self._lock:
            return list(self._begun)

    def order(self, pack_id: str, attempt: int, orders: dict[str, Any]) -> None:
        """Leave orders for a task."""
        with self._lock:
            self._orders.setdefault((pack_id, attempt), []).append(orders)

    def orders(self, pack_id: str, attempt: int) -> list[dict[str, Any]]:
        """Take the orders that were left for a task, in their order."""
        with self._lock:
            return self._orders.pop((pack_id, attempt), [])

    def stop(self, number: int) -> None:
        """Ask all tasks to stop."""
        self._stop = number

    def stopped(self) -> int | None:
        """The signal by which a stop was requested, if one was."""
        return self._stop
