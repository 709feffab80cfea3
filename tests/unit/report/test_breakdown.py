"""The best configuration class by class, or by the size of the target, beside scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, mean_absolute_error, precision_recall_fscore_support

from manytune.data.tasks import get_task
from manytune.report.analysis import Analysis
from manytune.report.breakdown import best_predictions, breakdown, breakdown_sheets
from manytune.report.charts import scatter_chart
from manytune.report.content import Content
from manytune.report.sheets import Sheet, show
from manytune.report.task_table import score_of


def column(sheet: Sheet, name: str) -> list[object]:
    at = [each.name for each in sheet.columns].index(name)
    return [row[at] for row in sheet.rows]


def test_classes_are_counted_as_by_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    task = replace(get_task("cola"), labels=("a", "b", "c", "never"))
    labels, predictions = draw.integers(0, 3, 200), draw.integers(0, 3, (2, 200))
    confusion, classes = breakdown(task, predictions, labels, "t-", "T: ")
    assert (confusion.name, classes.title) == ("t-confusion", "T: class by class")
    both = [confusion_matrix(labels, each, labels=range(4)) for each in predictions]
    found = [column(confusion, f"predicted_{name}") for name in task.labels]
    np.testing.assert_allclose(np.array(found, dtype=float).T, np.mean(both, 0))
    assert column(confusion, "rows") == column(classes, "support") == [*np.bincount(labels).tolist(), 0]
    wanted = [precision_recall_fscore_support(labels, each, labels=range(3)) for each in predictions]
    for at, name in enumerate(("precision", "recall", "f1")):
        *known, never = column(classes, name)
        assert known == pytest.approx(np.mean([each[at] for each in wanted], 0).tolist())
        assert never is None


def test_of_many_classes_the_commonest_confusions_are_listed() -> None:
    task = replace(get_task("cola"), labels=tuple(f"class {at}" for at in range(40)))
    labels = np.arange(400) % 40
    predictions = np.where(labels == 7, 9, labels)
    predictions[3] = 5
    confusions, classes = breakdown(task, predictions[None], labels, "", "")
    assert confusions.rows == (("class 7", "class 9", 10.0, 1.0), ("class 3", "class 5", 1.0, 0.1))
    assert len(classes.rows) == 40
    assert breakdown(task, labels[None], labels, "", "")[0].rows == ()


def test_numbers_are_split_by_their_size() -> None:
    draw = np.random.default_rng(0)
    labels = draw.uniform(0, 5, 101)
    predictions = labels + draw.normal(1.0, 0.5, (3, 101))
    (sheet,) = breakdown(get_task("stsb"), predictions, labels, "", "")
    assert column(sheet, "rows") == [101, 21, 20, 20, 20, 20]
    maes = [mean_absolute_error(labels, each) for each in predictions]
    assert column(sheet, "mae")[0] == pytest.approx(np.mean(maes))
    lowest = labels <= np.sort(labels)[20]
    assert column(sheet, "mean_prediction")[1] == pytest.approx(predictions[:, lowest].mean())
    assert column(sheet, "targets")[1] == f"{labels.min():.6g} to {labels[lowest].max():.6g}"


def test_the_report_shows_the_best_configuration(cola: Analysis, stsb: Analysis, content: Content) -> None:
    best = best_predictions(cola)
    assert best is not None
    assert best.row is cola.ranked[0]
    scores = [score_of(run, "matthews_correlation") for run in best.row.finished]
    assert best.scores()["MCC"] == pytest.approx(np.mean([score or 0 for score in scores]), abs=1e-6)
    confusion, _ = breakdown_sheets(cola)
    assert sum(map(float, column(confusion, "rows"))) == 1043  # type: ignore[arg-type]
    for task, sheets, charts in zip(content.tasks, (2, 1), (0, 1), strict=True):
        (section,) = [part for part in task.parts if part.key == "predictions"]
        assert (len(section.sheets), len(section.charts)) == (sheets, charts)
    assert f"MCC {show(best.scores()['MCC'], 'score')}" in content.tasks[0].parts[-2].text[0]
    assert scatter_chart(cola) is None
    chart = scatter_chart(stsb)
    assert chart is not None
    assert len(chart.data[1]["x"]) == 1000


def test_nothing_is_shown_of_predictions_that_were_not_kept(old_analysis: Analysis) -> None:
    assert best_predictions(old_analysis) is None
    assert breakdown_sheets(old_analysis) == ()
    assert scatter_chart(old_analysis) is None
