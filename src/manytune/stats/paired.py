"""Differences between configurations over the seeds that both have.

Two configurations with the same seed start from the same head and see the same rows in the same order, so their
scores are compared seed by seed. If the two are equally good, chance decides which of them got which score: the
differences are symmetric around 0, as the paired t-test and the sign-flip test require. For one pair scipy.stats.
ttest_rel gives the same p and interval; here all pairs are tested at once, each over the seeds that it shares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

_NO_SPREAD = 1e-12  # by rounding, equal differences can have a standard deviation up to this
_EXACT_UP_TO = 14  # seeds, which have 2^14 sign patterns; of more seeds a fixed sample of patterns is drawn
_SAMPLED_PATTERNS = 20_000
_MOST_SEEDS = 1000  # more than anyone will run


@dataclass(frozen=True)
class Differences:
    """Differences a - b between each configuration of one group and each of another."""

    count: Array  # [..., A, B] seeds that both have
    mean: Array  # [..., A, B] mean difference over them; NaN where there are none
    deviation: Array  # [..., A, B] sample standard deviation; NaN for fewer than two

    def greater_p(self) -> Array:
        """[..., A, B] one-sided p of the paired t-test that a is better than b; 1 for fewer than two shared seeds.

        t = mean / (deviation / √n) with n - 1 degrees of freedom. Where all differences are equal, t has no value and
        the p is that of the sign-flip test: 2^-n.
        """
        from scipy.special import stdtr

        with np.errstate(invalid="ignore", divide="ignore"):
            p = stdtr(self.count - 1, -self.mean / self._error())
        p = np.where(self.deviation <= _NO_SPREAD, np.where(self.mean > 0, 0.5**self.count, 1.0), p)
        return np.where(self.count >= 2, p, 1.0)

    def less_p(self) -> Array:
        """[..., A, B] one-sided p that b is better than a."""
        return Differences(self.count, -self.mean, self.deviation).greater_p()

    def lower(self, alpha: float) -> Array:
        """[..., A, B] lower bound of the true difference, which fails in a share `alpha` of studies.

        mean - t_(1 - alpha, n - 1) · deviation / √n.
        """
        from scipy.special import stdtrit

        with np.errstate(invalid="ignore"):
            half_width = -stdtrit(np.maximum(self.count - 1, 1), alpha) * self._error()
        return np.where(self.count >= 2, self.mean - half_width, -np.inf)

    def upper(self, alpha: float) -> Array:
        """[..., A, B] upper bound of the true difference, which fails in a share `alpha` of studies."""
        return -Differences(self.count, -self.mean, self.deviation).lower(alpha)

    def _error(self) -> Array:
        """Standard error of the mean."""
        error: Array = self.deviation / np.sqrt(np.maximum(self.count, 1))
        return error


def differences(a: ArrayLike, b: ArrayLike) -> Differences:
    """Compare every configuration of one group with every one of another.

    `a` is [..., A, seeds] scores, NaN where a configuration lacks a seed, and `b` [..., B, seeds] for the same seeds.

    >>> found = differences([[0.7, 0.8, 0.9]], [[0.6, 0.6, np.nan]])
    >>> found.count.item(), found.mean.round(3).item(), found.greater_p().round(3).item()
    (2, 0.15, 0.102)
    """
    each = np.asarray(a, dtype=float)[..., :, None, :] - np.asarray(b, dtype=float)[..., None, :, :]
    known = np.isfinite(each)
    count = known.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, each, 0.0).sum(-1) / count
        squares = np.where(known, each - mean[..., None], 0.0) ** 2
        deviation = np.sqrt(squares.sum(-1) / np.where(count > 1, count - 1, np.nan))
    return Differences(count, mean, deviation)


def sign_flip(differences: Sequence[float]) -> float | None:
    """Two-sided p of the sign-flip test of mean difference 0 (Fisher 1935); None for no differences.

    It is the share of all patterns of signs that give a sum at least as far from 0 as the observed one. With n seeds
    it cannot go below 2 / 2^n: 0.25 for 3 and 0.0625 for 5. Up to 14 seeds every pattern is counted; beyond, 20,000
    are drawn from a fixed seed.

    >>> sign_flip([0.02, 0.01, 0.03])
    0.25
    """
    values = np.asarray(differences, dtype=float)
    count = len(values)
    if not count:
        return None
    if count <= _EXACT_UP_TO:
        signs, extra = np.array(list(itertools.product((-1.0, 1.0), repeat=count))), 0
    else:  # the observed pattern counts as one more
        signs, extra = np.random.default_rng(0).choice((-1.0, 1.0), size=(_SAMPLED_PATTERNS, count)), 1
    observed = abs(values.sum())
    extreme = int((np.abs(signs @ values) >= observed - 1e-12 * max(observed, 1e-300)).sum())
    return (extreme + extra) / (len(signs) + extra)


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d_z of paired differences, mean / standard deviation, with Hedges' correction for few seeds.

    None for fewer than two differences or none that spreads. The correction is 1 - 3 / (4 (n - 1) - 1)
    (Hedges 1981, https://doi.org/10.3102/10769986006002107).

    >>> round(effect_size([0.02, 0.01, 0.03]), 3)
    1.143
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or (deviation := float(values.std(ddof=1))) <= _NO_SPREAD:
        return None
    return float(values.mean()) / deviation * (1 - 3 / (4 * (len(values) - 1) - 1))


def power(effect: ArrayLike, seeds: ArrayLike, alpha: float) -> Array:
    """Share of studies in which a two-sided paired t-test at `alpha` finds a true difference.

    P(|T| > t_(1 - alpha/2, n - 1)), T noncentral t with noncentrality |effect| √n (Cohen 1988). `effect` is the true
    difference in standard deviations of the paired differences, n the seeds (at least 2).

    >>> power(1.0, [5, 10], 0.05).round(2).tolist()
    [0.4, 0.8]
    """
    from scipy.special import nctdtr, stdtrit

    seeds = np.asarray(seeds, dtype=float)
    noncentral = np.abs(np.asarray(effect, dtype=float)) * np.sqrt(seeds)
    critical = -stdtrit(seeds - 1, alpha / 2)
    found: Array = 1 - nctdtr(seeds - 1, noncentral, critical) + nctdtr(seeds - 1, noncentral, -critical)
    return np.where(np.isfinite(found), found, 1.0)  # scipy gives NaN where the noncentrality is very large


def seeds_needed(difference: float, deviation: float, alpha: float, wanted: float = 0.8) -> int | None:
    """The fewest seeds, at least 2, with which a difference of this size is found with power `wanted`.

    None if more than 1,000 would be needed. `deviation` is that of the paired differences, `alpha` two-sided.

    >>> seeds_needed(0.01, 0.01, 0.05)
    10
    """
    if deviation <= _NO_SPREAD or difference == 0:
        return None if difference == 0 else 2
    counts = np.arange(2, _MOST_SEEDS + 1)
    enough = np.flatnonzero(power(abs(difference) / deviation, counts, alpha) >= wanted)
    return int(counts[enough[0]]) if len(enough) else None


def detectable(deviation: float, seeds: int, alpha: float, wanted: float = 0.8) -> float | None:
    """The smallest true difference that `seeds` seeds find with power `wanted`; None for fewer than 2 seeds.

    >>> round(detectable(0.01, 10, 0.05), 4)
    0.01
    """
    if seeds < 2:
        return None
    low, high = 0.0, 1.0
    while power(high, seeds, alpha) < wanted:
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, seeds, alpha) >= wanted else (middle, high)
    return high * deviation if math.isfinite(deviation) else None
