"""Differences between the mean scores of configurations: standard errors, tests, bounds.

Runs of two configurations are independent samples (Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28). Runs with the
same seed start from the same head and see the same rows, but on real tasks that hardly makes their scores alike, so
that a paired test would give half of the degrees of freedom away for nothing; where seeds do make scores alike, this
test claims less often than it might, never more often.

The configurations of one method usually scatter alike. Their variances are pooled, so that many configurations with
few seeds each give a spread that is known well. One whose variance is more than 4 times that of its method's others
keeps its own. By simulation (tests/unit/stats/test_verdict.py), the share of false claims then stays below the level
also where one configuration scatters five times as widely as the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

OWN_VARIANCE = 4.0
"""A variance above this many times that of the method's other configurations is not pooled with theirs."""

EFFECT = 1.0
"""τ: the differences that an anytime-valid test is made for, in standard deviations of one run's score."""

_NO_SPREAD = 1e-12  # by rounding, equal scores can have a standard error up to this


@dataclass(frozen=True)
class Means:
    """Mean scores of configurations with their standard errors."""

    mean: Array  # [..., K]; NaN where there is no score
    error: Array  # [..., K] standard error of the mean; NaN for a configuration alone with fewer than two scores
    degrees: Array  # [..., K] degrees of freedom of the error
    count: Array  # [..., K] scores


def means(scores: ArrayLike) -> Means:
    """Mean and standard error of the configurations of one method, from [..., K, runs] scores, NaN where there is none.

    >>> found = means([[0.7, 0.8, 0.9], [0.5, 0.7, np.nan]])
    >>> found.mean.round(3).tolist(), found.error.round(4).tolist(), found.degrees.tolist()
    ([0.8, 0.6], [0.0667, 0.0816], [3.0, 3.0])
    """
    values = np.asarray(scores, dtype=float)
    known = np.isfinite(values)
    count = known.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(-1) / count
        squares = (np.where(known, values - mean[..., None], 0.0) ** 2).sum(-1)
        degrees = np.maximum(count - 1, 0).astype(float)
        others_squares = squares.sum(-1, keepdims=True) - squares
        others_degrees = degrees.sum(-1, keepdims=True) - degrees
        variance, others = squares / degrees, others_squares / others_degrees
        pooled = (others_squares + squares) / (others_degrees + degrees)
        own = variance > OWN_VARIANCE * np.maximum(others, _NO_SPREAD**2)
        variance = np.where(own, variance, pooled)
        degrees = np.where(own, degrees, others_degrees + degrees)
        return Means(mean, np.sqrt(variance / count), degrees, count)


@dataclass(frozen=True)
class Differences:
    """Differences a - b between the mean of each configuration of one method and of each of another."""

    mean: Array  # [..., A, B]; NaN where one of the two has no score
    error: Array  # [..., A, B] standard error; NaN where it is unknown
    degrees: Array  # [..., A, B] degrees of freedom of the error
    least_p: Array  # [..., A, B] the one-sided p where no score of either differs from its mean
    count: Array  # [..., A, B] runs of a and b together, as one sample's: 1 / (1 / n_a + 1 / n_b)
    anytime: bool = False  # whether p and bounds hold however often they were looked at while runs were added

    def greater_p(self) -> Array:
        """[..., A, B] one-sided p of Welch's test that a is better than b; 1 where the spread is unknown.

        Where all scores of a are equal and all of b, t has no value, and the p is that of the permutation test.
        """
        from scipy.special import stdtr

        with np.errstate(invalid="ignore", divide="ignore"):
            t = self.mean / self.error
            p = np.where(t > 0, 0.5 / self._evidence(t), 1.0) if self.anytime else stdtr(self.degrees, -t)
        p = np.where(self.error <= _NO_SPREAD, np.where(self.mean > 0, self.least_p, 1.0), p)
        return np.where(np.isfinite(p), np.minimum(p, 1.0), 1.0)

    def less_p(self) -> Array:
        """[..., A, B] one-sided p that b is better than a."""
        return (-self).greater_p()

    def lower(self, alpha: float) -> Array:
        """[..., A, B] lower bound of the true difference, which fails in a share `alpha` of studies; -inf if unknown.

        mean - t_(1 - alpha, degrees) · error.
        """
        from scipy.special import stdtrit

        with np.errstate(invalid="ignore"):
            anytime, degrees = self.anytime, self.degrees
            critical = anytime_critical(self.count, degrees, alpha) if anytime else -stdtrit(degrees, alpha)
            bound = self.mean - critical * self.error
        bound = np.where(self.error <= _NO_SPREAD, self.mean, bound)
        return np.where(np.isfinite(bound), bound, -np.inf)

    def upper(self, alpha: float) -> Array:
        """[..., A, B] upper bound of the true difference, which fails in a share `alpha` of studies."""
        return -(-self).lower(alpha)

    def __neg__(self) -> Differences:
        return replace(self, mean=-self.mean)

    def _evidence(self, t: Array) -> Array:
        """[..., A, B] e-value of the two-sided t-test, whose expectation is at most 1 if there is no difference.

        E = g^(-1/2) [(1 + t²/ν) / (1 + t²/(ν g))]^((ν + 1)/2), g = 1 + n τ²: the Bayes factor of a difference whose
        size in standard deviations is normal with deviation τ (Rouder et al. 2009, https://doi.org/10.3758/PBR.16.2.225;
        that it holds at any time: Grünwald, de Heide and Koolen 2024, https://doi.org/10.1093/jrsssb/qkae011).
        """
        g, degrees = 1 + self.count * EFFECT**2, self.degrees
        ratio = np.log1p(t**2 / degrees) - np.log1p(t**2 / (degrees * g))
        evidence: Array = np.exp(np.minimum((degrees + 1) / 2 * ratio - np.log(g) / 2, 700.0))
        return evidence


def anytime_critical(count: ArrayLike, degrees: ArrayLike, alpha: float) -> Array:
    """The t at which the one-sided p of an anytime-valid test is `alpha`; `count` as in `Differences`.

    >>> anytime_critical([2.5, 5.0], [8.0, 18.0], 0.025).round(2).tolist()
    [5.23, 3.49]
    """
    count, degrees = np.asarray(count, dtype=float), np.asarray(degrees, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        g = 1 + count * EFFECT**2
        ratio = (g**0.5 * 0.5 / alpha) ** (2 / (degrees + 1))
        square = degrees * (ratio - 1) / (1 - ratio / g)
        found: Array = np.sqrt(np.where((ratio < g) & (square >= 0), square, np.inf))
    return found


def differences(
    a: Means, b: Means, examples: Array | None = None, interaction: Array | float = 0.0, *, anytime: bool = False
) -> Differences:
    """Compare every configuration of one method with every one of another, each [..., A] and [..., B].

    The squared error is the sum of both squared errors, its degrees of freedom Satterthwaite's (1946,
    https://doi.org/10.2307/3002019). `examples` [..., A, B] is the variance of the difference over dev examples, for a
    verdict on new runs and new examples at once: the multi-reader multi-case variance

        V = V_seeds + V_examples - V_interaction, and at least each of the first two,

    as both of these hold the `interaction` of seeds with examples (Dorfman, Berbaum and Metz 1992,
    https://doi.org/10.1097/00004424-199209000-00015).

    >>> found = differences(means([[0.7, 0.8, 0.9]]), means([[0.6, 0.6, 0.7]]))
    >>> found.mean.round(3).item(), found.degrees.round(2).item(), found.greater_p().round(3).item()
    (0.167, 3.2, 0.041)
    """
    square_a, square_b = a.error[..., :, None] ** 2, b.error[..., None, :] ** 2
    seeds = square_a + square_b
    total = seeds if examples is None else np.maximum(np.maximum(seeds, examples), seeds + examples - interaction)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = square_a**2 / a.degrees[..., :, None] + square_b**2 / b.degrees[..., None, :]
        degrees = np.where(spread > 0, total**2 / spread, np.inf)
    from scipy.special import comb

    count_a, count_b = a.count[..., :, None], b.count[..., None, :]
    least = 1 / np.maximum(comb(count_a + count_b, count_a), 1.0)
    with np.errstate(divide="ignore"):
        count = 1 / (1 / count_a + 1 / count_b)
    return Differences(a.mean[..., :, None] - b.mean[..., None, :], np.sqrt(total), degrees, least, count, anytime)
