"""The commands of a user without a home folder and without an entry in the list of users, as in many containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from study_files import small_task, write_small_study

CODE = """
import os, pwd, sys
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from manytune.cli import main
predict = "predict out --text one --text two"
for words in ("check study.yaml", "run study.yaml --out out --quiet --no-report", "report out", predict):
    sys.argv = ["manytune", *words.split()]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""
HOMES = (
    "HOME",
    "XDG_CACHE_HOME",
    "MANYTUNE_CACHE_DIR",
    "HF_HOME",
    "HF_HUB_CACHE",
    "USER",
    "LOGNAME",
    "USERNAME",
    "LNAME",
)


@pytest.mark.parametrize("home", [None, "a file"])
def test_every_command_works(home: str | None, tiny: Path, tmp_path: Path) -> None:
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    write_small_study(work, tiny, {"max_steps": 2}, tasks=[small_task(tmp_path)])
    environment = {name: value for name, value in os.environ.items() if name not in HOMES} | {"TMPDIR": str(temporary)}
    if home is not None:
        (tmp_path / home).touch()
        environment["HOME"] = str(tmp_path / home)

    environment |= {"MANYTUNE_KERNELS": "plain"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "atplotlib" not in done.stderr
    float(done.stdout.splitlines()[-1])
    assert (temporary / f"manytune-{os.geteuid()}" / "encoded").is_dir()
    assert {path.name for path in work.iterdir()} <= {"study.yaml", "out"}, "nothing called ~"
