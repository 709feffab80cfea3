from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manytune.data import metrics
from manytune.data.tasks import TASKS
from manytune.report.analysis import Analysis, analyse
from manytune.report.report_data import read
from manytune.stats.verdict import Verdict
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
        assert set(analysis.intervals) == {row.label for row in analysis.rows}
        for row in analysis.rows:
            low, high = analysis.intervals[row.label]
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
    assert analysis.row("full lr 5e-5").label not in analysis.intervals


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
    (found,) = analysis.comparisons
    assert found.verdict is Verdict.BETTER
    assert found.examples_low is None
    assert (analysis.predictions, analysis.intervals, analysis.examples, analysis.structure) == ({}, {}, None, None)


def test_it_is_the_same_every_time(directory: Path, cola: Analysis) -> None:
    again = analyse(read([directory]))[0]
    facts: list[Any] = [[each.comparisons, each.standings, each.intervals] for each in (cola, again)]
    assert facts[0] == facts[1]
