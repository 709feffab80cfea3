"""Planned looks and the margin in a study: how they are read, written and refused, and that no run depends on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from manytune.config import Study
from manytune.config.extension import extend_study
from manytune.config.plan import plan_runs
from manytune.utils.errors import StudyError
from study_files import small_study

PLANNED = {"looks": [5, 10, 20]}


def study(**changes: Any) -> Study:
    return small_study(Path("m"), **changes)


def test_it_begins_with_the_seeds_of_the_first_look_and_is_extended_to_the_next() -> None:
    first = study(seeds=PLANNED)
    assert (first.seeds, first.looks) == ((0, 1, 2, 3, 4), (5, 10, 20))
    assert study().looks == ()
    second = extend_study(first, seeds="10")
    assert (second.seeds, second.looks) == (tuple(range(10)), (5, 10, 20))
    assert study(seeds={**PLANNED, "list": [3, 9]}).seeds == (3, 9)


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": PLANNED},
        {"seeds": {**PLANNED, "list": [1, 2]}, "report": {"margin": 0.02}},
        {"report": {"margin": {"builtin-similarity": 1}}},
    ],
    ids=str,
)
def test_the_effective_study_reads_back_as_an_equal_one(changes: dict[str, Any]) -> None:
    made = study(**changes)
    assert Study.from_dict(yaml.safe_load(made.to_yaml())) == made
    assert made != study(seeds=list(made.seeds))
    assert ("margin" in made.to_yaml()) == ("report" in changes)


def test_neither_looks_nor_the_margin_change_what_is_trained() -> None:
    plain = study(seeds=[0, 1, 2, 3, 4])
    changed = study(seeds=PLANNED, report={"margin": 0.02})
    assert changed.hash == plain.hash
    assert plan_runs(changed) == plan_runs(plain)
    assert "report" not in plain.to_yaml()
    assert study(report=None) == study(report={"margin": None}) == study()


def test_the_margin_of_a_task() -> None:
    tasks = ["builtin-similarity", "builtin-acceptability"]
    by_task = study(tasks=tasks, report={"margin": {tasks[0]: 0.02}})
    assert [by_task.margin_of(task) for task in tasks] == [0.02, None]
    assert study(report={"margin": 0.03}).margin_of(tasks[0]) == 0.03
    assert study().margin_of(tasks[0]) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"seeds": {"looks": [5]}},
            "seeds.looks: received [5]; it must be a list of 2 to 4 numbers of seeds, each above",
        ),
        ({"seeds": {"looks": [10, 5]}}, "seeds.looks: received [10, 5]; it must be"),
        ({"seeds": {"looks": [1, 5]}}, "from 5 (fewer give no verdict) up to 100,000, such as [5, 10, 20]"),
        ({"seeds": {"looks": [2, 3, 4, 5, 6]}}, "seeds.looks: received [2, 3, 4, 5, 6]"),
        ({"seeds": {"looks": 5}}, "seeds.looks: received 5"),
        ({"seeds": {"list": [1, 2]}}, "it must be a list of seeds, or hold the numbers of seeds at which to look"),
        ({"seeds": {"loks": [5, 10]}}, "seeds: 'loks' is not one of: looks, list. Did you mean 'looks'?"),
        ({"seeds": {**PLANNED, "list": [-1]}}, "seeds: received -1; it must be at least 0"),
        ({"looks": [5, 10]}, "looks: unknown key. It belongs under 'seeds': seeds.looks."),
        ({"margin": 0.01}, "margin: unknown key. It belongs under 'report': report.margin."),
        ({"report": {"margn": 0.01}}, "report.margn: unknown key. 'margn' is not one of: margin."),
        ({"report": {"margin": 0}}, "report.margin: received 0; it must be how much worse counts as as good"),
        ({"report": {"margin": "small"}}, "report.margin: received 'small'; it must be"),
        ({"report": {"margin": {"cola": 1}}}, "report.margin.cola: this is no task of the study."),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError) as error:
        study(**changes)
    assert said in str(error.value)
    assert "1 problem" in str(error.value)
