"""Uncertainty over dev examples: how the same models might have scored on another dev set of the same kind.

A resampled dev set is a row of counts, so a few matrix products score all runs on the same sets (the draws are paired);
scipy.stats.bootstrap resamples one statistic at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

_MOST_COUNTS = 20_000_000  # of examples in resampled sets that are held at a time: 160 MB


def bootstrap_weights(examples: int, draws: int = 2000, seed: int = 0) -> Array:
    """[draws, examples] float64: how often each example is in each resampled dev set; the same for the same arguments.

    Efron's bootstrap (1979, https://doi.org/10.1214/aos/1176344552): `examples` examples are drawn with replacement.

    >>> bootstrap_weights(examples=4, draws=2).sum(axis=1).tolist()
    [4.0, 4.0]
    """
    chosen = np.random.default_rng(seed).integers(0, examples, (draws, examples))
    chosen += np.arange(draws)[:, None] * examples
    counts = np.bincount(chosen.ravel(), minlength=draws * examples)
    weights: Array = counts.reshape(draws, examples).astype(np.float64)
    return weights


def metric_draws(metric: str, predictions: ArrayLike, labels: ArrayLike, weights: Array) -> Array | None:
    """[draws, R] scores of every run in every resampled dev set; None for a metric that is not resampled here.

    `predictions` [R, N] and `labels` [N] are class indices or numbers, `weights` [draws, N] of `bootstrap_weights`.
    A constant prediction scores 0 in a correlation, as in `metrics.evaluate`.

    >>> metric_draws("accuracy", [[1, 0, 1], [1, 1, 1]], [1, 0, 0], np.ones((1, 3))).round(3).tolist()
    [[0.667, 0.333]]
    """
    compute = _DRAWS.get(metric)
    return None if compute is None else compute(np.asarray(predictions), np.asarray(labels), weights)


def bootstrap_intervals(
    metrics: Sequence[str], predictions: ArrayLike, labels: ArrayLike, draws: int = 2000
) -> dict[str, Array]:
    """Metric → [2, R] ends of the 95 % bootstrap interval of each run's score; without metrics not resampled here.

    `predictions` and `labels` are as for `metric_draws`; of many examples, some draws are made at a time.

    >>> bootstrap_intervals(["accuracy"], [[1, 0, 1, 1]], [1, 0, 1, 1])["accuracy"].tolist()
    [[1.0], [1.0]]
    """
    examples = len(np.asarray(labels))
    at_once = min(draws, max(1, _MOST_COUNTS // examples))
    found: dict[str, list[Array]] = {}
    for seed in range(math.ceil(draws / at_once)):
        weights = bootstrap_weights(examples, at_once, seed)
        for metric in metrics:
            if (drawn := metric_draws(metric, predictions, labels, weights)) is not None:
                found.setdefault(metric, []).append(drawn)
    return {metric: np.quantile(np.concatenate(parts), (0.025, 0.975), axis=0) for metric, parts in found.items()}


def _matthews(predictions: Array, labels: Array, weights: Array) -> Array:
    """Gorodkin's multi-class formula (2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006), of which the binary
    one is a case.
    """
    total = weights.sum(1, keepdims=True)
    right = weights @ (predictions == labels).T.astype(float)
    both = np.zeros_like(right)
    predicted, labelled = np.zeros_like(right), np.zeros_like(total)
    for label in np.unique(labels):
        true = weights @ (labels == label).astype(float)[:, None]
        both += weights @ (predictions == label).T.astype(float) * true
        labelled += true**2
    for label in np.unique(predictions):
        predicted += (weights @ (predictions == label).T.astype(float)) ** 2
    return _ratio(right * total - both, (total**2 - predicted) * (total**2 - labelled))


def _macro_f1(predictions: Array, labels: Array, weights: Array) -> Array:
    """Over the classes that are in a resampled dev set, as a label or as a prediction."""
    classes = [_f1_of(label, predictions, labels, weights) for label in np.union1d(labels, predictions)]
    mean: Array = np.sum([f1 for f1, _ in classes], axis=0) / np.sum([present for _, present in classes], axis=0)
    return mean


def _f1_of(label: int, predictions: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """[draws, R] F1 of one class, 0 where it is neither label nor prediction, and whether it is one of these."""
    predicted = weights @ (predictions == label).T.astype(float)
    true = weights @ (labels == label).astype(float)[:, None]
    both = weights @ ((predictions == label) & (labels == label)).T.astype(float)
    present = predicted + true > 0
    return np.divide(2 * both, predicted + true, out=np.zeros_like(predicted), where=present), present


def _mean(values: Array, weights: Array) -> Array:
    """[R, N] values → [draws, R]."""
    mean: Array = weights @ values.T.astype(float) / weights.sum(1, keepdims=True)
    return mean


def _pearson(predictions: Array, labels: Array, weights: Array) -> Array:
    total = weights.sum(1, keepdims=True)
    x = (predictions - predictions.mean(1, keepdims=True)).T.astype(float)
    y = (labels - labels.mean())[:, None].astype(float)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    together = weights @ (x * y) / total - mean_x * mean_y
    spread_x = weights @ x**2 / total - mean_x**2
    spread_y = weights @ y**2 / total - mean_y**2
    return _ratio(together, np.maximum(spread_x, 0) * np.maximum(spread_y, 0))


def _spearman(predictions: Array, labels: Array, weights: Array) -> Array:
    y = _centered_ranks(labels, weights)
    spread = (weights * y**2).sum(1)
    ranks = (_centered_ranks(run, weights) for run in predictions)  # one at a time: each is large
    return np.stack([_ratio((weights * x * y).sum(1), (weights * x**2).sum(1) * spread) for x in ranks], axis=1)


def _centered_ranks(values: Array, weights: Array) -> Array:
    """[draws, N] mean rank of each example's value in each resampled dev set, less the mean over that set."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]
    centered: Array = ranks - (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    return centered


def _ratio(covariance: Array, variances: Array) -> Array:
    """A correlation, from the product of both variances; 0 where one of them is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variances > 0, covariance / np.sqrt(variances), 0.0)


_DRAWS: Mapping[str, Callable[[Array, Array, Array], Array]] = {
    "matthews_correlation": _matthews,
    "accuracy": lambda predictions, labels, weights: _mean(predictions == labels, weights),
    "f1": lambda predictions, labels, weights: _f1_of(1, predictions, labels, weights)[0],
    "macro_f1": _macro_f1,
    "pearson": _pearson,
    "spearman": _spearman,
    "rmse": lambda predictions, labels, weights: np.sqrt(_mean((predictions - labels) ** 2, weights)),
    "mae": lambda predictions, labels, weights: _mean(np.abs(predictions - labels), weights),
}
