"""`manytune best`: the best configuration as a study file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished

from manytune.config import Study, Training
from manytune.config.confirm import FIRST_SEED, confirm_study
from manytune.config.plan import plan_runs
from manytune.config.spaces import search_spaces
from manytune.methods.lora import Lora
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from record_factory import make_record
from study_factory import make_study_directory

FIXED: dict[str, Any] = {
    "name": "fixed",
    "tasks": ["cola", "stsb"],
    "seeds": [3, 4],
    "limit": {"cola": 500},
    "methods": [
        {"method": "head", "learning_rate": [1e-3, 2e-3]},
        {"method": "lora", "rank": 8, "learning_rate": 1e-3, "training": {"epochs": 5}},
    ],
}
SEARCH: dict[str, Any] = {
    "name": "found",
    "tasks": ["cola"],
    "search": {"trials": 4},
    "confirm": {"seeds": 2},
    "methods": [
        {
            "method": "lora",
            "rank": {"choice": [2, 8]},
            "learning_rate": {"low": 1e-4, "high": 1e-2},
            "training": {"epochs": {"low": 2, "high": 6}},
        },
        {"method": "full", "learning_rate": 5e-5},
    ],
}

Run = Callable[..., Finished]


def read(printed: Finished, folder: Path) -> tuple[list[str], Study]:
    """The comment's lines, and the study."""
    assert (printed.code, printed.err) == (0, "")
    (folder / "best.yaml").write_text(printed.out)
    return [line for line in printed.out.splitlines() if line.startswith("#")], Study.from_file(folder / "best.yaml")


def write_trial(store: Store, number: int, score: float | None, state: str = "finished", epochs: int = 2) -> RunRecord:
    values = {"rank": 8, "learning_rate": 1e-3 * (number + 1), "training.epochs": epochs}
    method, training = search_spaces(store.study(), "cola")[0].at(values)
    trial = {"space": "lora", "number": number, "settings": values, "unpruned": False, "total_steps": 9}
    settings = {**method.hyperparameters(), "training": (training or Training()).model_dump(mode="json")}
    record = make_record(
        run_id=f"cola-lora-{number}",
        label=method.label,
        seed=number,
        state=state,
        best_score=score,
        hyperparameters=settings,
        trial={**trial, "pack": "p", "joined": 0, "left": 9, "began": 0.0, "ended": 1.0},
    )
    store.write_record(record)
    return record


def test_of_a_fixed_study_it_is_the_best_mean(command: Run, tmp_path: Path) -> None:
    scores = {"lora": 0.5, "head lr 2e-3": 0.6, "head lr 1e-3": 0.4}
    store = make_study_directory(
        tmp_path / "results",
        FIXED,
        artifacts=False,
        scores=lambda run: scores.get(run.label, 0.5) + 0.01 * run.seed,
    )
    lines, study = read(command("best", "results", "--task", "cola", cwd=tmp_path), tmp_path)
    assert lines == [
        "# The best configuration of results on cola: head lr 2e-3",
        "# MCC 0.6350 (sd 0.0071), the mean of 2 seeds. It was chosen by this score, so it is too good.",
        "# To train it: manytune best results --task cola > best.yaml, and manytune run best.yaml --out DIR",
    ]
    assert (study.name, study.seeds, study.selection, study.limit) == ("fixed-best", (3, 4), "dev", 500)
    ended = store.finished_runs()
    assert [run.id for run in plan_runs(study)] == [
        record.run_id for record in ended.values() if record.label == "head lr 2e-3" and record.task == "cola"
    ]


def test_training_of_its_own_comes_with_it(command: Run, tmp_path: Path) -> None:
    make_study_directory(tmp_path / "results", FIXED, artifacts=False)
    _, study = read(command("best", "results", "--task", "stsb", cwd=tmp_path), tmp_path)
    assert {run.method for run in plan_runs(study)} == {Lora(rank=8, learning_rate=1e-3)}
    assert {run.training for run in plan_runs(study)} == {Training(epochs=5)}


def test_what_it_cannot_say(command: Run, tmp_path: Path) -> None:
    make_study_directory(tmp_path / "results", FIXED, artifacts=False, pending=["cola"])
    done = command("best", "results", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "--task: the study has several tasks; give one of cola, stsb" in done.err
    assert "--task: 'sts' is not one of: cola, stsb." in command("best", "results", "--task", "sts", cwd=tmp_path).err
    none = command("best", "results", "--task", "cola", cwd=tmp_path)
    assert none.code == 2
    assert "No run on cola has finished with a score in results, so there is no best one yet." in none.err


@pytest.fixture
def searched(tmp_path: Path) -> Store:
    return Store.create_or_open(tmp_path / "results", Study.from_dict(SEARCH))


def test_before_a_confirmation_it_is_the_best_finished_trial(command: Run, tmp_path: Path, searched: Store) -> None:
    assert "No run on cola has finished" in command("best", "results", cwd=tmp_path).err
    write_trial(searched, 0, 0.4)
    write_trial(searched, 1, 0.5, epochs=4)
    write_trial(searched, 2, 0.9, "pruned")
    write_trial(searched, 3, None)
    lines, study = read(command("best", "results", cwd=tmp_path), tmp_path)
    assert lines[:3] == [
        "# The best trial of the search in results on cola: lora r=8, lr 2e-3",
        "# MCC 0.5000, trial 1 of lora.",
        "# It was chosen by this score, which is too good therefore; no run of a confirmation has ended.",
    ]
    assert (study.name, study.selection) == ("found-best", "none")
    assert study.seeds == (FIRST_SEED, FIRST_SEED + 1)
    assert [(run.method, run.training) for run in plan_runs(study)] == [
        (Lora(rank=8, learning_rate=2e-3), Training(epochs=4))
    ] * 2


def test_the_winner_of_the_confirmation_is_preferred(command: Run, tmp_path: Path, searched: Store) -> None:
    write_trial(searched, 0, 0.99)
    lora, full = search_spaces(searched.study(), "cola")
    values = {"rank": 2, "learning_rate": 3e-3, "training.epochs": 4}
    confirming = confirm_study(searched.study(), "cola", [(lora, values), (full, {})])
    make_study_directory(
        searched.root / "confirm" / "cola",
        confirming.model_dump(),
        artifacts=False,
        pending=[plan_runs(confirming)[-1].id],
        scores=lambda run: 0.6 if run.method.method == "lora" else 0.5,
    )
    lines, study = read(command("best", "results", cwd=tmp_path), tmp_path)
    assert lines[:3] == [
        "# The winner of the search in results on cola: lora r=2, lr 3e-3, epochs 4",
        "# MCC 0.6000 (sd 0.0000), the mean of 2 seeds, on dev rows, which chose no setting.",
        "# The confirmation goes on: 3 of 4 runs have ended so far.",
    ]
    assert [run.id for run in plan_runs(study)] == [run.id for run in plan_runs(confirming)[:2]]


def test_it_needs_no_torch(tmp_path: Path, searched: Store) -> None:
    write_trial(searched, 0, 0.4)
    code = (
        "import sys; from manytune import cli\ntry: cli.main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "best", "results"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
