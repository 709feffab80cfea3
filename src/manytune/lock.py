"""One process at a time works on a study directory.

DIR/lock says who: it is made by a hard link, which either succeeds or finds that there is one, on shared file systems
too, where flock may do nothing. Its holder touches it every few seconds. A lock is left over where its process is
dead, or, if that was on another machine, where nobody has touched it for a while.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from manytune.errors import StoreError
from manytune.files import read_text, writing
from manytune.json_text import parse_json

__all__ = ["Lock"]

_MOST_BYTES = 2**16
_BEAT_SECONDS = 10.0
_PATIENCE_SECONDS = 90.0
"""How long a lock of another machine must go untouched; network file systems may show that late by a minute."""

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock."""

    pid: int
    host: str
    since: str
    """Date and time, with time zone."""
    place: str
    """The machine since its last start, and the space of process ids: only within it do they mean anything."""
    started: float | None
    """When the process started, in seconds since 1970: process ids are used again."""
    token: str

    @classmethod
    def here(cls) -> Self:
        """This process."""
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(pid, socket.gethostname(), since, _place(), _started(pid), secrets.token_hex(8))

    def alive(self) -> bool | None:
        """Whether its process lives; None where that cannot be seen from here."""
        if self.place != _place():
            return None
        started = _started(self.pid)
        return started is not None and (self.started is None or abs(started - self.started) < 1.0)


class Lock:
    """The lock of one directory.

    Attributes:
        directory: What is locked.
    """

    def __init__(self, directory: Path, told: Callable[[str], None], *, wait: bool = False) -> None:
        """Look at a directory; nothing is locked yet.

        Args:
            directory: What to lock; it may be missing as long as it is only looked at.
            told: Given a sentence where there is a reason to wait.
            wait: Wait for another process to end, rather than refuse.
        """
        self.directory = directory
        self._told = told
        self._wait = wait
        self._file = directory / "lock"
        self._me: _Holder | None = None
        self._lost = threading.Event()

    @staticmethod
    def holder_of(directory: Path) -> str | None:
        """Who works on a directory, in words; None if nobody does, as far as can be seen from here."""
        holder = _holder_in(directory / "lock")
        if holder is None or holder.alive() is False:
            return None
        return f"The process {holder.pid} on {holder.host} works on it, since {holder.since}."

    def look(self) -> None:
        """Wait, or refuse, as long as another process holds the lock.

        Raises:
            StoreError: Another process holds it, and we are not to wait.
        """
        said = False
        while (holder := self._read()) is not None and not self._left_over(holder, self._file):
            who = f"the process {holder.pid} on {holder.host}, since {holder.since}"
            if not self._wait:
                raise StoreError(
                    f"{self.directory} is in use: {who}, runs a study in it. "
                    "Let it end, wait for it with --wait, or give another --out."
                )
            if not said:
                self._told(f"Waiting for {who}, which runs a study in {self.directory}.")
                said = True
            time.sleep(_LOOK_SECONDS)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock, for as long as the context lasts.

        Raises:
            StoreError: Another process holds it, or it cannot be written.
        """
        me = _Holder.here()
        while not self._take(me):
            self.look()
        self._me = me
        done = threading.Event()
        beat = threading.Thread(target=self._beat, args=(done,), daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()
            self._me = None
            if not self._lost.is_set() and self._read() == me:
                self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Refuse to go on once another process has taken the lock over.

        Raises:
            StoreError: It has.
        """
        if self._lost.is_set():
            raise StoreError(
                f"Another process has taken {self.directory} over, because this one seemed to be dead. "
                "What it did until then is kept."
            )

    def _take(self, me: _Holder) -> bool:
        """Make the lock, or take over one that was left over; not where somebody who lives has it."""
        holder = self._read()
        text = json.dumps(asdict(me))
        with writing(self._file):
            if holder is None:
                return self._make(self._file, text)
            return self._left_over(holder, self._file) and self._replace(holder, text)

    def _make(self, file: Path, text: str) -> bool:
        """Make a file with all of its content at once, unless it is there."""
        temporary = file.with_name(f".lock.{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_text(text)
            try:
                os.link(temporary, file)
            except FileExistsError:
                return False
            except OSError:  # no hard links on this file system
                with file.open("x") as opened:
                    opened.write(text)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _replace(self, dead: _Holder, text: str) -> bool:
        """Take the place of a lock that was left over.

        Of all that found it so, the one that makes a file named after it may: there is no moment without a lock, in
        which one who came late could take away that of the first. Where that one died on the way, the right goes to
        who makes a file named after it.
        """
        last = dead
        while not self._make(right := self._right(last), text):
            other = _holder_in(right)
            if other is None or not self._left_over(other, right):
                return False
            last = other
        try:
            if self._read() != dead:  # it was replaced before we got the right
                return False
            temporary = self._file.with_name(f".lock.{secrets.token_hex(8)}.tmp")
            temporary.write_text(text)
            temporary.replace(self._file)
            return True
        finally:
            right.unlink(missing_ok=True)

    def _right(self, holder: _Holder) -> Path:
        """The file that gives the right to take a holder's place."""
        return self._file.with_name(f".lock.{hashlib.sha256(holder.token.encode()).hexdigest()[:16]}.tmp")

    def _left_over(self, holder: _Holder, file: Path) -> bool:
        """Whether the holder of a file is dead, or has not touched it for long."""
        alive = holder.alive()
        if alive is not None:
            return not alive
        self._told(f"{file} is of {holder.host}. Looking whether it lives: {_PATIENCE_SECONDS:.0f} s at most.")
        touched, end = _touched(file), time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            if _touched(file) != touched or _holder_in(file) != holder:
                return False
        return True

    def _read(self) -> _Holder | None:
        """Who holds the lock; None if nobody does."""
        return _holder_in(self._file)

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(_BEAT_SECONDS):
            if self._read() != self._me:
                self._lost.set()
                return
            with suppress(OSError):
                os.utime(self._file)


def _touched(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _holder_in(file: Path) -> _Holder | None:
    text = read_text(file, _MOST_BYTES)
    if text is None:
        return None
    try:
        return _Holder(**parse_json(text))
    except (ValueError, TypeError):  # cut short, where there are no hard links: of somebody who cannot be seen
        return _Holder(0, "an unknown machine", "an unknown time", "", None, text)


def _place() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> float | None:
    """When a process started; None if there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None
