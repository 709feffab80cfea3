"""`run --dry-run` and `check` of a search."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Finished

from manytune.cli.dry_run_search import _expected_share
from manytune.config import Study, Training
from manytune.config.search import Halving
from manytune.config.spaces import search_spaces
from manytune.search.halving import trial_rungs

TASK = "builtin-acceptability"
RATE = {"low": 1e-4, "high": 1e-2}
LORA = {"method": "lora", "rank": {"choice": [2, 8]}, "learning_rate": RATE}
Run = Callable[..., Finished]


def data(**changes: Any) -> dict[str, Any]:
    training = {"max_steps": 40, "eval_every": 5, "precision": "fp32"}
    search = {"trials": 6, "pruning": {"unpruned": 0.5}}
    head = {"method": "head", "learning_rate": 1e-3}
    study = {"name": "s", "tasks": [TASK], "limit": 100, "training": training, "search": search}
    return {**study, "methods": [LORA, head], **changes}


@pytest.fixture
def write(tmp_path: Path, tiny: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({"model": str(tiny), **data(**changes)}))
        return path

    return write


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"max_steps": 40, "eval_every": 5}, [10, 20]),
        ({"max_steps": 40, "eval_every": 7}, [14, 21]),
        ({"max_steps": 40, "eval_every": 5, "warmup_steps": 13}, [15, 20]),
        ({"epochs": 4}, [10, 20]),
        ({"epochs": 2}, [10]),
        ({"epochs": 1}, []),
    ],
    ids=str,
)
def test_rungs_are_at_evaluations_after_warm_up_and_an_epoch(training: dict[str, Any], steps: list[int]) -> None:
    rows = 160 if "epochs" in training else 32
    assert trial_rungs(Halving(), Training(**training), rows) == tuple(steps)


def test_the_expected_share_of_steps() -> None:
    training = Training(max_steps=40, eval_every=5)
    assert _expected_share(None, training, 32) == 1.0
    assert _expected_share(Halving(unpruned=0), training, 32) == pytest.approx(0.25 + 0.25 / 2 + 0.5 / 4)
    assert _expected_share(Halving(), training, 32) == pytest.approx(1 / 3 + 2 / 3 * 0.5)
    assert _expected_share(Halving(rungs=(0.1,), factor=10, unpruned=0), training, 4) == pytest.approx(0.125 + 0.0875)


def test_edges_hold_both_ends_and_every_choice() -> None:
    entry = {**LORA, "rank": {"choice": [2, 8, 64]}}
    (space,) = search_spaces(Study.from_dict(data(methods=[entry])), TASK)
    assert space.edges == [
        {"rank": 2, "learning_rate": 1e-4},
        {"rank": 8, "learning_rate": 1e-2},
        {"rank": 64, "learning_rate": 1e-2},
    ]
    assert space.searched == "rank 2|8|64, learning_rate 1e-4..1e-2"


def test_it_says_spaces_budget_and_confirmation(command: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    done = command("run", write(), "--dry-run", "--device", "cpu", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    first, *_ = done.out.splitlines()
    assert first == (
        "s: 2 search spaces, 6 trials each, drawn by random; one in 2 goes on after 25% and 50% of its steps, and 50% "
        "are never pruned; on cpu in float32; nothing is trained."
    )
    assert f"{TASK}: 90 rows to train on, 10 compare trials; from builtin" in done.out
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.out.splitlines() if line.strip().startswith(TASK)]
    (lora, head) = [row[1:6] for row in rows if len(row) > 6]
    # 6 trials of 40 steps, of which 0.5 + 0.5 · (0.25 + 0.25 / 2 + 0.5 / 4) are expected; one of a fixed space.
    assert lora == ["lora", "rank 2|8, learning_rate 1e-4..1e-2", "6", "240", "180"]
    assert head == ["head", "nothing: one trial", "1", "40", "40"]
    assert "Search: 7 trials, with pruning about 220 steps and " in done.out
    assert "without, 280 and " in done.out
    assert "Confirmation: 2 winners with 10 seeds each, 20 runs on all training rows, judged by the 450 dev" in done.out


def test_what_could_not_run_is_refused(command: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    wide = {**LORA, "rank": {"low": 1, "high": 500}}
    done = command("run", write(methods=[wide]), "--dry-run", "--device", "cpu", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "lora's rank 500 exceeds the width of" in done.err


def test_a_budget_of_time_and_no_confirmation(command: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"search": {"seconds": 600, "pruning": "none"}, "confirm": "none"}
    done = command("run", write(**changes), "--dry-run", "--device", "cpu", cwd=tmp_path)
    assert "2 search spaces, 10:00 min each, drawn by random; no pruning;" in done.out
    assert "No confirmation (confirm: none)" in done.out


def test_check_says_that_it_is_a_search_and_looks_at_the_test_file(
    command: Run, write: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("train", "test"):
        rows = [f"{name} {'good' if index % 2 else 'bad'} {index},{'ab'[index % 2]}" for index in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows, "train bad 0,a"]))
    own = {"name": "own", "train": "train.csv", "test": "test.csv", "text": "text", "label": "label"}
    done = command("check", write(tasks=[own], limit=None, confirm={"on": "test"}), cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2 search spaces, 6 trials each, drawn by random" in done.out
    assert "test.csv" in done.out
    assert "test row of 41 with the text of a training row" in done.out
