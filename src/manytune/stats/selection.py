"""Tests of the best of several configurations that account for its having been chosen.

A method is as good as its best configuration. Which one that is, is read from the same scores, and the one that looks
best is partly the luckiest. So method A counts as better than method B only if one of A's configurations is better
than every one of B's, and its p is multiplied by the number of A's configurations:

    p(A > B) = A · min_i max_j p(i > j)

For a fixed i, the largest p over j is a valid p for "i is better than all of B" (an intersection-union test,
Berger 1982, https://doi.org/10.1080/00401706.1982.10487790), and the factor corrects for the choice of i (Bonferroni).
Both hold however the scores depend on one another. The interval for the difference between the two best
configurations holds the differences that the same test does not reject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manytune.stats.differences import Differences

Array = NDArray[Any]


@dataclass(frozen=True)
class BestOf:
    """The best configuration of one method against the best of another, both chosen by their scores."""

    p: Array
    """[...] two-sided p that the two are equally good."""
    low: Array
    """[...] lower bound of the interval for the difference between the two best true means; `high` is the upper one."""
    high: Array


def best_of(found: Differences, alpha: float) -> BestOf:
    """Test the best of A configurations against the best of B, over seeds, from the differences [..., A, B].

    The interval leaves out the true difference in at most a share `alpha` of studies.

    >>> from manytune.stats.differences import differences, means
    >>> a, b = [[0.70, 0.72, 0.71, 0.74], [0.66, 0.60, 0.62, 0.64]], [[0.65, 0.66, 0.67, 0.66]]
    >>> found = best_of(differences(means(a), means(b)), 0.05)
    >>> round(float(found.p), 3), round(float(found.low), 3), round(float(found.high), 3)
    (0.003, 0.025, 0.085)
    """
    ways_a, ways_b = found.mean.shape[-2:]
    return _best_of(found.greater_p(), found.less_p(), found.lower(alpha / 2 / ways_a), found.upper(alpha / 2 / ways_b))


def _best_of(greater: Array, less: Array, lower: Array, upper: Array) -> BestOf:
    ways_a, ways_b = greater.shape[-2:]
    one_sided = np.minimum(ways_a * greater.max(-1).min(-1), ways_b * less.max(-2).min(-1))
    return BestOf(np.minimum(1.0, 2 * one_sided), low=lower.min(-1).max(-1), high=upper.max(-2).min(-1))


def holm(p: ArrayLike) -> Array:
    """Holm's adjusted p-values along the last axis (Holm 1979, https://www.jstor.org/stable/4615733).

    In at most a share `alpha` of families of tests is the adjusted p of any difference that is not real below `alpha`,
    however the tests depend on one another. The k-th smallest of m is multiplied by m + 1 - k, and none is smaller
    than the one before it.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    # scipy's false_discovery_control controls another error, the share of false claims.
    values = np.asarray(p, dtype=float)
    count = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    stepped = np.take_along_axis(values, order, -1) * np.arange(count, 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(stepped, axis=-1))
    adjusted: Array = np.take_along_axis(stepped, np.argsort(order, axis=-1), -1)
    return adjusted


def best_set(found: Differences) -> Array:
    """[..., C] p of "this one is the best" for each of C configurations, from the differences [..., C, C] among them.

    p(i) = min(1, (C - 1) · min_j p(j > i)); those above 5 % may be the best. The true best one is above 5 % in at least
    95 % of studies, and no further correction is needed: this fails only if the best one itself is rejected (multiple
    comparisons with the best, Hsu 1984, https://doi.org/10.1214/aos/1176346732).

    >>> from manytune.stats.differences import differences, means
    >>> scores = [[0.70, 0.72, 0.71], [0.69, 0.72, 0.71], [0.50, 0.53, 0.51]]
    >>> best_set(differences(means(scores), means(scores))).round(3).tolist()
    [1.0, 0.772, 0.0]
    """
    count = found.mean.shape[-1]
    if count == 1:
        return np.ones(found.mean.shape[:-1])
    greater = np.where(np.eye(count, dtype=bool), 1.0, found.greater_p())
    p: Array = np.minimum(1.0, (count - 1) * greater.min(-2))
    return p
