"""A request to stop, by Ctrl-C or SIGTERM, that is obeyed where no work is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The user asked to stop by the signal `number`, and what is needed to go on is on the disk."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


class StopRequest:
    """Whether someone has asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None

    def obey(self) -> None:
        """Raise Interrupted if a stop was requested; to be called where no work is lost by it."""
        if self.number is not None:
            raise Interrupted(self.number)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: the first one is kept for `obey`, the second one raises Interrupted at once."""
        if self.number is not None:
            raise Interrupted(number)
        self.number = number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn signals to stop into a request while the context lasts; outside the main thread no signal arrives."""
    request = StopRequest()
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, request.note) for number in _SIGNALS if in_main}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
