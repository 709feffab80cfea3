"""`manytune plan` as a user meets it."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Command

from manytune.storage.directory import Store
from manytune.storage.growth import SeedGrowth, write_growth
from study_factory import GLUE_LIKE, make_study_directory

SMALL = {**GLUE_LIKE, "methods": GLUE_LIKE["methods"][:2]}
"""Full fine-tuning, and BitFit with two learning rates; five seeds."""


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_study_directory(tmp_path_factory.mktemp("plan") / "results", SMALL, artifacts=False)


def planned(command: Command, cwd: Path, *given: str) -> Any:
    done = command("plan", *given, "--json", cwd=cwd)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_spread_that_is_given_and_the_sentences(command: Command, tmp_path: Path) -> None:
    done = command("plan", "--difference", "0.02", "--sd", "0.02", cwd=tmp_path)
    assert done.code == 0
    assert "Reckoned with 2 methods in 1 pair, and with a spread of 0.02, as given." in done.out
    assert "To find that a method is better by 0.02: 17 seeds." in done.out
    assert "at most 0.01 worse, if it equals the best: 51 seeds." in done.out
    once = planned(command, tmp_path, "--difference", "0.02", "--sd", "0.02")
    unsure = planned(command, tmp_path, "--difference", "0.02", "--sd", "0.02", "--sd-seeds", "5")
    assert once["deviation"] == 0.02 < unsure["deviation"]
    assert once["seeds_for_better"]["seeds"] < unsure["seeds_for_better"]["seeds"]
    assert [row["seeds"] for row in once["table"]] == [5, 10, 20, 50]
    assert [row["runs"] for row in once["table"]] == [10, 20, 40, 100]


def test_more_methods_and_configurations_take_more_seeds_and_looks_are_paid_for(
    command: Command, tmp_path: Path
) -> None:
    few = ("--difference", "0.02", "--sd", "0.02")
    many = planned(command, tmp_path, *few, "--methods", "3", "--configurations", "4")
    assert many["seeds_for_better"]["seeds"] > 17
    assert many["seeds_for_better"]["with_ties"] > many["seeds_for_better"]["seeds"]
    looks = planned(command, tmp_path, *few, "--looks", "5,10,20")
    assert [(row["seeds"], row["level"]) for row in looks["table"]] == [(5, 0.01), (10, 0.02), (20, 0.026)]
    said = command("plan", "--difference", "0.01", "--sd", "0.02", "--looks", "5,10,20", cwd=tmp_path).out
    assert "more than the planned 20 seeds; with one look at the end 64 seeds" in said


def test_from_a_study_it_knows_spread_methods_margin_and_time(results: Store, command: Command) -> None:
    cola, stsb = planned(command, results.root.parent, "--difference", "0.01", "--from", "results")
    assert (cola["task"], stsb["task"]) == ("cola", "stsb")
    assert (cola["methods"], cola["configurations"], cola["margin"]) == (2, 2, 0.01)
    records = [record for record in results.finished_runs().values() if record.task == "cola"]
    full = [record.best_score for record in records if record.method == "full" if record.best_score is not None]
    spread = next(each for each in cola["spreads"] if each["configurations"] == 1)
    assert spread["deviation"] == pytest.approx(statistics.stdev(full))
    assert cola["deviation"] > max(each["deviation"] for each in cola["spreads"]) / 2**0.5
    seconds = sum((record.cost.train_seconds or 0) + (record.cost.eval_seconds or 0) for record in records)
    assert cola["table"][0]["runs"] == len(records) == 15
    assert cola["table"][0]["seconds"] == pytest.approx(seconds)
    said = command("plan", "--difference", "0.01", "--from", "results", "--task", "stsb", cwd=results.root.parent).out
    assert "stsb, Pearson" in said
    assert "cola" not in said


def test_extending_a_study_that_was_seen_costs_unless_it_was_planned(command: Command, tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "out", {**SMALL, "tasks": ["cola"]}, artifacts=False)
    given = ("--difference", "0.03", "--from", "out")
    (seen,) = planned(command, tmp_path, *given)
    assert seen["seen_without_a_plan"] == 5
    assert seen["extended_for_better"]["seeds"] > seen["seeds_for_better"]["seeds"]
    assert "could be seen at 5 seeds, a look that was not planned" in command("plan", *given, cwd=tmp_path).out
    write_growth(store.root / "looks.json", SeedGrowth(planned=(5, 10)))
    (free,) = planned(command, tmp_path, *given)
    assert (free["seen_without_a_plan"], free["looks"]) == (None, [5, 10])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--sd", "1"), "Missing option '--difference'"),
        (("--difference", "1"), "give --from DIR or --sd, one of the two"),
        (("--difference", "0", "--sd", "1"), "--difference: 0.0 is not above 0"),
        (("--difference", "1", "--sd", "nan"), "--sd: nan is not above 0"),
        (("--difference", "1", "--sd", "1", "--margin", "-1"), "--margin: -1.0 is not above 0"),
        (("--difference", "1", "--sd", "1", "--looks", "5"), "--looks: it must be a list of 2 to 4 numbers of seeds"),
        (("--difference", "1", "--sd", "1", "--looks", "few"), "--looks: 'few' is no list of numbers of seeds"),
        (("--difference", "1", "--sd", "1", "--task", "cola"), "--task goes with --from"),
        (("--difference", "1", "--from", "results", "--sd-seeds", "5"), "--sd-seeds goes with --sd"),
        (("--difference", "1", "--from", "nowhere"), "nowhere is not a study directory"),
        (("--difference", "1", "--from", "results", "--task", "col"), "--task: 'col' is not one of: cola, stsb."),
    ],
)
def test_what_cannot_be_is_named(given: tuple[str, ...], said: str, results: Store, command: Command) -> None:
    done = command("plan", *given, cwd=results.root.parent)
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_a_study_without_a_spread_is_named(command: Command, tmp_path: Path) -> None:
    make_study_directory(tmp_path / "out", {**SMALL, "tasks": ["cola"], "seeds": [0]}, artifacts=False)
    done = command("plan", "--difference", "1", "--from", "out", cwd=tmp_path)
    assert done.code == 2
    assert "out has no configuration with two runs that trained, which a spread takes. Add seeds" in done.err
