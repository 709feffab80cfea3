from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from manytune.data import metrics
from manytune.data.task_types import TASK_TYPES
from manytune.stats.examples import bootstrap_weights, combined_p, mcnemar, metric_draws

METRICS = sorted(set(metrics.METRICS) - {"accuracy_mismatched"})  # which is not of dev


def data(metric: str, rows: int = 60, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    if metric in TASK_TYPES["regression"].metrics:
        labels = draw.integers(0, 26, rows) / 5  # with ties, as STS-B has them
        return labels + draw.normal(0, 1.0, (3, rows)).round(1), labels
    labels = draw.integers(0, classes, rows)
    return np.where(draw.uniform(size=(3, rows)) < 0.3, draw.integers(0, classes, (3, rows)), labels), labels


@pytest.mark.parametrize(("metric", "classes"), [(m, c) for m in METRICS for c in (2, 3) if (m, c) != ("f1", 3)])
def test_every_draw_is_the_metric_of_the_resampled_rows(metric: str, classes: int) -> None:
    predictions, labels = data(metric, classes=classes)
    weights = bootstrap_weights(60, draws=20)
    found = metric_draws(metric, predictions, labels, weights)
    assert found is not None
    assert found.shape == (20, 3)
    for draw, weight in enumerate(weights):
        rows = np.repeat(np.arange(60), weight.astype(int))
        for run in range(3):
            expected = metrics.METRICS[metric].compute(predictions[run, rows], labels[rows])
            assert found[draw, run] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", ["matthews_correlation", "pearson", "spearman"])
def test_a_constant_prediction_scores_nothing(metric: str) -> None:
    _, labels = data(metric)
    found = metric_draws(metric, np.ones((1, 60)), labels, bootstrap_weights(60, draws=5))
    assert found is not None
    np.testing.assert_allclose(found, 0.0)


def test_another_metric_is_not_resampled() -> None:
    assert metric_draws("accuracy_mismatched", np.ones((1, 3)), np.ones(3), bootstrap_weights(3, 2)) is None


def test_resampled_dev_sets_have_the_size_of_the_first_and_are_the_same_every_time() -> None:
    weights = bootstrap_weights(40, draws=500)
    assert (weights.sum(1) == 40).all()
    assert weights.mean(0) == pytest.approx(np.ones(40), abs=0.2)
    np.testing.assert_array_equal(weights, bootstrap_weights(40, draws=500))


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    predictions, labels = data("pearson", rows=300)
    found = metric_draws("pearson", predictions[:1], labels, bootstrap_weights(300, 4000))
    assert found is not None
    theirs = scipy_stats.bootstrap(
        (predictions[0], labels),
        lambda x, y: scipy_stats.pearsonr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert np.quantile(found[:, 0], [0.025, 0.975]) == pytest.approx([theirs.low, theirs.high], abs=0.01)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_rows_on_which_two_differ(rows: list[tuple[bool, bool]]) -> None:
    only_first, only_second, p = mcnemar([a for a, _ in rows], [b for _, b in rows])
    assert only_first == sum(a and not b for a, b in rows)
    assert only_second == sum(b and not a for a, b in rows)
    both = only_first + only_second
    expected = scipy_stats.binomtest(only_first, both).pvalue if both else 1.0
    assert p == pytest.approx(expected, abs=1e-9)


def test_one_p_of_several_is_rügers() -> None:
    assert combined_p([0.01, 0.2, 0.04]) == pytest.approx(3 / 2 * 0.04)
    assert combined_p([0.01, 0.2, 0.04, 0.9]) == pytest.approx(2 * 0.04)
    assert combined_p([0.7]) == 0.7
    assert combined_p([0.9, 0.8]) == 1.0
    assert combined_p([]) is None


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
def test_one_p_of_several_holds_its_level_however_they_depend(shared: float) -> None:
    draw = np.random.default_rng(0)
    z = math.sqrt(shared) * draw.normal(size=(4000, 1)) + math.sqrt(1 - shared) * draw.normal(size=(4000, 5))
    p = 2 * scipy_stats.norm.sf(np.abs(z))
    below = np.mean([(combined_p(row) or 1) < 0.05 for row in p.tolist()])
    assert below <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
