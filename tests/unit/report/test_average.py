from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from manytune.data.tasks import GLUE
from manytune.report import figures
from manytune.report.content import compose
from manytune.report.report_data import read
from manytune.report.writing import files_of
from study_factory import make_study_directory

STUDY: dict[str, Any] = {
    "name": "all-of-glue",
    "tasks": list(GLUE),
    "seeds": [0, 1],
    "methods": [{"method": "full", "learning_rate": [1e-5, 2e-5]}, {"method": "bitfit", "learning_rate": 1e-3}],
}


def test_the_average_is_over_tasks_and_their_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "figure_makers", dict)  # they take most of the time, and none shows an average
    store = make_study_directory(tmp_path / "out", STUDY, artifacts=False)
    content = compose(read([tmp_path / "out"]))
    (sheet,) = content.overall
    rows = [dict(zip([column.name for column in sheet.columns], row, strict=True)) for row in sheet.rows]
    assert [row["method"] for row in rows] == ["full fine-tuning", "BitFit"]
    runs = store.finished_runs().values()
    best = {}
    for task in GLUE:
        by_rate: dict[float, list[float]] = {}
        for run in runs:
            if (run.task, run.method) == (task, "full"):
                metrics = [run.scores[name] for name in GLUE[task].all_metrics]
                by_rate.setdefault(run.hyperparameters["learning_rate"], []).append(fmean(m for m in metrics if m))
                by_rate[run.hyperparameters["learning_rate"]].sort()
        primary = {
            rate: fmean(
                run.best_score or 0
                for run in runs
                if (run.task, run.method, run.hyperparameters["learning_rate"]) == (task, "full", rate)
            )
            for rate in by_rate
        }
        best[task] = fmean(by_rate[max(primary, key=lambda rate: primary[rate])])
    assert {name: rows[0][name] for name in GLUE} == pytest.approx(best)
    assert rows[0]["average"] == pytest.approx(fmean(best.values()))
    files = files_of(content)
    assert "GLUE average" in str(files["index.html"])
    assert "## GLUE average" in str(files["report.md"])
    assert "tables/glue-average.csv" in files


def test_eight_tasks_have_no_average(tmp_path: Path) -> None:
    make_study_directory(tmp_path / "out", {**STUDY, "tasks": list(GLUE)[1:]}, artifacts=False)
    assert compose(read([tmp_path / "out"])).overall == ()
