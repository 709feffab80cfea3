from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from manytune.data import metrics
from manytune.data.metrics import METRICS
from manytune.data.tasks import TASKS
from manytune.report.analysis import Analysis, analyse
from manytune.report.report_data import read
from manytune.stats.claims import Verdict
from study_factory import GLUE_LIKE, make_study_directory

SMALL = {**GLUE_LIKE, "tasks": ["cola"], "methods": GLUE_LIKE["methods"][:2]}


def test_there_is_one_for_each_task_with_a_key_of_its_own(analyses: tuple[Analysis, ...]) -> None:
    assert [(each.key, each.title, each.metric.name) for each in analyses] == [
        ("cola", "CoLA", "matthews_correlation"),
        ("stsb", "STS-B", "pearson"),
    ]


def test_keys_are_safe_and_unique_where_a_task_has_several_backbones(tmp_path: Path) -> None:
    names = ("some/Model", "some-model")
    roots = [
        make_study_directory(tmp_path / str(place), {**SMALL, "seeds": [0], "model": name}, artifacts=False).root
        for place, name in enumerate(names)
    ]
    assert [each.key for each in analyse(read(roots))] == ["cola-some-model", "cola-some-model-2"]


def test_configurations_are_ranked_by_their_mean(cola: Analysis) -> None:
    means = [row.mean for row in cola.ranked]
    assert means == sorted(means, reverse=True)  # type: ignore[type-var]
    assert [row.runs[0].method for row in cola.best_rows] == ["full", "lora", "bitfit"]


def test_the_interval_over_dev_examples_is_around_the_mean(cola: Analysis, stsb: Analysis) -> None:
    for analysis in (cola, stsb):
        assert set(analysis.examples_intervals) == {row.label for row in analysis.rows}
        for row in analysis.rows:
            low, high = analysis.examples_intervals[row.label]
            mean = row.mean
            assert mean is not None
            assert low < mean < high
            assert 0.005 < high - low < 0.12


def test_kept_predictions_are_checked_against_their_record(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "s", SMALL, changes={"schema_version": 1})
    (run, *_) = store.finished_runs()
    store.write_predictions(run, np.zeros((1043, 2), dtype=np.float32) + np.array([0, 1], dtype=np.float32))
    (analysis,) = analyse(read([store.root]))
    assert run in analysis.misfits
    assert run not in analysis.predictions
    assert analysis.row("full lr 5e-5").label not in analysis.examples_intervals


@pytest.mark.parametrize("shape", [(1042, 2), (1043, 3)])
def test_predictions_of_other_rows_are_not_used(tmp_path: Path, shape: tuple[int, int]) -> None:
    store = make_study_directory(tmp_path / "s", SMALL, changes={"schema_version": 1})
    run = next(iter(store.finished_runs()))
    store.write_predictions(run, np.random.default_rng(0).normal(size=shape).astype(np.float32))
    (analysis,) = analyse(read([store.root]))
    assert analysis.misfits == (run,)


def test_predictions_give_the_scores(cola: Analysis, stsb: Analysis) -> None:
    for analysis in (cola, stsb):
        assert analysis.examples is not None
        labels = np.array(analysis.examples.labels)
        checked = 0
        for run in analysis.records:
            if run.run_id in analysis.predictions:
                found = metrics.evaluate(TASKS[run.task], analysis.predictions[run.run_id], labels)
                assert found[run.primary_metric] == pytest.approx(run.best_score, abs=1e-6)
                checked += 1
        assert checked >= 34


def test_a_study_that_goes_on_has_pending_runs(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "s", SMALL, pending=["cola-bitfit-lr1e-3-s3", "cola-bitfit-lr1e-3-s4"])
    (analysis,) = analyse(read([store.root]))
    assert [run.seed for run in analysis.pending] == [3, 4]


def test_without_evidence_verdicts_are_over_seeds_alone(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "s", SMALL, artifacts=False)
    (analysis,) = analyse(read([store.root]))
    (found,) = analysis.verdict.comparisons
    assert found.verdict is Verdict.ON_THIS_DEV_SET
    assert found.examples_low is None
    assert (analysis.predictions, analysis.draws, analysis.examples, analysis.structure) == ({}, {}, None, None)
    assert analysis.examples_intervals == {}


def test_it_is_the_same_every_time(directory: Path, cola: Analysis) -> None:
    again = analyse(read([directory]))[0]
    assert cola.verdict == again.verdict
    assert cola.examples_intervals == again.examples_intervals


def test_the_interval_for_new_seeds_is_students_and_in_the_metrics_own_direction(cola: Analysis) -> None:
    row = cola.row("full lr 5e-5")  # its method's only configuration, so that no other one's spread counts
    scores = [score for _, score in row.scored("matthews_correlation")]
    expected = scipy_stats.t.interval(0.95, len(scores) - 1, np.mean(scores), scipy_stats.sem(scores))
    assert cola.seed_interval(row.label) == pytest.approx(expected)
    turned = {label: (-high, -low) for label, (low, high) in cola.verdict.intervals.items()}
    errors = replace(cola.table.rows[0].metrics[0], metric=METRICS["rmse"])
    rows = tuple(replace(each, metrics=(errors, *each.metrics[1:])) for each in cola.table.rows)
    other = replace(cola, table=replace(cola.table, rows=rows), verdict=replace(cola.verdict, intervals=turned))
    assert other.seed_interval(row.label) == cola.seed_interval(row.label)
    assert cola.seed_interval("no such configuration") is None
