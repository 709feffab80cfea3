"""The benchmark scripts run, each on a tiny model: what they measure is not looked at, that they measure is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import make_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def test_speed(tiny: Path, glue_dir: Path, tmp_path: Path) -> None:
    parts, out = ("compare", "memory", "start", "profile"), tmp_path / "speed.json"
    small = ("--rounds", "1", "--steps", "2", "--threads", "1", "--only", "BitFit")
    run("speed.py", *parts, "--architecture", tiny, "--data", glue_dir, *small, "--out", out)
    result = json.loads(out.read_text())
    (row,) = result["compare"]
    assert row["over_study"] > 0
    assert row["over_best"] > 0
    assert result["memory"]["ratio"] > 0
    assert len(result["start"]) == 1
    assert sum(result["profile"]["milliseconds"].values()) == pytest.approx(result["profile"]["step_ms"])
    assert "| 8 BitFit runs, CoLA |" in run("speed.py", "show", out)
