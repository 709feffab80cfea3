"""A disk that is full, at whatever write: a clear message, nothing damaged, and it goes on when there is room."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Command

from study_files import results_in, small_task, write_small_study

MIB = 2**20
SIZE = 6 * MIB


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of a few megabytes; not below pytest's own folder, whose removal it would break if it stayed."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a file system of a given size")
    folder = Path(tempfile.mkdtemp(prefix="manytune-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


def test_a_study_on_a_disk_that_is_full_again_and_again(
    command: Command, tiny: Path, tmp_path: Path, disk: Path
) -> None:
    training = {"max_steps": 4, "eval_every": 2, "checkpoint_every": 1, "precision": "fp32"}
    methods = [{"method": "full", "learning_rate": 1e-3}, {"method": "lora", "rank": 2, "learning_rate": 1e-3}]
    study = write_small_study(tmp_path, tiny, training, methods=methods, tasks=[small_task(tmp_path)])
    assert command("run", study, "--out", "undisturbed", "--no-report", cwd=tmp_path).code == 0
    wanted = results_in(tmp_path / "undisturbed")

    filler, room, refusals = disk / "filler", 0, 0
    while True:
        filler.unlink(missing_ok=True)
        free = os.statvfs(disk)
        free_bytes = free.f_bavail * free.f_frsize
        assert room < free_bytes, "it should have been done with that much"
        filler.write_bytes(b"0" * (free_bytes - room))
        done = command("run", study, "--out", disk / "out", "--no-report", cwd=tmp_path)
        if done.code == 0:
            break
        refusals += 1
        assert done.code == 2, done.err
        assert "No space left on device" in done.err
        assert sum(line.startswith("error: ") for line in done.err.splitlines()) == 1
        assert "Traceback" not in done.err
        assert not list(disk.rglob("*.tmp"))
        room += 24 * 1024
    assert refusals >= 5
    assert results_in(disk / "out") == wanted
