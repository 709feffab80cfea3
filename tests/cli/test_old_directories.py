"""Study directories that version 0.1 wrote are read as that version read them, and gone on with.

`study-v0.1.tar.xz` was written by manytune 0.1.0 with one thread: a study that ended (all methods, a built-in task and
one of its own), one that was killed at step 6 of 10 and has a checkpoint of step 4 in format 1, their model and data,
and what that version's commands gave. As for a user who moved the folder, the names of model and data are relative; the
lock of the killed process is gone.
"""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command

ARCHIVE = Path(__file__).parents[1] / "unit" / "fixtures" / "study-v0.1.tar.xz"
TASKS = ("own", "builtin-acceptability")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        # Python 3.11 before 3.11.4 has no filters.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_within(expected: Any, found: Any) -> int:
    """All that was there before is there now, and says the same; returns how many values that were."""
    if isinstance(expected, dict):
        return sum(assert_within(value, found[key]) for key, value in expected.items())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        return sum(assert_within(one, other) for one, other in zip(expected, found, strict=True))
    assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)
    return 1


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "arguments", "values"),
    [
        ("status", ["status", "done"], 160),
        ("show", ["show", "done", "own-lora-r2-lr1e-2-s0"], 60),
        ("compare", ["compare", "done", "killed"], 30),
    ],
)
def test_what_they_hold_is_shown(
    unpacked: Path, command: Command, name: str, arguments: list[str], values: int
) -> None:
    done = command(*arguments, "--json", cwd=unpacked)
    assert done.code == 0, done.err
    assert assert_within(json.loads((unpacked / f"expected/{name}.json").read_text()), json.loads(done.out)) >= values


def test_a_killed_one_has_runs_to_train(unpacked: Path, command: Command) -> None:
    done = command("status", "killed", "--json", cwd=unpacked)
    assert json.loads(done.out)["counts"]["pending"] == 4


def test_its_report_has_the_same_scores(unpacked: Path, command: Command, tmp_path: Path) -> None:
    done = command("report", "done", "--out", tmp_path / "report", cwd=unpacked)
    assert done.code == 0, done.err
    tables = sorted((unpacked / "expected/tables").iterdir())
    assert len(tables) == 4
    for table in tables:
        # By their first columns: configurations now stand in the order of their means.
        expected, found = (
            sorted(rows(path), key=lambda row: list(row.values())[:2])
            for path in (table, tmp_path / "report/tables" / table.name)
        )
        assert len(found) == len(expected) in (4, 8)
        for one, other in zip(expected, found, strict=True):
            assert one.items() <= other.items()


@pytest.mark.parametrize("task", TASKS)
def test_its_runs_predict_the_same(unpacked: Path, command: Command, tmp_path: Path, task: str) -> None:
    done = command("predict", "done", "new.csv", "--task", task, "--out", tmp_path / "out.csv", cwd=unpacked)
    assert done.code == 0, done.err
    expected, found = rows(unpacked / f"expected/predict-{task}.csv"), rows(tmp_path / "out.csv")
    assert len(found) == len(expected) == 3
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            number = value.replace(".", "").isdigit()
            assert (float(other[name]) == pytest.approx(float(value), abs=1e-5)) if number else other[name] == value


@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "head"])
def test_its_runs_are_exported(unpacked: Path, command: Command, tmp_path: Path, method: str) -> None:
    """That the export gives the recorded logits is checked by the command itself."""
    (run,) = (unpacked / "done/runs").glob(f"own-{method}-*-s1-*")
    done = command("export", "done", "--run", run.name, "--to", tmp_path / "export", cwd=unpacked)
    assert done.code == 0, done.err
    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert (tmp_path / "export" / weights).exists()


def go_on(unpacked: Path, command: Command, name: str) -> str:
    """Go on with a study from a file beside its model and data, as it was begun; returns what was said."""
    shutil.copy(unpacked / name / "study.yaml", unpacked / "study.yaml")
    done = command("run", "study.yaml", "--out", name, "--device", "cpu", "--accept-changes", cwd=unpacked)
    assert done.code == 0, done.err
    return " ".join((done.out + done.err).split())


@pytest.mark.usefixtures("one_thread")
def test_one_that_ended_is_not_trained_again(unpacked: Path, command: Command) -> None:
    def records() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (unpacked / "done/runs").rglob("*") if path.is_file()}

    before = records()
    assert len(before) == 16 * 5
    assert "16 of 16 runs have ended before" in go_on(unpacked, command, "done")
    assert records() == before


@pytest.mark.usefixtures("one_thread")
def test_a_killed_one_starts_its_pack_anew_and_ends_alike(unpacked: Path, command: Command) -> None:
    message = go_on(unpacked, command, "killed")
    assert "are of an earlier version of manytune, which this one cannot go on from" in message
    records = sorted((unpacked / "killed/runs").glob("*/record.json"))
    assert len(records) == 4
    for path in records:
        record = json.loads(path.read_text())
        # The study that ended holds the same runs, in a pack of the same shape.
        expected = json.loads((unpacked / "done/runs" / path.parent.name / "record.json").read_text())
        assert record["steps"] == expected["steps"] == 10
        assert record["best_score"] == pytest.approx(expected["best_score"], abs=1e-3)
    assert not list((unpacked / "killed/packs").iterdir())
