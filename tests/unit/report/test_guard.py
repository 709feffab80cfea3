"""A part that fails, a file that is damaged, a task that came to nothing: the rest of the report is as it was."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from manytune.report import analysis, content, figures, writing
from manytune.report.compare import compare_studies, render_changes
from manytune.report.guard import ReportWarning, attempt, warnings_as_lines
from manytune.report.live_page.state import Watched
from manytune.report.writing import write_report
from manytune.storage.lookup import chosen_records
from manytune.storage.record import HistoryRow, collapse_note
from study_factory import GLUE_LIKE, make_study_directory

SMALL: Mapping[str, Any] = {
    **GLUE_LIKE,
    "seeds": [0, 1],
    "methods": [
        {"method": "full", "learning_rate": 5e-5},
        {"method": "lora", "rank": [2, 8], "alpha": 8, "learning_rate": 4e-4},
    ],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study_directory(tmp_path_factory.mktemp("guarded") / "study", SMALL, evaluations=3).root


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of its report, without figures, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "figure_makers", dict)
        return write_report([small], tmp_path_factory.mktemp("guarded") / "whole")[0]


def break_down(*args: object) -> NoReturn:
    raise IndexError("that <b>bug</b>")


CONTENT = [
    *(
        "answer_chart",
        "every_score_chart",
        "curve_chart",
        "axis_chart",
        "cost_chart",
        "scatter_chart",
        "draw",
        "answer",
        "loss_rises",
    ),
    *("score_sheets", "parts_sheet", "left_out_sheet", "run_sheet", "comparison_sheet", "standing_sheet"),
    *("_about_statistics", "about_axis"),
    *("axis_sheet", "cost_sheet", "published_sheet", "mistake_sheet", "disagreement_sheet"),
    *("baseline_sheet", "breakdown_sheets", "_about_predictions"),
    *("glue_sheet", "_provenance"),
]
ANALYSIS = ["_predictions", "_draws", "judge", "tabulate"]


@pytest.mark.parametrize(
    ("module", "name"), [*((content, name) for name in CONTENT), *((analysis, name) for name in ANALYSIS)]
)
def test_a_part_that_fails_takes_no_other_along(
    small: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.setattr(figures, "figure_makers", dict)
    monkeypatch.setattr(module, name, break_down)
    with pytest.warns(ReportWarning, match="IndexError: that <b>bug</b>"):
        page, _ = write_report([small], tmp_path / "report")
    expected = "IndexError: that &lt;b&gt;bug&lt;/b&gt;"
    assert expected in page.read_text()
    assert "<b>bug" not in page.read_text()
    assert "IndexError" in (page.parent / "report.md").read_text()
    there, before = (len(list((path.parent / "tables").iterdir())) for path in (page, whole))
    # Two files a table; three tables of classes or numbers rest on dev predictions too.
    assert there >= before - (16 if name == "_predictions" else 10) or name == "tabulate"
    if name != "tabulate":
        assert len(json.loads((page.parent / "summary.json").read_text())["tasks"]) == 2
        assert page.read_text().count("<h2 id=") == whole.read_text().count("<h2 id=")


def test_a_figure_that_fails_takes_no_other_along(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"scores": figures.figure_makers()["scores"], "cost": break_down}
    monkeypatch.setattr(figures, "figure_makers", lambda: kept)
    with pytest.warns(ReportWarning, match="The figure .*-cost could not be drawn: IndexError"):
        page, _ = write_report([small], tmp_path / "report")
    assert {path.stem for path in (page.parent / "figures").iterdir()} == {"cola-scores", "stsb-scores"}
    assert "The figure stsb-cost could not be drawn" in page.read_text()


def test_a_summary_that_fails_takes_no_other_along(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "figure_makers", dict)
    monkeypatch.setattr(writing, "_configuration", break_down)
    with pytest.warns(ReportWarning, match=": no summary: IndexError"):
        page, _ = write_report([small], tmp_path / "report")
    assert json.loads((page.parent / "summary.json").read_text())["problems"]


def test_where_warnings_are_errors_a_part_that_fails_ends_the_report(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everywhere in these tests: the guard hides no bug from them."""
    monkeypatch.setattr(content, "curve_chart", break_down)
    with pytest.raises(ReportWarning, match="a chart could not be made: IndexError"):
        write_report([small], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_warnings_become_lines(capsys: pytest.CaptureFixture[str]) -> None:
    problems: list[str] = []
    with warnings.catch_warnings(), warnings_as_lines():
        warnings.simplefilter("always")
        assert attempt("It could not be made", break_down, 7, problems) == 7
    assert capsys.readouterr().err == "warning: It could not be made: IndexError: that <b>bug</b>\n"
    assert problems == ["It could not be made: IndexError: that <b>bug</b>"]


# Files


DAMAGE = {
    "history.csv": ("runs/cola-full*/history.csv", b"step\n1\n"),
    "predictions.npz": ("runs/cola-full*/predictions.npz", b"PK"),
    "examples.json": ("tasks/cola/examples.json", b'{"texts": [["a", "b"]], "labels": [7]}'),
    "structure.json": ("tasks/cola/structure.json", b"{"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_and_the_report_goes_without_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(figures, "figure_makers", dict)
    shutil.copytree(small, tmp_path / "study")
    pattern, data = DAMAGE[name]
    path = sorted((tmp_path / "study").glob(pattern))[0]
    path.write_bytes(data)
    with pytest.warns(ReportWarning, match=name):
        page, _ = write_report([tmp_path / "study"])
    assert str(path) in page.read_text()
    assert "stsb-mistakes" in page.read_text()


def test_predictions_of_another_run_are_named_and_not_used(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "figure_makers", dict)
    shutil.copytree(small, tmp_path / "study")
    one, other = sorted((tmp_path / "study" / "runs").glob("cola-full*"))
    shutil.copy(other / "predictions.npz", one)
    with pytest.warns(ReportWarning, match=rf"predictions\.npz is not the file that the run {one.name} wrote"):
        write_report([tmp_path / "study"])


# Studies that came to little


STATES: dict[str, Mapping[str, str]] = {
    "all collapsed": {"": "collapsed"},
    "all failed": {"": "failed"},
    "all pruned": {"": "pruned"},
    "one task collapsed": {"cola": "collapsed"},
    "the regression collapsed": {"stsb": "collapsed"},
    "mixed": {"cola-full": "collapsed", "cola-lora": "failed", "stsb-full": "failed"},
    "one finished": {"cola-lora": "collapsed", "stsb-lora": "failed"},
}


@pytest.mark.parametrize("artifacts", [True, False])
@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
def test_every_state_of_a_study_has_a_whole_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: Mapping[str, str], artifacts: bool
) -> None:
    drawn: list[Any] = []

    def draw_alone(name: str, make: Callable[[Any], Any], analysis: Any) -> dict[str, bytes]:
        drawn.append(make(analysis))  # to save it would take seconds
        return {}

    monkeypatch.setattr(figures, "_files", draw_alone)
    study = {**SMALL, "seeds": [0]}
    store = make_study_directory(tmp_path / "s", study, states=states, artifacts=artifacts, evaluations=2)
    page, _ = write_report([store.root])
    text = page.read_text()
    assert len(drawn) == 2 * len(figures.figure_makers())
    assert "could not be made" not in text
    assert text.count('<section class="task"') == 2
    assert Watched(store).state()["complete"]
    render_changes(compare_studies(store.root, store.root))


def test_the_answer_says_what_became_of_runs_that_have_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"cola-full": "collapsed", "cola-lora": "failed"}
    store = make_study_directory(tmp_path / "s", {**SMALL, "seeds": [0]}, states=states)
    monkeypatch.setattr(figures, "figure_makers", dict)
    page, _ = write_report([store.root])
    expected = (
        "all runs have ended and none has a score to compare: 1 collapsed (predicting one constant) and 2 failed."
    )
    assert expected in page.read_text()
    with pytest.raises(Exception, match=r"has finished with a score: of cola, 1 collapsed, 2 failed \(predicting one"):
        chosen_records(store, "best", "cola")
    (record,) = chosen_records(store, "best", "stsb")
    assert record.state == "finished"


def test_a_run_without_a_score_is_not_the_best_where_less_is_better(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "s", {**SMALL, "seeds": [0], "tasks": ["stsb"]})
    first, *others = store.finished_runs().values()
    store.write_record(first.model_copy(update={"best_score": None, "primary_metric": "rmse"}))
    for place, record in enumerate(others):
        store.write_record(record.model_copy(update={"best_score": 0.5 + place, "primary_metric": "rmse"}))
    assert chosen_records(store, "best", None)[0].run_id == others[0].run_id


def rows(*losses: float | None) -> list[HistoryRow]:
    return [HistoryRow(step=place, train_loss=loss) for place, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("steps", "losses", "advice"),
    [
        (3, (0.69,), "It took only 3 steps: train longer."),
        (3, (), "It took only 3 steps: train longer."),
        (3, (9.0,), "rose to 9, from 0.693. Use a lower learning rate"),
        (500, (0.5, 0.9), "rose to 0.9, from 0.5. Use a lower learning rate"),
        (500, (0.62, 0.61), "or a longer warm-up; if the rate is low already, a higher one or more steps."),
    ],
)
def test_the_note_of_a_collapsed_run_is_true_of_it(steps: int, losses: tuple[float, ...], advice: str) -> None:
    note = collapse_note("F1", np.float64(0.2391), steps, rows(*losses), 2)
    assert note.startswith("It predicts one constant for all dev rows (F1 0.239), whatever their text.")
    assert advice in note
    assert "scores 0" not in note
