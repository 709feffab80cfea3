from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from manytune.report.compare import StudyChanges, compare_studies, render_changes
from search_factory import SEARCH, make_search_directory
from study_factory import GLUE_LIKE, make_study_directory

TWO = {**GLUE_LIKE, "tasks": ["cola"], "methods": GLUE_LIKE["methods"][:2]}


def text(changes: StudyChanges) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render_changes(changes), markup=False)
    return console.export_text()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study_directory(tmp_path_factory.mktemp("c") / "a", TWO, artifacts=False).root


def test_a_study_and_itself_are_the_same(first: Path) -> None:
    changes = compare_studies(first, first)
    assert (changes.settings, changes.provenance, changes.only_first, changes.only_second) == ((), (), (), ())
    assert {(change.difference, change.verdict) for change in changes.changes} == {(0.0, "within noise")}
    assert "Settings, machines and methods are the same." in text(changes)


def test_settings_machines_and_scores_that_differ(first: Path, tmp_path: Path) -> None:
    training = {**GLUE_LIKE["training"], "epochs": 3}
    methods = [GLUE_LIKE["methods"][0], {"method": "head", "learning_rate": 1e-3}]
    study = {**TWO, "training": training, "methods": methods}
    changes = {"provenance": {"versions": {"torch": "2.14.0"}}}
    second = make_study_directory(
        tmp_path / "b", study, artifacts=False, quality={"full": 0.6, "head": 0.2}, changes=changes
    ).root
    found = compare_studies(first, second)
    assert ("training.epochs", "6.0", "3.0") in found.settings
    assert ("methods.1.method", "bitfit", "head") in found.settings
    assert ("version, torch", "2.13.0", "2.14.0") in found.provenance
    assert found.only_first == ("cola: bitfit lr 2e-4", "cola: bitfit lr 1e-3")
    assert found.only_second == ("cola: head lr 1e-3",)
    (change,) = found.changes
    assert (change.label, change.verdict, change.seeds) == ("full lr 5e-5", "changed", (5, 5))
    assert change.first is not None
    assert change.second is not None
    assert change.difference == pytest.approx(change.second - change.first)
    assert change.difference < 0
    assert change.low is not None
    assert change.high is not None
    assert change.low < change.difference < change.high < 0
    shown = text(found)
    for expected in ("training.epochs", "Only in the first: cola: bitfit lr 2e-4", "changed", "2.13.0"):
        assert expected in shown
    turned = compare_studies(second, first).changes[0]
    assert (turned.low, turned.high) == pytest.approx((-change.high, -change.low))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["changes"][0]["label"] == "full lr 5e-5"


def test_few_seeds_get_no_verdict(first: Path, tmp_path: Path) -> None:
    second = make_study_directory(
        tmp_path / "b", {**TWO, "seeds": [0, 1]}, artifacts=False, quality={"full": 0.5, "bitfit": 0.5}
    ).root
    found = compare_studies(first, second)
    assert {change.verdict for change in found.changes} == {"too few seeds for a verdict"}
    assert {change.low for change in found.changes} == {None}
    assert all(change.difference is not None for change in found.changes)


def test_nothing_in_common_is_said(first: Path, tmp_path: Path) -> None:
    second = make_study_directory(tmp_path / "b", {**TWO, "tasks": ["stsb"]}, artifacts=False).root
    assert "The two studies have no configuration in common." in text(compare_studies(first, second))


def test_of_searches_the_confirmed_winners_are_compared(tmp_path: Path) -> None:
    study = {**SEARCH, "confirm": {"seeds": 5}}
    make_search_directory(tmp_path / "a", study, trials=6, failed=False)
    low = {"low": 1.5e-5, "high": 4e-3}
    more = {**study, "methods": [{**method, "learning_rate": low} for method in SEARCH["methods"]]}
    make_search_directory(tmp_path / "b", more, trials=6, failed=False)
    found = compare_studies(tmp_path / "a", tmp_path / "b")
    assert {change.label.partition(" ")[0] for change in found.changes} == {"full", "bitfit", "lora"}
    assert all(change.seeds == (5, 5) for change in found.changes)  # the new seeds' runs, and no trial
    assert all(" → " in change.label for change in found.changes)
    assert (found.only_first, found.only_second) == ((), ())
    assert text(found).count("is a search: the confirmed winners are compared, not the trials.") == 2


def test_a_search_and_a_fixed_study(first: Path, tmp_path: Path) -> None:
    make_search_directory(tmp_path / "s", {**SEARCH, "confirm": {"seeds": 5}}, trials=6, failed=False)
    found = compare_studies(first, tmp_path / "s")
    (change,) = found.changes  # of BitFit the fixed study has two configurations, so none is the winner's counterpart
    assert change.label.startswith("full lr 5e-5 → full lr ")
    assert any("so its scores are optimistic" in note for note in found.notes)
    assert [each.partition(" lr")[0] for each in found.only_first] == ["cola: bitfit", "cola: bitfit"]
    make_search_directory(tmp_path / "t", confirmed=False, trials=6, failed=False)
    found = compare_studies(first, tmp_path / "t")
    assert (found.changes, found.provenance) == ((), ())
    assert "is a search: no winner has been confirmed yet." in text(found)
