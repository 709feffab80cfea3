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

import pytest

from manytune import lock as module
from manytune.errors import StoreError
from manytune.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from manytune.lock import Lock
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


def test_it_is_there_while_it_is_held_and_says_who(tmp_path: Path) -> None:
    lock = Lock(tmp_path, print)
    lock.look()
    with lock.held():
        found = json.loads((tmp_path / "lock").read_text())
        assert found["pid"] == os.getpid()
        lock.check()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        for attempt in (Lock(tmp_path, print).look, Lock(tmp_path, print).held().__enter__):
            with pytest.raises(StoreError, match=rf"is in use: the process {process.pid} on .*, since 2.*--wait"):
                attempt()
        assert process.poll() is None


def test_with_wait_it_waits_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    told: list[str] = []
    with other(tmp_path) as process:
        lock = Lock(tmp_path, told.append, wait=True)
        waiting = threading.Thread(target=lock.look)
        waiting.start()
        while not told:
            time.sleep(0.001)
        assert waiting.is_alive()
        process.communicate("end\n")
        waiting.join()
    (said,) = told
    assert said.startswith(f"Waiting for the process {process.pid} on ")
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
    left(tmp_path, started=1.0)
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
        left(tmp_path, place="elsewhere", host="elsewhere")
    else:
        (tmp_path / "lock").write_text(content)
    told: list[str] = []
    with Lock(tmp_path, told.append).held():
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert "Looking whether it lives" in told[0]


@pytest.mark.usefixtures("quick")
def test_one_of_another_machine_is_in_use_when_somebody_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path, place="elsewhere", host="elsewhere")
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 60.0)
    done = threading.Event()

    def touch() -> None:
        while not done.wait(0.01):
            os.utime(tmp_path / "lock")

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with pytest.raises(StoreError, match=r"is in use: the process .* on elsewhere"):
            Lock(tmp_path, print).look()
    finally:
        done.set()
        toucher.join()


def test_a_lock_that_came_in_the_place_of_a_dead_one_is_not_taken_away(tmp_path: Path) -> None:
    dead = left(tmp_path, started=1.0)
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
        left(tmp_path, started=1.0)
        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_where_one_died_while_it_took_a_lock_over_the_next_one_does(tmp_path: Path) -> None:
    dead = left(tmp_path, started=1.0)
    lock = Lock(tmp_path, print)
    right = lock._right(dead)
    right.write_text(json.dumps({**asdict(dead), "token": "of one that died"}))
    with lock.held():
        assert lock._read() == lock._me
    right.unlink()
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_it_is_touched_and_who_has_lost_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.01)
    lock = Lock(tmp_path, print)
    file = tmp_path / "lock"
    with lock.held():
        os.utime(file, (0, 0))
        while file.stat().st_mtime == 0:
            time.sleep(0.001)
        lock.check()
        thief = left(tmp_path)
        while not lock._lost.is_set():
            time.sleep(0.001)
        with pytest.raises(StoreError, match=r"has taken .* over"):
            lock.check()
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
    with pytest.raises(StoreError, match="cannot be written"), Lock(tmp_path / "nowhere", print).held():
        pass
