from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manytune.data.metrics import METRICS, Array, evaluate, is_constant
from manytune.data.task_types import Scale
from manytune.data.tasks import TASKS

Reference = Callable[[Array, Array], float]

CLASSIFICATION: dict[str, Reference] = {
    "matthews_correlation": lambda p, y: sklearn.metrics.matthews_corrcoef(y, p),
    "accuracy": lambda p, y: sklearn.metrics.accuracy_score(y, p),
    "accuracy_mismatched": lambda p, y: sklearn.metrics.accuracy_score(y, p),
    "f1": lambda p, y: sklearn.metrics.f1_score(y, p, zero_division=0.0),
    "macro_f1": lambda p, y: sklearn.metrics.f1_score(y, p, average="macro", zero_division=0.0),
}
REGRESSION: dict[str, Reference] = {
    "pearson": lambda p, y: scipy.stats.pearsonr(p, y).statistic,
    "spearman": lambda p, y: scipy.stats.spearmanr(p, y).statistic,
    "rmse": lambda p, y: sklearn.metrics.root_mean_squared_error(y.astype(float), p.astype(float)),
    "mae": lambda p, y: sklearn.metrics.mean_absolute_error(y.astype(float), p.astype(float)),
}


def test_every_metric_has_a_reference_here_and_bears_its_own_name() -> None:
    assert set(METRICS) == set(CLASSIFICATION) | set(REGRESSION)
    assert all(metric.name == name and metric.title for name, metric in METRICS.items())


def test_the_direction_of_each_metric_is_right() -> None:
    labels = np.array([0, 1, 1, 0, 1, 0])
    worse = np.array([1, 1, 0, 0, 1, 1])
    for metric in METRICS.values():
        perfect = metric.compute(labels, labels)
        assert (perfect > metric.compute(worse, labels)) == metric.higher_is_better, metric.name
        assert perfect == (1.0 if metric.higher_is_better else 0.0) or perfect == pytest.approx(1.0)


@pytest.mark.parametrize("name", CLASSIFICATION)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(8, 200), agreement=st.floats(0.0, 1.0))
def test_classification_agrees_with_scikit_learn(name: str, seed: int, n: int, agreement: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, n)])  # both classes, so all metrics are defined
    predictions = np.where(rng.random(n + 2) < agreement, labels, 1 - labels)
    got = METRICS[name].compute(predictions, labels)
    assert got == pytest.approx(CLASSIFICATION[name](predictions, labels), abs=1e-12)


@pytest.mark.parametrize("name", ["matthews_correlation", "accuracy", "macro_f1"])
def test_three_classes_agree_with_scikit_learn(name: str) -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 100), rng.integers(0, 3, 100)
    got = METRICS[name].compute(predictions, labels)
    assert got == pytest.approx(CLASSIFICATION[name](predictions, labels), abs=1e-12)


@pytest.mark.parametrize("name", REGRESSION)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 200), noise=st.floats(0.01, 10.0), ties=st.booleans())
def test_regression_agrees_with_scipy(name: str, seed: int, n: int, noise: float, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.uniform(0, 5, n).astype(np.float32)
    predictions = (labels + noise * rng.standard_normal(n)).astype(np.float32)
    if ties:
        labels[: n // 2] = labels[0]
        predictions = np.round(predictions, 0)
        predictions[0], predictions[-1] = -99.0, 99.0
    got = METRICS[name].compute(predictions, labels)
    assert got == pytest.approx(REGRESSION[name](predictions.astype(float), labels.astype(float)), abs=1e-12)


def test_pearson_and_spearman_are_not_swapped() -> None:
    labels = np.arange(1.0, 9.0)
    cubed = labels**3  # a monotone curve: the ranks agree, the numbers do not
    assert METRICS["spearman"].compute(cubed, labels) == pytest.approx(1.0)
    assert METRICS["pearson"].compute(cubed, labels) < 0.97


def test_f1_is_that_of_class_one() -> None:
    labels, predictions = np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0])
    assert METRICS["f1"].compute(predictions, labels) == pytest.approx(2 / 3)


# The suite turns warnings into errors, so these also show that none is given.
@pytest.mark.parametrize("constant", [0, 1])
def test_a_constant_class_scores_mcc_zero(constant: int) -> None:
    labels = np.array([0, 1, 1, 0])
    assert METRICS["matthews_correlation"].compute(np.full(4, constant), labels) == 0.0
    assert METRICS["matthews_correlation"].compute(np.full(4, constant), np.full(4, constant)) == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.0, 2.7, -1e-30, 1e30])
def test_a_constant_number_scores_correlation_zero(name: str, constant: float) -> None:
    labels = np.array([0.0, 1.0, 4.0, 5.0], dtype=np.float32)
    assert METRICS[name].compute(np.full(4, constant, dtype=np.float32), labels) == 0.0
    neighbours = constant * (1 + np.arange(4) * np.finfo(np.float32).eps)
    assert METRICS[name].compute(neighbours.astype(np.float32), labels) == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_constant_labels_have_no_correlation_at_all(name: str) -> None:
    assert math.isnan(METRICS[name].compute(np.array([1.0, 2.0, 3.0]), np.full(3, 2.5)))


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_score_nan(name: str, bad: float) -> None:
    predictions = np.array([1.0, bad, 3.0])
    assert math.isnan(METRICS[name].compute(predictions, np.array([1.0, 2.0, 3.0])))
    assert not is_constant(predictions)


@given(hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 2)))
def test_a_class_prediction_is_constant_if_it_holds_one_class(predictions: Array) -> None:
    assert is_constant(predictions) == (len(set(predictions.tolist())) == 1)


@given(
    scale=st.floats(1e-20, 1e20),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 50),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_numbers_are_constant_at_rounding_level_whatever_their_scale(
    scale: float, seed: int, n: int, dtype: type[np.floating]
) -> None:
    unit = np.random.default_rng(seed).uniform(-1, 1, n)
    unit[:2] = -1, 1  # the spread is 2 exactly
    assert is_constant((scale * (1 + 1e-6 * unit)).astype(dtype))
    assert not is_constant((scale * (1 + 1e-4 * unit)).astype(dtype))
    assert not is_constant((scale * unit).astype(dtype))  # around zero


def test_constant_is_not_said_of_nothing() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        is_constant(np.array([]))


def test_evaluate_gives_the_tasks_metrics_in_its_order() -> None:
    task = dataclasses.replace(TASKS["cola"], metrics=("macro_f1", "matthews_correlation", "accuracy"))
    predictions, labels = np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1])
    scores = evaluate(task, predictions, labels)
    assert list(scores) == ["macro_f1", "matthews_correlation", "accuracy"]
    assert scores == {name: METRICS[name].compute(predictions, labels) for name in scores}
    assert scores["accuracy"] == 0.75
    assert all(type(score) is float for score in scores.values())


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [(np.zeros(3), np.zeros(4)), (np.zeros((3, 1)), np.zeros((3, 1))), (np.zeros(0), np.zeros(0))],
    ids=["lengths", "two-dimensional", "empty"],
)
def test_evaluate_refuses_arrays_that_do_not_match(predictions: Array, labels: Array) -> None:
    with pytest.raises(ValueError, match=r"must both be \[N\]"):
        evaluate(TASKS["stsb"], predictions, labels)


def test_evaluate_refuses_an_unknown_metric_with_the_choices() -> None:
    task = dataclasses.replace(TASKS["stsb"], metrics=("pearsn",))
    with pytest.raises(ValueError, match="Did you mean 'pearson'"):
        evaluate(task, np.array([1.0, 2.0]), np.array([1.0, 2.0]))


def test_correlations_of_large_numbers_with_a_small_spread() -> None:
    center = 1_700_000_000.0
    small = np.random.default_rng(0).normal(size=(2, 50))
    task = dataclasses.replace(TASKS["stsb"], scale=Scale(center, 1.0))
    plain, wide = evaluate(TASKS["stsb"], *small), evaluate(task, *(small + center))
    assert wide == pytest.approx(plain, abs=1e-6)
    assert abs(plain["pearson"]) > 0.01
    assert not is_constant(small[0] + center, task.scale)
    flat = np.full(50, center) + 1e-6 * small[0]
    assert is_constant(flat, task.scale)
    assert evaluate(task, flat, small[1] + center) == {"pearson": 0.0, "spearman": 0.0}
