"""A wish to stop, by Ctrl-C or SIGTERM, that waits until nothing is lost by it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The user asked to stop, and what is needed to go on is on the disk.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


class StopRequest:
    """Whether someone has asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None

    def obey(self) -> None:
        """Stop if that was asked for: to be called where nothing is lost by it.

        Raises:
            Interrupted: It was asked for.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Take in a signal; the second one stops at once.

        Raises:
            Interrupted: It is the second one.
        """
        if self.number is not None:
            raise Interrupted(number)
        self.number = number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn signals to stop into a request, as long as the context lasts; outside the main thread there are none."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
