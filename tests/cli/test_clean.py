"""What goes and what stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command

from forked import ForkedProcess
from manytune.config.plan import Pack
from manytune.storage.directory import Store
from manytune.utils.files import replacing
from study_factory import make_study_directory
from study_files import results_in, write_small_study
from waiting import until_brought_about

STUDY = {
    "name": "old",
    "tasks": ["builtin-similarity"],
    "seeds": [0, 1],
    "methods": [{"method": "full", "learning_rate": 1e-5}, {"method": "lora", "rank": 2, "learning_rate": 1e-3}],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_study_directory(tmp_path / "out", STUDY)


def packs(store: Store) -> tuple[Pack, ...]:
    found = store.read_plan()
    assert found
    return found


def fill(path: Path, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_checkpoints_of_packs_that_ended_go_and_nothing_else(store: Store, command: Command) -> None:
    before = results_in(store.root)
    fill(store.pack_dir(packs(store)[0].id) / "step-3.json", 3000)
    fill(store.root / "runs" / ".best.abcd.tmp" / "snapshot.safetensors", 500)
    fill(store.root / ".plan.json.1234.tmp", 200)
    fill(store.root / "packs" / "a-pack-that-was-cut" / "step-1.json", 1000)
    dry = command("clean", store.root, "--dry-run", cwd=store.root)
    assert dry.code == 0
    assert "4.0 kB      2  checkpoints of packs that have ended" in dry.out
    assert "700 bytes      2  files that a process which was killed left half-written" in dry.out
    assert "4.7 kB would be freed." in dry.out
    assert (store.root / ".plan.json.1234.tmp").exists()
    done = command("clean", store.root, "--yes", cwd=store.root)
    assert (done.code, done.err) == (0, "")
    assert "Freed 4.7 kB." in done.out
    assert results_in(store.root) == before
    assert "There is nothing to remove." in command("clean", store.root, "--yes", cwd=store.root).out
    assert command("status", store.root, cwd=store.root).code == 0
    assert command("report", store.root, cwd=store.root).code == 0


@pytest.mark.parametrize("state", ["pending", "failed"])
def test_what_a_run_still_needs_stays(tmp_path: Path, command: Command, state: str) -> None:
    chosen = {"pending": ["builtin-similarity-lora"]} if state == "pending" else {}
    states = {"builtin-similarity-lora-r2-lr1e-3-s0": "failed"} if state == "failed" else {}
    store = make_study_directory(tmp_path / "out", STUDY, states=states, **chosen)
    needed = next(pack for pack in packs(store) if pack.kind == "adapters")
    kept = fill(store.pack_dir(needed.id) / "step-3.json")
    done = command("clean", store.root, "--yes", cwd=store.root)
    assert "1 pack has runs that have not ended, or failed: its checkpoints stay." in done.out
    assert "There is nothing to remove." in done.out
    assert kept.exists()


def test_what_came_to_be_needed_while_it_asked_stays(
    store: Store, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, other = (fill(store.pack_dir(pack.id) / "step-3.json") for pack in packs(store)[:2])

    def asked(text: str, *, abort: bool) -> None:
        store.reset_run(packs(store)[0].runs[0].id)  # what `run --retry-failed`, or a changed study, does

    monkeypatch.setattr("typer.confirm", asked)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    done = command("clean", store.root, cwd=store.root)
    assert (done.code, done.err) == (0, "")
    assert "Freed 1.0 kB." in done.out
    assert needed.exists()
    assert not other.exists()


def test_without_a_plan_checkpoints_stay(store: Store, command: Command) -> None:
    there = fill(store.pack_dir(packs(store)[0].id) / "step-3.json")
    (store.root / "plan.json").unlink()
    assert "There is nothing to remove." in command("clean", store.root, "--yes", cwd=store.root).out
    assert there.exists()


def test_what_is_being_written_and_what_was_set_aside_stays(store: Store, command: Command) -> None:
    mine = fill(store.root / ".notes.old")
    only = fill(store.root / "runs" / "r" / ".best.0badcafe.old" / "snapshot.safetensors")
    with replacing(store.root / "report" / "index.html") as living:
        fill(living)
        assert "There is nothing to remove." in command("clean", store.root, "--yes", cwd=store.root).out
        assert living.exists()
    assert mine.exists()
    assert only.exists()
    (store.root / "runs" / "r" / "best").mkdir()
    assert "Freed 1.0 kB." in command("clean", store.root, "--yes", cwd=store.root).out
    assert not only.exists()


def test_nobody_to_ask(store: Store, command: Command) -> None:
    there = fill(store.root / ".x.tmp")
    done = command("clean", store.root, cwd=store.root)
    assert done.code == 2
    assert "give --yes to remove it" in done.err
    assert there.exists()


def test_links_are_not_followed(store: Store, command: Command, tmp_path: Path) -> None:
    outside = fill(tmp_path / "elsewhere" / "pack" / "precious").parent
    (store.root / "packs").symlink_to(outside.parent, target_is_directory=True)
    (store.root / ".link.tmp").symlink_to(outside, target_is_directory=True)
    assert "There is nothing to remove." in command("clean", store.root, "--yes", cwd=store.root).out
    assert (outside / "precious").exists()


def test_the_users_cache_is_asked_for(
    store: Store, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows, kernels, other = (
        fill(tmp_path / "cache" / "manytune" / name) for name in ("encoded/ab.npz", "kernels-1.so", "mine.txt")
    )
    assert "nothing to remove" in command("clean", store.root, "--yes", cwd=store.root).out
    assert "encoded rows" in command("clean", store.root, "--yes", "--cache", cwd=store.root).out
    assert not rows.exists()
    assert not kernels.exists()
    assert other.exists()


def test_a_directory_that_is_in_use_is_left_alone(tiny: Path, tmp_path: Path, command: Command) -> None:
    write_small_study(tmp_path, tiny, {"max_steps": 100_000, "eval_every": 5})
    run = [sys.executable, "-m", "manytune", "run", "study.yaml", "--out", "out", "--quiet"]
    with ForkedProcess(run, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            until_brought_about(lambda: any(tmp_path.glob("out/packs/*/*.json")), process)
            done = command("clean", "out", "--yes", cwd=tmp_path)
        finally:
            process.kill()
    assert done.code == 2
    assert str(process.pid) in done.err
    assert json.loads(command("status", "out", "--json", cwd=tmp_path).out)
    assert os.listdir(tmp_path / "out" / "packs")
