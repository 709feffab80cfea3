"""The best of several configurations, compared without pretending that it had been the only one.

A method is as good as its best configuration. Which one that is, the data say, and the one that looks best is
partly the luckiest. So method A counts as better than method B only if one of its configurations is better than
every one of B's, and its p is multiplied by the number of A's configurations:

    p(A > B) = A · min_i max_j p(i > j)

For a fixed i, the largest p over j is a valid p for "i is better than all of B" (an intersection-union test,
Berger 1982), and the factor pays for the choice of i (Bonferroni). Both hold however the scores depend on one
another. The bounds of the interval for the difference between the two best configurations are the same test,
turned around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manytune.stats.paired import Differences

__all__ = ["BestOf", "best_of", "best_of_draws", "best_set", "holm"]

Array = NDArray[Any]


@dataclass(frozen=True)
class BestOf:
    """The best configuration of one method against the best of another, both chosen by the data.

    Attributes:
        p: [...] two-sided p that the two are equally good.
        low: [...] lower bound of the interval for the difference between the two best true means.
        high: [...] upper bound.
    """

    p: Array
    low: Array
    high: Array


def best_of(found: Differences, alpha: float) -> BestOf:
    """Test the best of A configurations against the best of B, over seeds.

    Args:
        found: Differences [..., A, B] of their scores.
        alpha: The interval covers the true difference but for this share of studies.
    """
    ways_a, ways_b = found.mean.shape[-2:]
    return _best_of(found.greater_p(), found.less_p(), found.lower(alpha / 2 / ways_a), found.upper(alpha / 2 / ways_b))


def best_of_draws(draws_a: Array, draws_b: Array, alpha: float) -> BestOf:
    """The same over dev examples, from bootstrap draws of the configurations' scores.

    Args:
        draws_a: [draws, A] scores of each configuration in resampled dev sets.
        draws_b: [draws, B] scores in the same dev sets.
        alpha: As in `best_of`.
    """
    ways_a, ways_b = draws_a.shape[-1], draws_b.shape[-1]
    each = draws_a[:, :, None] - draws_b[:, None, :]
    count = len(each)
    return _best_of(
        (1 + (each <= 0).sum(0)) / (count + 1),
        (1 + (each >= 0).sum(0)) / (count + 1),
        np.quantile(each, alpha / 2 / ways_a, axis=0),
        np.quantile(each, 1 - alpha / 2 / ways_b, axis=0),
    )


def _best_of(greater: Array, less: Array, lower: Array, upper: Array) -> BestOf:
    ways_a, ways_b = greater.shape[-2:]
    a_better = ways_a * greater.max(-1).min(-1)
    b_better = ways_b * less.max(-2).min(-1)
    return BestOf(
        p=np.minimum(1.0, 2 * np.minimum(a_better, b_better)),
        low=lower.min(-1).max(-1),
        high=upper.max(-2).min(-1),
    )


def holm(p: ArrayLike) -> Array:
    """Holm's adjusted p-values along the last axis (Holm 1979): below `alpha` in at most a share `alpha` of
    families in which no difference is real, however the tests depend on one another.
    """
    values = np.asarray(p, dtype=float)
    count = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    stepped = np.take_along_axis(values, order, -1) * np.arange(count, 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(stepped, axis=-1))
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, stepped, -1)
    return adjusted


def best_set(found: Differences) -> Array:
    """[..., C] p that each of C configurations is the best: those above 5 % may be it.

    The true best one is among them in at least 95 % of studies, and no further correction is needed for that:
    it fails only if the best one itself is rejected (multiple comparisons with the best, Hsu 1984).

    Args:
        found: Differences [..., C, C] of all configurations from one another.
    """
    count = found.mean.shape[-1]
    if count == 1:
        return np.ones(found.mean.shape[:-1])
    greater = np.where(np.eye(count, dtype=bool), 1.0, found.greater_p())
    p: Array = np.minimum(1.0, (count - 1) * greater.min(-2))
    return p
