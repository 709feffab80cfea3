"""One process at a time works on a study directory.

DIR/lock says which: it is made by a hard link, which either succeeds or finds that there is one, on shared file systems
too, where flock may do nothing. Its holder touches it every few seconds. A lock is left over where its process is
dead, or, if that cannot be seen from here, as on another machine, where nobody has touched it for a while. The package
filelock would do less: it relies on flock, or never takes over the lock of a holder that died.

No two wall clocks are compared: a process is known by its id and the kernel's count at its start, and the one who
waits measures the while by its own clock.
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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ConfigDict, TypeAdapter

from manytune.utils.errors import StoreError
from manytune.utils.files import boot_id, read_bytes, writing

_MOST_BYTES = 2**16
_BEAT_SECONDS = 10.0
_PATIENCE_SECONDS = 90.0
"""How long a lock of another machine must go untouched; network file systems may show that late by a minute."""

_LOOK_SECONDS = 1.0
_TRIES = 5
"""Looks at a lock that cannot be read, before its holder stops: network file systems have such moments."""


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    pid: int
    host: str
    """For messages alone."""
    since: str
    """Date and time, with time zone; for messages alone."""
    boot: str
    """The machine since its last start, and the space of process ids: only within it do they mean anything."""
    ticks: int | None
    """When the process started, as the kernel counts: process ids are used again."""
    token: str

    @classmethod
    def here(cls) -> Self:
        """This process."""
        pid, since = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
        return cls(pid, socket.gethostname(), since, _boot(), _ticks(pid), secrets.token_hex(8))

    def alive(self) -> bool | None:
        """Whether its process lives; None where that cannot be seen from here."""
        import psutil

        if not self.boot or self.boot != _boot():
            return None
        try:
            if not psutil.pid_exists(self.pid):
                return False
        except OverflowError:
            return False
        ticks = _ticks(self.pid)
        return None if ticks is None or self.ticks is None else ticks == self.ticks

    def __str__(self) -> str:
        return f"the process {self.pid} on {self.host}, since {self.since}"


_holder_adapter = cache(lambda: TypeAdapter(_Holder))  # made once: a lock is read before every write


@dataclass(frozen=True)
class Held:
    """A lock that is held, as its process and those that work for it see it."""

    directory: Path
    """What is locked."""
    token: str
    """Tells this holder from every other."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set once the heartbeat has noticed that another process holds it."""

    def check(self) -> None:
        """Before each write: refuse, by a StoreError, to go on where this holder lost the lock or cannot read it."""
        for tries_left in reversed(range(_TRIES)):
            try:
                holder = _holder_in(self.directory / "lock")
                break
            except StoreError:
                if not tries_left:
                    raise
                time.sleep(_LOOK_SECONDS)
        if holder is not None and holder.token == self.token:
            return
        what = (
            f"The lock in {self.directory} is gone: somebody has deleted it"
            if holder is None
            else f"Another process has taken {self.directory} over, because this one seemed to be dead: {holder}"
        )
        raise StoreError(f"{what}. What was done until then is kept; the same command goes on from it.")


class Lock:
    """The lock of one directory, which may be missing; `report` gets a sentence where there is a reason to wait.

    With `wait`, it waits for another process to end rather than refuse.
    """

    def __init__(self, directory: Path, report: Callable[[str], None], *, wait: bool = False) -> None:
        self.directory = directory
        self._report = report
        self._wait = wait
        self._file = directory / "lock"
        self._reported: set[str] = set()
        self._judged: tuple[Path, _Holder, int | None] | None = None

    @staticmethod
    def holder_of(directory: Path) -> str | None:
        """Who works on a directory, in words; None if nobody does, as far as can be seen from here."""
        holder = _holder_in(directory / "lock")
        if holder is None or holder.alive() is False:
            return None
        return f"The process {holder.pid} on {holder.host} works on it, since {holder.since}."

    def look(self) -> None:
        """Wait, if we are to, as long as another process holds the lock; else refuse, by a StoreError."""
        while (holder := _holder_in(self._file)) is not None and not self._left_over(holder, self._file):
            if not self._wait:
                raise StoreError(
                    f"{self.directory} is in use: {holder}, runs a study in it. "
                    "Let it end, wait for it with --wait, or give another --out."
                )
            self._report_once(f"Waiting for {holder}, which runs a study in {self.directory}.")
            time.sleep(_LOOK_SECONDS)

    @contextmanager
    def held(self) -> Iterator[Held]:
        """Hold the lock, for as long as the context lasts; a directory that is missing is made.

        A directory that was made for it and is still empty at the end is removed. A StoreError says that another
        process holds the lock, or that it cannot be written.
        """
        me = _Holder.here()
        made = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        while not self._take(me):
            self.look()
        held = Held(self.directory, me.token)
        done = threading.Event()
        beat = threading.Thread(target=self._beat, args=(me, held.lost, done), daemon=True)
        beat.start()
        try:
            yield held
        finally:
            done.set()
            beat.join()
            with suppress(StoreError):  # a lock that cannot be read now is left over once this process has ended
                if _holder_in(self._file) == me:
                    self._file.unlink(missing_ok=True)
            with suppress(OSError):
                for path in made:
                    path.rmdir()

    def _take(self, me: _Holder) -> bool:
        """Make the lock, or take over one that was left over; not where somebody who lives has it."""
        holder = _holder_in(self._file)
        text = json.dumps(asdict(me))
        with writing(self._file):
            if holder is None:
                self.directory.mkdir(parents=True, exist_ok=True)
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
        """Replace a lock that was left over.

        Several processes may find it left over at once. The one that succeeds in making a file named after the dead
        holder may replace the lock; so there is no moment without a lock, in which a latecomer could remove the new
        one. If that process dies before it has replaced it, the right goes in turn to the one that makes a file named
        after that process.
        """
        last = dead
        while not self._make(claim := self._claim(last), text):
            other = _holder_in(claim)
            if other is None or not self._left_over(other, claim):
                return False
            last = other
        try:
            if _holder_in(self._file) != dead:  # it was replaced before we claimed it
                return False
            temporary = self._file.with_name(f".lock.{secrets.token_hex(8)}.tmp")
            temporary.write_text(text)
            temporary.replace(self._file)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _claim(self, holder: _Holder) -> Path:
        """The file whose maker may replace a holder's lock."""
        name = hashlib.sha256(holder.token.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self._file.with_name(f".lock.{name}.tmp")

    def _left_over(self, holder: _Holder, file: Path) -> bool:
        """Whether the holder of a file is dead, or has not touched it for long."""
        alive = holder.alive()
        if alive is not None:
            return not alive
        touched = _touched(file)
        if self._judged == (file, holder, touched):  # it was waited for in full already, and not touched since
            return True
        self._report_once(f"{file} is of {holder.host}. Looking whether it lives: {_PATIENCE_SECONDS:.0f} s at most.")
        end = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            if _touched(file) != touched or _holder_in(file) != holder:
                return False
        self._judged = (file, holder, touched)
        return True

    def _report_once(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self._report(text)

    def _beat(self, me: _Holder, lost: threading.Event, done: threading.Event) -> None:
        """Touch the lock again and again; a moment in which that fails is no reason to give up."""
        while not done.wait(_BEAT_SECONDS):
            with suppress(OSError, StoreError):
                if _holder_in(self._file) != me:
                    lost.set()
                    return
                os.utime(self._file)


def _touched(file: Path) -> int | None:
    """When a file was last touched; None if it is gone."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _holder_in(file: Path) -> _Holder | None:
    """Who holds a lock, None if nobody does: somebody unknown if the file is cut short, or of another version."""
    data = read_bytes(file, _MOST_BYTES)
    if data is None:
        return None
    try:
        return _holder_adapter().validate_json(data)
    except ValueError:
        return _Holder(0, "an unknown machine", "an unknown time", "", None, hashlib.sha256(data).hexdigest())


def _boot() -> str:
    """The machine since its last start, and the space of process ids."""
    # Not the time of that start: it is computed from the wall clock, and moves when that is set.
    parts = [boot_id() or socket.gethostname()]
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


_ENDED = -1
"""Instead of a count: the process has ended, and its parent has not waited for it."""


def _ticks(pid: int) -> int | None:
    """When a process started, as the kernel counts; None if that cannot be seen, as with /proc mounted hidepid."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _ENDED if state[0] in (b"Z", b"X") else int(state[19])  # field 22 of proc(5), in ticks since the boot
    except (OSError, IndexError, ValueError):
        if Path("/proc/self/stat").exists():
            return None
    import psutil

    try:  # elsewhere than on Linux the kernel keeps the time itself
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return _ENDED if ended else round(1000 * process.create_time())
    except psutil.Error:
        return None
