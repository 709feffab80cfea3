from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from manytune.data import metrics
from manytune.data.task_types import TASK_TYPES
from manytune.stats.examples import bootstrap_weights, metric_draws

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
