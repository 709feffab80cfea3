"""Runs that did not train: told from runs that score little, left out of the means, counted, drawn, and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from manytune.config.plan import Run
from manytune.data.baselines import BaselineScore
from manytune.data.metrics import METRICS
from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import answer
from manytune.report.charts import answer_chart
from manytune.report.report_data import read
from manytune.report.score_sheets import left_out_sheet, score_sheets
from manytune.report.sheets import Sheet
from manytune.report.task_table import floor_of, stalled, tabulate
from manytune.report.traces import Chart
from manytune.stats.claims import Verdict
from manytune.storage.artifacts import Baselines
from manytune.storage.record import LOSS_FAILURE, SCORE_FAILURE, RunRecord
from record_factory import make_record
from study_factory import GLUE_LIKE, make_study_directory

STALLED = (1, 4)
"""The seeds of full fine-tuning that hardly leave the constant's score."""


def scores_of(run: Run) -> float:
    """LoRA always trains; full fine-tuning is better, where it does."""
    scatter = 0.004 * (run.seed % 5 - 2)
    if run.method.method == "full":
        return 0.01 if run.seed in STALLED else 0.62 + scatter
    return 0.55 + scatter


def directory(root: Path, **options: Any) -> Path:
    methods = [{"method": "full", "learning_rate": 5e-5}, {"method": "lora", "rank": 8, "learning_rate": 4e-4}]
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": list(range(8)), "methods": methods}
    return make_study_directory(root / "s", study, quality={"full": 1.0, "lora": 0.5}, **options).root


def analysed(root: Path, **options: Any) -> Analysis:
    (analysis,) = analyse(read([directory(root, **options)]))
    return analysis


def drawn(analysis: Analysis) -> Chart:
    chart = answer_chart(analysis)
    assert chart is not None
    return chart


def cells_of(sheet: Sheet | None, label: str) -> dict[str, Any]:
    assert sheet is not None
    names = [column.name for column in sheet.columns]
    (row,) = [row for row in sheet.rows if row[names.index("configuration")] == label]
    return dict(zip(names, row, strict=True))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Two seeds of full fine-tuning stalled."""
    return analysed(tmp_path_factory.mktemp("stalled"), scores=scores_of)


class TestStalledSeeds:
    def test_they_are_in_no_mean_and_counted(self, analysis: Analysis) -> None:
        row = analysis.row("full lr 5e-5")
        assert [run.seed for run in row.stalled] == [*STALLED]
        assert row.stalled == row.failures
        assert [run.seed for run in row.trained] == [0, 2, 3, 5, 6, 7]
        good = [run.best_score for run in row.trained]
        assert row.mean == pytest.approx(np.mean(good))  # type: ignore[arg-type]
        assert row.primary.best.count == row.primary.last.count == row.metrics[1].best.count == 6
        assert row.notes[0].startswith("2 of 8 scored little more than a constant prediction: did not train: cola-full")
        assert analysis.row("lora r=8, lr 4e-4").failures == ()

    def test_the_verdict_is_over_the_others_and_says_so(self, analysis: Analysis) -> None:
        found = answer(analysis)
        assert ", the 6 of 8 runs that trained); " in found.headline
        assert "full fine-tuning has the highest mean, 0.61" in found.headline
        assert analysis.verdict.rates["full lr 5e-5"].failed == 2
        (point,) = [point.text for point in found.points if point.kind == "fails"]
        low, high = binomtest(2, 8).proportion_ci(method="exact")
        full, lora = (fmean(run.best_score or 0.0 for run in row.runs) for row in analysis.rows)
        assert point == (
            f"2 of 8 runs of full fine-tuning (95 % interval {100 * low:.0f} to {100 * high:.0f} %) did not train. "
            f"LoRA always did. Counted at their scores, means are: full fine-tuning {full:.3f} and LoRA {lora:.3f}."
        )
        (note,) = [note for note in found.notes if "did not take off" in note]
        assert note.startswith("Full fine-tuning, seed 1 (0.010) and seed 4 (0.010): little more than a constant")

    def test_the_tables_name_them(self, analysis: Analysis) -> None:
        cells = cells_of(score_sheets(analysis)[0], "full lr 5e-5")
        assert (cells["seeds"], cells["failures"], cells["left_out"]) == (6, 2, "2 stalled")
        sheet = left_out_sheet(analysis)
        assert sheet is not None
        assert [(row[2], row[3]) for row in sheet.rows] == [(seed, "finished") for seed in STALLED]
        assert all("did not take off" in str(row[4]) for row in sheet.rows)

    def test_they_are_crosses_in_the_picture_and_no_dots(self, analysis: Analysis) -> None:
        traces = {trace["name"]: trace for trace in drawn(analysis).data if trace["mode"] == "markers"}
        crosses = traces["Full, did not train"]
        assert (crosses["x"], crosses["marker"]["symbol"]) == ([0.01, 0.01], "x-thin-open")
        assert crosses["text"] == ["seed 1 did not train", "seed 4 did not train"]
        assert len(traces["Full"]["x"]) == 6
        assert "LoRA, did not train" not in traces


def test_with_kept_predictions_it_is_better_when_it_trains(tmp_path: Path) -> None:
    """One of the runs collapsed; whether the method is better over all runs cannot be said of so few."""
    analysis = analysed(tmp_path, states={"cola-full-lr5e-5-s1": "collapsed"})
    found = answer(analysis)
    assert analysis.verdict.comparisons[0].verdict is Verdict.WHEN_IT_TRAINS
    assert found.headline.endswith("; among runs that train, it is better than LoRA.")
    (best,) = [point.text for point in found.points if point.kind == "best"]
    assert best.startswith("Among runs that train, full fine-tuning is ahead of LoRA by 0.")


@pytest.mark.parametrize(
    ("failure", "counts"),
    [
        (f"{LOSS_FAILURE} nan at step 7.", True),
        (SCORE_FAILURE, True),
        ("OutOfMemoryError: CUDA out of memory.", False),
        ("The process that trained it died three times.", False),
    ],
)
def test_a_loss_that_is_no_number_is_a_failure_to_train_and_a_crash_is_none(
    tmp_path: Path, failure: str, counts: bool
) -> None:
    analysis = analysed(tmp_path, states={"cola-full-lr5e-5-s1": "failed"}, failure=failure)
    found, row = answer(analysis), analysis.row("full lr 5e-5")
    assert len(row.trained) == 7
    assert [run.seed for run in row.failures] == [1] * counts
    assert analysis.verdict.rates[row.label].failed == counts
    assert any(point.kind == "fails" for point in found.points) is counts
    assert (", the 7 of 8 runs that trained)" in found.headline) is counts
    assert analysis.verdict.comparisons[0].verdict is (Verdict.WHEN_IT_TRAINS if counts else Verdict.BETTER)
    assert found.notes[0] == "1 run failed (Full): left out of all means, named below."
    assert cells_of(score_sheets(analysis)[0], row.label)["failures"] == counts
    # It has no score to be drawn at.
    assert not any("did not train" in trace["name"] for trace in drawn(analysis).data)


# Which runs stalled


def runs(metric: str, scores: Sequence[float | None]) -> list[RunRecord]:
    return [
        make_record(run_id=f"r-s{seed}", seed=seed, primary_metric=metric, best_score=score, scores={metric: score})
        for seed, score in enumerate(scores)
    ]


def flagged(metric: str, floor: float | None, *scores: float | None) -> list[int]:
    return [run.seed for run in stalled(runs(metric, scores), floor, METRICS[metric])]


@pytest.mark.parametrize(
    ("metric", "floor", "scores"),
    [
        ("matthews_correlation", 0.0, (0.61, 0.6, 0.62, 0.01, 0.6)),
        ("accuracy", 0.69, (0.85, 0.86, 0.84, 0.70, 0.85)),  # half as far above the floor as the others: 0.77
        ("f1", 0.81, (0.9, 0.91, 0.9, 0.815, 0.9)),
        ("rmse", 1.5, (0.61, 0.6, 0.59, 1.45, 0.6)),
    ],
)
def test_a_run_that_stays_near_the_constant_is_flagged_in_every_direction(
    metric: str, floor: float, scores: tuple[float, ...]
) -> None:
    assert flagged(metric, floor, *scores) == [3]
    worse = -1 if METRICS[metric].higher_is_better else 1
    assert flagged(metric, floor, *scores[:3], floor + 0.1 * worse, scores[4]) == [3], "worse than a constant"
    ordinary = scores[0] - 0.02 * (scores[0] - floor)
    assert flagged(metric, floor, *scores[:3], ordinary, scores[4]) == []


def test_half_of_the_way_is_enough() -> None:
    """Low, but more than half as far above the floor as the upper quartile of the others."""
    assert flagged("matthews_correlation", 0.0, 0.61, 0.6, 0.62, 0.32, 0.6) == []
    assert flagged("matthews_correlation", 0.0, 0.61, 0.6, 0.62, 0.29, 0.6) == [3]
    assert flagged("accuracy", 0.3, 0.61, 0.6, 0.62, 0.32, 0.6) == [3], "the floor counts, not 0"


def test_most_of_the_runs_may_stall() -> None:
    assert flagged("matthews_correlation", 0.0, 0.6, 0.01, 0.61, 0.0, 0.02, 0.01, 0.62, 0.0) == [1, 3, 4, 5, 7]


def test_runs_that_all_score_little_and_scatter_are_seldom_flagged() -> None:
    """A method that learns little: its scores scatter about 0.03, and some are at the floor without having failed."""
    draw, flags, low = np.random.default_rng(0), 0, 0
    for _ in range(100):
        scores = draw.normal(0.03, 0.02, 7)
        flags += len(flagged("matthews_correlation", 0.0, *scores))
        low += sum(score < np.quantile(np.delete(scores, at), 0.75) / 2 for at, score in enumerate(scores))
    assert flags < 0.05 * 700
    assert low > 0.25 * 700, "half of the way alone would say it of every fourth run"


def test_without_a_known_floor_or_with_fewer_than_three_runs_nothing_is_said() -> None:
    assert flagged("accuracy", None, 0.85, 0.86, 0.84, 0.1, 0.85) == []
    assert flagged("matthews_correlation", 0.0, 0.6, 0.01) == []
    assert flagged("matthews_correlation", 0.0, 0.6, None, 0.01) == []
    assert flagged("matthews_correlation", 0.0, 0.6, 0.01, 0.61) == [1]


def test_the_floor_is_the_constant_baselines_score_and_of_a_correlation_zero() -> None:
    baselines = [
        BaselineScore("tfidf", "T", 1, {"accuracy": 0.8}, ""),
        BaselineScore("constant", "C", 1, {"accuracy": 0.6}, ""),
    ]
    assert floor_of("accuracy", baselines) == 0.6
    assert floor_of("accuracy", []) is None
    assert floor_of("f1", baselines) is None
    for metric in ("matthews_correlation", "pearson", "spearman"):
        assert floor_of(metric, []) == 0.0


def test_stalled_runs_of_a_table_need_the_baselines_of_their_own_rows() -> None:
    facts = {"selection": "dev", "provenance": {"data_fingerprint": "f"}}
    records = [
        make_record(**facts, run_id=f"r-s{at}", seed=at, primary_metric="accuracy", best_score=score, scores={})
        for at, score in enumerate((0.85, 0.86, 0.84, 0.7))
    ]
    scores = (BaselineScore("constant", "the commonest class", 1, {"accuracy": 0.69}, ""),)
    kept = Baselines(fingerprint="f", selection="dev", seeds=(), versions={}, settings={}, scores=scores)
    (table,) = tabulate(records, {"cola": kept})
    assert [run.seed for run in table.rows[0].stalled] == [3]
    (table,) = tabulate(records, {"cola": kept.model_copy(update={"fingerprint": "other"})})
    assert table.rows[0].stalled == ()
    (table,) = tabulate(records)
    assert table.rows[0].stalled == ()


def test_of_an_error_the_lowest_mean_is_best_and_a_stalled_run_the_highest(tmp_path: Path) -> None:
    def scores(run: Run) -> float:
        return 2.0 - scores_of(run)  # 1.38 and 1.45, where it trains

    study = {**GLUE_LIKE, "tasks": ["stsb"], "seeds": list(range(8)), "methods": [
        {"method": "full", "learning_rate": 5e-5}, {"method": "lora", "rank": 8, "learning_rate": 4e-4},
    ]}  # fmt: skip
    root = make_study_directory(tmp_path / "s", study, scores=scores, changes={"primary_metric": "rmse"}).root
    data = read([root])
    (first, *_) = data.records
    constant = (BaselineScore("constant", "the mean target", 1, {"rmse": 2.0}, ""),)
    kept = Baselines(
        fingerprint=str(first.provenance.data_fingerprint),
        selection=str(first.selection),
        seeds=(),
        versions={},
        settings={},
        scores=constant,
    )
    (analysis,) = analyse(replace(data, baselines={"stsb": kept}))
    found = answer(analysis)
    assert [run.seed for run in analysis.row("full lr 5e-5").stalled] == [*STALLED]
    assert analysis.verdict.judging.margin == pytest.approx(0.02), "a hundredth of the constant's error"
    assert "full fine-tuning has the lowest mean, 1.38" in found.headline
    assert found.headline.endswith("on this dev set it is better than LoRA.")
    (fails,) = [point.text for point in found.points if point.kind == "fails"]
    means = (fmean(run.best_score or 0.0 for run in row.runs) for row in analysis.rows)
    assert fails.endswith("means are: full fine-tuning {:.3f} and LoRA {:.3f}.".format(*means))
    low, high = analysis.seed_interval("full lr 5e-5") or (9.0, 0.0)
    assert low < (analysis.row("full lr 5e-5").mean or 0.0) < high
    shape = drawn(analysis).layout["shapes"][0]
    mean = analysis.row("full lr 5e-5").mean or 0.0
    assert (shape["x0"], shape["x1"]) == pytest.approx((mean, mean + 0.02)), "the margin is above the lowest error"


def test_what_lies_beyond_the_axis_is_marked_at_its_edge_with_its_score(tmp_path: Path) -> None:
    """A run of the best one that failed, and the mean of another configuration."""

    def scores(run: Run) -> float:
        scatter = 0.002 * (run.seed - 2)
        return {
            "full": 0.0 if run.seed == 1 else 0.62 + scatter,
            "lora": 0.6 + scatter,
            "bitfit": 0.3 + scatter,
        }[run.method.method]

    methods = [
        {"method": name, "learning_rate": 1e-4, **({"rank": 8} if name == "lora" else {})}
        for name in ("full", "lora", "bitfit")
    ]
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": list(range(8)), "methods": methods}
    (analysis,) = analyse(read([make_study_directory(tmp_path / "s", study, scores=scores).root]))
    chart = drawn(analysis)
    marks = {trace["name"]: trace for trace in chart.data if trace["mode"] == "markers+text"}
    assert {name: trace["text"] for name, trace in marks.items()} == {
        "Full, beyond": ["×0.000"],
        "BitFit, beyond": ["0.303"],
    }
    low, _ = chart.layout["xaxis"]["range"]
    assert 0.31 < low < 0.6
    assert all(low < trace["x"][0] < 0.6 for trace in marks.values())
    assert {trace["marker"]["symbol"] for trace in marks.values()} == {"triangle-left"}
