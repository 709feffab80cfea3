"""Baselines in the answer, the tables, the pictures and the terminal; and silence where none were kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from manytune.data.baselines import BaselineScore
from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import Answer, answer
from manytune.report.charts import answer_chart
from manytune.report.content import Content, compose
from manytune.report.report_data import read
from manytune.report.score_sheets import baseline_sheet
from manytune.report.task_table import render, tabulate
from manytune.report.writing import files_of, headlines, write_report
from manytune.storage.artifacts import Baselines
from record_factory import make_record
from study_factory import GLUE_LIKE, make_study_directory

STUDY = {
    **GLUE_LIKE,
    "seeds": [0, 1],
    "methods": [{"method": "full", "learning_rate": 5e-5}, {"method": "head", "learning_rate": 1e-3}],
}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """CoLA, where no method beats TF-IDF, and STS-B, where full fine-tuning does."""
    root = tmp_path_factory.mktemp("baselines") / "study"
    return compose(read([make_study_directory(root, STUDY, baselines={"cola": 0.95, "stsb": 0.3}).root]))


def shown(analysis: Analysis) -> str:
    console = Console(width=250)
    with console.capture() as capture:
        console.print(render([analysis.table], {("cola", "minilm"): answer(analysis).headline}))
    return capture.get()


def baseline_notes(found: Answer) -> list[str]:
    return [note for note in found.notes if "Without a pretrained model" in note]


def test_that_no_method_beats_them_is_the_headline(content: Content) -> None:
    cola = content.tasks[0]
    verdict = "No method beats TF-IDF with a linear model (0.950)."
    assert cola.answer.headline.startswith(f"CoLA, MCC: {verdict} Full fine-tuning has the highest mean, 0.")
    assert cola.analysis.table.verdict_on_baselines == verdict
    (note,) = baseline_notes(cola.answer)
    assert note.endswith("the commonest class 0.000 and TF-IDF with a linear model 0.950.")
    assert f"\n  CoLA, MCC: {verdict} " in shown(cola.analysis)


def test_methods_below_them_are_named(content: Content) -> None:
    stsb = content.tasks[1]
    assert "No method" not in stsb.answer.headline
    assert stsb.analysis.table.below_bar == ("head",)
    head = stsb.analysis.row("head lr 1e-3").mean
    (best,) = [point.text for point in stsb.answer.points if point.kind == "best"]
    assert best == f"Head-only training ({head:.3f}) does not beat TF-IDF with a linear model (0.300)."
    (note,) = baseline_notes(stsb.answer)
    assert note.endswith(": TF-IDF with a linear model 0.300.")
    lines = {line.split("  ")[0].strip(): line.split() for line in shown(stsb.analysis).splitlines()}
    assert lines["the mean target"][-2:] == ["undefined", "0.500"]
    assert lines["TF-IDF with a linear model"][-2:] == ["0.300", "0.500"]


@pytest.mark.parametrize(("score", "beaten"), [(0.7, True), (0.9, False)])
def test_of_errors_the_lower_is_the_better(score: float, beaten: bool) -> None:
    facts = {"selection": "dev", "provenance": {"data_fingerprint": "f"}, "primary_metric": "rmse"}
    record = make_record(**facts, best_score=score, scores={"rmse": score})
    scores = tuple(BaselineScore("tfidf", name, 1, {"rmse": error}, "") for name, error in (("A", 0.8), ("B", 1.2)))
    kept = Baselines(fingerprint="f", selection="dev", seeds=(), versions={}, settings={}, scores=scores)
    (table,) = tabulate([record], {"cola": kept})
    assert table.bar == ("A", 0.8)
    assert table.verdict_on_baselines == (None if beaten else "No method beats A (0.800).")


def test_every_form_of_the_report_has_them(content: Content) -> None:
    files = files_of(content)
    table = "baseline,matthews_correlation,accuracy,rows,note\nthe commonest class,0.0,0.5,100,says 1\n"
    assert str(files["tables/cola-baselines.csv"]).startswith(table)
    assert "TF-IDF with a linear model" in str(files["tables/cola-baselines.tex"])
    assert "| TF-IDF with a linear model | 0.950 | 0.500 | 100 | – |" in str(files["report.md"])
    summary = json.loads(str(files["summary.json"]))["tasks"][1]["baselines"]
    assert [each["scores"]["pearson"] for each in summary] == [None, 0.3]
    chart = answer_chart(content.tasks[1].analysis)
    assert chart is not None
    (line,) = [trace for trace in chart.data if trace.get("showlegend", True)]
    assert (line["x"], line["name"]) == ([0.3, 0.3], "TF-IDF with a linear model 0.300")
    assert chart.alt.endswith("Lines, baselines: TF-IDF with a linear model 0.300.")
    assert "TF-IDF with a linear model 0.950" in str(files["index.html"])


def test_without_them_nothing_is_said(directory: Path, cola: Analysis) -> None:
    assert cola.table.baselines == ()
    assert baseline_sheet(cola) is None
    assert not baseline_notes(answer(cola))
    assert "beat" not in "".join(point.text for point in answer(cola).points)
    chart = answer_chart(cola)
    assert chart is not None
    assert chart.layout["showlegend"] is False


def test_those_of_other_rows_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "s", {**STUDY, "tasks": ["cola"]}, baselines={"cola": 0.9})
    kept = store.task_artifacts("cola").baselines()
    assert kept is not None
    store.task_artifacts("cola").keep_baselines(kept.model_copy(update={"fingerprint": "other"}))
    (other,) = analyse(read([store.root]))
    assert other.table.baselines == ()
    (store.root / "tasks" / "cola" / "baselines.json").write_text("{")
    with pytest.warns(match="Without the baselines of cola"):
        read([store.root])


def test_the_command_prints_the_headlines(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "s", {**STUDY, "tasks": ["cola"]}, baselines={"cola": 0.9})
    page, _ = write_report([store.root])
    ((key, headline),) = headlines(page).items()
    assert key == ("cola", "minilm")
    assert headline.startswith("CoLA, MCC: No method beats TF-IDF with a linear model (0.900).")
