"""The study of a search's winners."""

from __future__ import annotations

from typing import Any

import pytest
from test_config import BASE, FULL
from test_search_study import OWN, WIDE, searched

from manytune.config import Study, Training
from manytune.config.confirm import FIRST_SEED, confirm_study, fixed_study
from manytune.config.plan import plan_runs
from manytune.config.search import Confirm
from manytune.config.spaces import search_spaces
from manytune.methods.full import Full
from manytune.methods.lora import Lora
from manytune.utils.errors import StudyError

TUNED = {**WIDE, "alpha": {"of_rank": 2}, "training": {"epochs": {"low": 2, "high": 8}, "early_stopping": None}}


def confirmed(values: dict[str, Any] | None = None, **changes: Any) -> Study:
    """The study of the winners on the first task, whose full fine-tuning has one space with one value."""
    made = searched(**{"methods": [TUNED, FULL], "training": {"max_steps": 40, "warmup_steps": 3}, **changes})
    task = made.task_names[0]
    tuned, full = search_spaces(made, task)
    return confirm_study(made, task, [(tuned, values or {"learning_rate": 3e-4, "training.epochs": 4}), (full, {})])


def test_each_winner_trains_with_fresh_seeds_to_its_end(tmp_path):
    made = confirmed(confirm={"seeds": 3}, tasks=["stsb", "cola"], limit={"stsb": 99}, report={"margin": {"cola": 1}})
    assert made.name == "s-confirm"
    assert made.task_names == ("stsb",)
    assert made.seeds == (FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2)
    assert all(seed >= 2**31 for seed in made.seeds)
    assert (made.selection, made.search, made.confirm) == ("none", None, None)
    assert (made.limit, made.report.margin) == (99, None)
    runs = plan_runs(made)
    assert [(run.method, run.training) for run in runs[::3]] == [
        (Lora(rank=8, alpha=16, learning_rate=3e-4), Training(epochs=4, warmup_steps=3)),
        (Full(learning_rate=2e-5), None),
    ]
    assert len(runs) == 6
    (tmp_path / "confirm.yaml").write_text(made.to_yaml())
    assert Study.from_file(tmp_path / "confirm.yaml") == made


def test_the_test_file_takes_the_place_of_dev():
    task = {**OWN, "test": "test.csv"}
    (own,) = confirmed(tasks=[task], confirm={"on": "test"}).tasks
    assert (own.train, own.dev, own.test) == ("rows.csv", "test.csv", None)
    (own,) = confirmed(tasks=[task]).tasks
    assert (own.dev, own.test) == (0.1, "test.csv")
    made = Study.from_dict(BASE)
    with pytest.raises(StudyError, match="cola has no test, the file that judges"):
        fixed_study(made, "cola", [], "x", seeds=[0], selection="none", on="test")


def test_winners_that_are_the_same_are_there_once():
    made = searched(methods=[{**WIDE, "rank": [8, 16]}, {**WIDE, "rank": {"choice": [8, 16]}}])
    eight, _, either = search_spaces(made, "cola")
    rate = {"learning_rate": 1e-3}
    study = confirm_study(made, "cola", [(eight, rate), (either, {**rate, "rank": 8})])
    assert [sweep.axes["rank"] for sweep in study.methods] == [(8,)]
    assert study.seeds == tuple(range(FIRST_SEED, FIRST_SEED + Confirm().seeds))


def test_a_search_that_confirms_nothing_has_ten_seeds_all_the_same():
    assert len(confirmed(confirm="none").seeds) == 10


def test_a_long_name_is_cut():
    assert confirmed(name="x" * 100).name == "x" * 92 + "-confirm"


def test_settings_are_written_where_they_are_not_the_study_s():
    values = {"learning_rate": 1e-3, "training.epochs": 2}
    made = confirmed(values, training={"early_stopping": None, "epochs": 2, "batch_size": 8})
    assert made.methods[0].training is None
    made = confirmed(values, training={"max_steps": 9})
    assert made.methods[0].training.axes == {"epochs": (2.0,)}
