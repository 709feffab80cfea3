"""The benchmark scripts run, each on a tiny model: what they measure is not looked at, that they measure is."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from forked import run_forked
from tiny import make_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> str:
    done = run_forked([sys.executable, BENCHMARKS / script, *arguments])
    assert done.returncode == 0, done.stderr[-3000:]
    return str(done.stdout)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def test_speed(tiny: Path, glue_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    small = ("--rounds", "1", "--steps", "2", "--threads", "1", "--only", "BitFit", "--precision", "fp32")
    shared = ("--architecture", tiny, "--data", glue_dir, *small, "--out", out)
    run("speed.py", "memory", *shared)
    begun = json.loads(out.read_text())
    assert {*begun["memory"]} == {"trainer", "pack"}
    assert begun["machine"]["dtype"] == "float32"

    # As a stop in the middle of a round would leave it: what is there stays, what is missing is measured.
    begun["compare"] = [{"work": "8 BitFit runs, CoLA", "samples_per_second": {"manytune": [0.5]}}]
    out.write_text(json.dumps(begun))
    assert "train_runtime" not in run("speed.py", "compare", "memory", "start", "profile", *shared, "--resume")
    result = json.loads(out.read_text())
    (row,) = result["compare"]
    assert row["samples_per_second"].pop("manytune") == [0.5]
    assert {*row["samples_per_second"]} == {"study", "best, 1 threads", "best, 2 threads"}
    assert all(len(values) == 1 and values[0] > 0 for values in row["samples_per_second"].values())
    assert result["memory"] == begun["memory"]
    assert len(result["start"]) == 1
    assert sum(result["profile"]["milliseconds"].values()) == pytest.approx(result["profile"]["step_ms"])


def test_measurements_go_on_on_the_same_machine_alone(tmp_path: Path) -> None:
    measurements = runpy.run_path(str(BENCHMARKS / "measured.py"))["Measurements"]
    path = tmp_path / "speed.json"
    first = measurements(path, {"machine": "one"}, resume=False)
    first.in_turn(first.begin("growth", {}), {"8": lambda: 3.0}, 2)
    kept = path.read_text()
    with pytest.raises(SystemExit, match="measured otherwise:\n  machine: one there, another here\nMeasure anew"):
        measurements(path, {"machine": "another"}, resume=True)
    assert path.read_text() == kept
    assert measurements(path, {"machine": "one"}, resume=True).begin("growth", {}) == {"8": [3.0, 3.0]}
    assert measurements(path, {"machine": "another"}, resume=False).begin("growth", {}) == {}


def test_error_rates(tmp_path: Path) -> None:
    run("error_rates.py", "--out", tmp_path / "few.json", "--studies", "80")
    few, kept = (
        json.loads(path.read_text())
        for path in (tmp_path / "few.json", BENCHMARKS.parent / "docs" / "results" / "statistics.json")
    )
    cells = [[(cell["group"], cell["row"], cell["column"]) for cell in result["cells"]] for result in (few, kept)]
    assert cells[0] == cells[1]
    assert {cell["studies"] for cell in few["cells"]} == {80, 20, 8}
    assert all(0 <= cell["share"] <= 1 and cell["error"] > 0 for cell in few["cells"])
