"""The steps of `benchmarks/gpu.py` run, on a CPU and a tiny model, and tell what is right from what is not."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forked import ForkedProcess, run_forked
from manytune.packing.kernels import Segments
from manytune.packing.kernels.reference import ReferenceKernels
from tiny import make_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "glue").symlink_to(glue_dir)
    make_tiny(folder / "roberta-base", "roberta")
    return folder


@pytest.fixture
def place(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of a step's `Place`, but for its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for folder in ("out", "scratch"):
        (tmp_path / folder).mkdir()
    where = {"out": str(tmp_path / "out"), "scratch": str(tmp_path / "scratch"), "bundle": str(bundle)}
    return {**where, "device_name": "cpu", "small": True}


def rows(place: dict[str, Any], step: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(place["out"], "gpu.json").read_text())["steps"][step]["rows"]
    return found


def run(place: dict[str, Any], step: str) -> list[dict[str, Any]]:
    """What a step finds, in a process of its own."""
    done = run_forked(
        [sys.executable, BENCHMARKS / "gpu.py", place["out"], "--step", json.dumps({**place, "step": step})]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return rows(place, step)


def test_steps_that_check(place: dict[str, Any]) -> None:
    found = run(place, "packed")
    assert len(found) == 3
    assert all(row["passed"] and row["error"] < 1e-4 for row in found)
    found = run(place, "kernels")
    assert found[-1] == {"passed": True, "failures": 0}
    assert sum(row.get("compared", 0) for row in found) > 150


def test_steps_that_time(place: dict[str, Any]) -> None:
    ours, theirs = run(place, "speed"), run(place, "trainer")
    assert [(row["work"], row["runs"]) for row in ours] == [("LoRA r=8", 1), ("LoRA r=8", 2), ("full", 1)]
    for row in (*ours, *theirs):
        steps = 16 * row.get("runs", 1) / row["samples_per_second"]
        assert row["timed_steps"] == 4
        assert row["ms_per_step"] == pytest.approx(1e3 * steps)
    few = run(place, "profile")
    assert [row["runs"] for row in few] == [1, 2]
    assert all(row["ms_per_step"] > 0 and row["top"] for row in few)


def test_a_kernel_that_is_wrong_is_named_and_the_others_are_still_compared(
    place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        """Of which one function is off, and one raises."""

        name = "wrong"

        def __getattr__(self, name: str) -> Any:
            return getattr(ReferenceKernels(), name)

        def gelu(self, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
            return ReferenceKernels().gelu(x, bias, segments) * 1.1

        def segment_sums(self, x: Tensor, segments: Segments) -> Tensor:
            raise RuntimeError("no such launch")

        def drop(self, x: Tensor, drop: Any) -> Tensor:
            kept = ReferenceKernels().drop(x, drop)
            return torch.cat([kept[1:], kept[:1]])

    kernels = importlib.import_module("gpu_kernels")
    monkeypatch.setattr(kernels, "choose_kernels", lambda device: Wrong())
    monkeypatch.setattr(kernels, "shapes", lambda small: [kernels.Shape("few", 32, torch.float32, 0.1, (2,))])
    kernels.compare(kernels.Place(step="kernels", **place))
    found = rows(place, "kernels")
    failed = {(row["check"], row.get("result")): row["error"] for row in found if "check" in row}
    assert failed.pop(("gelu, segment_sums", None)) == "RuntimeError: no such launch"
    assert "bits of the mask differ" in failed.pop(("drop, pad", "ones"))
    assert failed.keys() == {("drop, pad", "drop")}
    assert found[-1] == {"passed": False, "failures": 3}


def test_a_killed_study_is_compared_with_one_that_was_not(
    place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = importlib.import_module("gpu_studies")
    monkeypatch.setattr(subprocess, "Popen", ForkedProcess)
    studies.resume(studies.Place(step="resume", **place))
    (row,) = rows(place, "resume")
    assert row["passed"], row
    assert row["exit_code"] == -9
    assert row["newest_checkpoint"] == "roster-000000008"
    assert row["files"] >= 8


def test_a_step_that_takes_too_long_is_killed_and_unknown_ones_are_refused(
    place: dict[str, Any], tmp_path: Path
) -> None:
    gpu = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    with (tmp_path / "log").open("w") as log:
        assert gpu["run_step"]("versions", place, 0.1, log) == "killed after 0 s"
    assert gpu["selected"]("speed,packed", "speed-plain") == ["packed", "speed", "speed-triton"]
    assert gpu["selected"]("trainer", "") == ["trainer"]
    with pytest.raises(SystemExit, match="There is no step spede; there are: versions, kernels,"):
        gpu["selected"]("spede", "")


def test_the_summary_compares_with_the_fastest_trainer(place: dict[str, Any], tmp_path: Path) -> None:
    summary = importlib.import_module("gpu_summary")
    base = {"model": "m", "work": "LoRA r=8"}
    ours = {
        **base,
        "runs": 8,
        "kernels": "triton",
        "samples_per_second": 1000.0,
        "ms_per_step": 128.0,
        "peak_bytes": 2e9,
    }
    alone = {**base, "processes": 1}
    steps = {
        "speed": {"rows": [ours, {**base, "runs": 64, "failed": "OutOfMemoryError"}], "ended": "done", "seconds": 1},
        "trainer": {"rows": [{**alone, "way": "eager", "samples_per_second": 100.0}], "ended": "done"},
        "trainer-compile": {"rows": [{**alone, "way": "compiled", "samples_per_second": 250.0}], "ended": "killed"},
        "trainers": {"rows": [{**base, "way": "eager", "processes": 4, "samples_per_second": 500.0}], "ended": "done"},
    }
    (tmp_path / "gpu.json").write_text(json.dumps({"steps": steps}))
    words = summary.summary(tmp_path).split()
    row = words[words.index("triton") : words.index("triton") + 9]
    assert row == ["triton", "1000", "128.00", "2.00", "250", "(compiled)", "4.00", "2.00", "–"]
    assert "1 of 2 rows FAIL" in summary.summary(tmp_path)


def test_the_bundle_has_what_the_machine_lacks(
    minilm_dir: Path, glue_dir: Path, roberta_dir: Path, tmp_path: Path
) -> None:
    bundle = runpy.run_path(str(BENCHMARKS / "gpu_bundle.py"))
    there = frozenset(bundle["THERE"].split())
    assert {name.partition("==")[0] for name in bundle["missing"](there)} >= {"pydantic", "pydantic-core", "plotly"}
    assert bundle["missing"](there | {"pydantic", "plotly"}) == []
    arguments = ["--no-wheels", "--data", glue_dir, "--roberta", roberta_dir]
    for _ in range(2):  # the second takes the place of the first
        done = run_forked([sys.executable, BENCHMARKS / "gpu_bundle.py", tmp_path / "made", *arguments])
        assert done.returncode == 0, done.stderr
    assert 44 < float(done.stdout.split(" MiB in ")[0].split()[-1]) < 60
    done = run_forked([sys.executable, BENCHMARKS / "gpu_bundle.py", roberta_dir, *arguments])
    assert f"{roberta_dir.resolve()} is no bundle of an earlier call" in done.stderr
    assert (roberta_dir / "config.json").exists()
