"""One process at a time works on a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from manytune.storage import lock as module
from manytune.storage.lock import Lock
from manytune.utils.errors import StoreError

HOLD = """
import sys, time
from pathlib import Path
from manytune.storage.lock import Lock
with Lock(Path(sys.argv[1]), print).held():
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line, or is killed."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def left(directory: Path, **changes: Any) -> Any:
    """A lock that somebody left."""
    holder = replace(module._Holder.here(), **changes)
    (directory / "lock").write_text(json.dumps(asdict(holder)))
    return holder


@contextmanager
def touched(directory: Path) -> Iterator[None]:
    """Somebody touches the lock again and again."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(0.01):
            os.utime(directory / "lock")

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        yield
    finally:
        done.set()
        toucher.join()


def test_it_is_there_while_it_is_held_and_says_who(tmp_path: Path) -> None:
    lock = Lock(tmp_path, print)
    lock.look()
    with lock.held() as held:
        found = json.loads((tmp_path / "lock").read_text())
        assert found["pid"] == os.getpid()
        held.check()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        for attempt in (Lock(tmp_path, print).look, Lock(tmp_path, print).held().__enter__):
            with pytest.raises(StoreError, match=rf"is in use: the process {process.pid} on .*, since 2.*--wait"):
                attempt()
        assert process.poll() is None


def test_with_wait_it_waits_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    messages: list[str] = []
    with other(tmp_path) as process:
        lock = Lock(tmp_path, messages.append, wait=True)
        waiting = threading.Thread(target=lock.look)
        waiting.start()
        while not messages:
            time.sleep(0.001)
        assert waiting.is_alive()
        process.communicate("end\n")
        waiting.join()
    (message,) = messages
    assert message.startswith(f"Waiting for the process {process.pid} on ")
    with lock.held():
        pass


def test_a_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / "lock").exists()
        with Lock(tmp_path, print).held():
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    left(tmp_path, ticks=1)
    with Lock(tmp_path, print).held():
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [None, "", '{"pid": 1', "[]"], ids=str)
def test_one_of_another_machine_is_left_over_when_nobody_touches_it(tmp_path: Path, content: str | None) -> None:
    if content is None:
        left(tmp_path, boot="elsewhere", host="elsewhere")
    else:
        (tmp_path / "lock").write_text(content)
    messages: list[str] = []
    with Lock(tmp_path, messages.append).held():
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert "Looking whether it lives" in messages[0]


@pytest.mark.usefixtures("quick")
def test_one_of_another_machine_is_in_use_when_somebody_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path, boot="elsewhere", host="elsewhere")
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 60.0)
    with touched(tmp_path), pytest.raises(StoreError, match=r"is in use: the process .* on elsewhere"):
        Lock(tmp_path, print).look()


def test_a_lock_that_came_in_the_place_of_a_dead_one_is_not_taken_away(tmp_path: Path) -> None:
    dead = left(tmp_path, ticks=1)
    with other(tmp_path):  # which took the dead one's over
        lock = Lock(tmp_path, print)
        assert not lock._replace(dead, "")
        with pytest.raises(StoreError, match="is in use"):
            lock.look()


def test_of_many_that_want_it_one_at_a_time_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    inside, most = [0], [0]

    def work() -> None:
        with Lock(tmp_path, lambda text: None, wait=True).held():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            inside[0] -= 1

    for _ in range(20):
        left(tmp_path, ticks=1)
        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_where_one_died_while_it_took_a_lock_over_the_next_one_does(tmp_path: Path) -> None:
    dead = left(tmp_path, ticks=1)
    lock = Lock(tmp_path, print)
    right = lock._claim(dead)
    right.write_text(json.dumps({**asdict(dead), "token": "of one that died"}))
    with lock.held():
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    right.unlink()
    assert list(tmp_path.iterdir()) == []


def test_it_is_touched_and_who_has_lost_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.01)
    lock = Lock(tmp_path, print)
    file = tmp_path / "lock"
    with lock.held() as held:
        os.utime(file, (0, 0))
        while file.stat().st_mtime == 0:
            time.sleep(0.001)
        held.check()
        thief = left(tmp_path)
        with pytest.raises(StoreError, match=r"has taken .* over"):  # at once, whenever the next beat is
            held.check()
        assert held.lost.wait(60)
    assert json.loads(file.read_text())["token"] == thief.token


def test_without_hard_links_it_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    with Lock(tmp_path, print).held():
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        with pytest.raises(StoreError, match="is in use"), Lock(tmp_path, print).held():
            pass
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"), Lock(tmp_path / "file" / "out", print).held():
        pass


def test_a_directory_that_was_made_for_it_goes_with_it_if_it_is_empty(tmp_path: Path) -> None:
    with Lock(tmp_path / "a" / "b", print).held():
        assert (tmp_path / "a" / "b" / "lock").exists()
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path / "a" / "b", print).held():
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_live_lock_stays_where_the_wall_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the clock moves the time of the machine's start, and with it every process's start as psutil has it."""
    with other(tmp_path):
        now = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: now(self) + 3600.0)
        monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
        with pytest.raises(StoreError, match="is in use"):
            Lock(tmp_path, print).look()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_process_that_has_ended_but_was_not_waited_for_holds_nothing(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        process.kill()
        while b") Z " not in Path(f"/proc/{process.pid}/stat").read_bytes():
            time.sleep(0.001)
        with Lock(tmp_path, print).held():
            pass


@pytest.mark.usefixtures("quick")
def test_a_process_that_is_there_but_cannot_be_looked_at_is_judged_by_its_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with /proc mounted with hidepid, for another user's."""
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr(module, "_ticks", lambda pid: None)
    left(tmp_path, ticks=1)
    with touched(tmp_path), pytest.raises(StoreError, match="is in use"):
        Lock(tmp_path, print).look()


def test_patience_is_had_once_for_the_look_and_the_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: slept[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: slept.__setitem__(0, slept[0] + seconds))
    left(tmp_path, boot="elsewhere", host="elsewhere")
    messages: list[str] = []
    lock = Lock(tmp_path, messages.append)
    lock.look()
    assert 90 <= slept[0] < 92
    with lock.held():
        pass
    assert slept[0] < 92
    assert len(messages) == 1


def test_one_that_is_touched_after_the_look_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: slept[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: slept.__setitem__(0, slept[0] + seconds))
    left(tmp_path, boot="elsewhere", host="elsewhere")
    lock = Lock(tmp_path, print)
    lock.look()
    os.utime(tmp_path / "lock", (1, 1))
    with lock.held():
        pass
    assert slept[0] >= 180


def test_a_moment_in_which_it_cannot_be_read_ends_neither_heartbeat_nor_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    read, failing, failed = module.read_bytes, threading.Event(), threading.Event()

    def sometimes(path: Path, most: int) -> bytes | None:
        if failing.is_set():
            failed.set()
            raise StoreError("an unreadable moment")
        return read(path, most)

    monkeypatch.setattr(module, "read_bytes", sometimes)
    file = tmp_path / "lock"
    with Lock(tmp_path, print).held() as held:
        failing.set()
        assert failed.wait(60)
        with pytest.raises(StoreError, match="an unreadable moment"):  # it lasts: better stop than be two
            held.check()
        failing.clear()
        held.check()
        os.utime(file, (0, 0))
        while file.stat().st_mtime == 0:
            time.sleep(0.001)
        left(tmp_path)
        assert held.lost.wait(60)


def test_one_that_was_deleted_is_noticed(tmp_path: Path) -> None:
    with Lock(tmp_path, print).held() as held:
        (tmp_path / "lock").unlink()
        with pytest.raises(StoreError, match=r"lock in .* is gone: somebody has deleted it"):
            held.check()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "1"},
        {"pid": None},
        {"pid": True},
        {"host": 3},
        {"since": []},
        {"boot": {}},
        {"ticks": 1.5},
        {"token": 0},
        {"token": "\ud800"},
        {"started": 1.0},
    ],
    ids=str,
)
def test_one_of_odd_values_or_another_version_is_of_somebody_unknown(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "lock").write_text(json.dumps(asdict(module._Holder.here()) | changes))
    messages: list[str] = []
    with Lock(tmp_path, messages.append).held():
        pass
    assert "is of an unknown machine" in messages[0]


@pytest.mark.parametrize("pid", [-1, 0, 10**9, 10**30])
def test_an_id_that_no_process_can_have_is_of_none(tmp_path: Path, pid: int) -> None:
    left(tmp_path, pid=pid)
    with Lock(tmp_path, print).held():
        pass


@pytest.mark.usefixtures("quick")
def test_one_that_is_no_text_is_of_somebody_unknown(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"\xff\xfe\x00")
    with Lock(tmp_path, print).held():
        pass
