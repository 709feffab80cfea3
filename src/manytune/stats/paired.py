"""Differences between configurations over the seeds that both have.

Two configurations with the same seed start from the same head and see the same rows in the same order, so their
scores are compared seed by seed. If the two are equally good, which of them got which score is chance, and so
the differences are symmetric around 0: what the paired t-test and the sign-flip test ask for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Differences", "detectable", "differences", "effect_size", "power", "seeds_needed", "sign_flip"]

Array = NDArray[Any]

_NO_SPREAD = 1e-12  # what rounding leaves of the spread of equal differences
_EXACT_UP_TO = 14  # seeds; 2^14 sign patterns are counted, of more a fixed sample is drawn
_SAMPLED_PATTERNS = 20_000
_MOST_SEEDS = 1000  # more than anyone will run


@dataclass(frozen=True)
class Differences:
    """Differences a - b of each configuration of one group from each of another.

    Attributes:
        count: [..., A, B] seeds that both have.
        mean: [..., A, B] mean difference over them; NaN where there are none.
        deviation: [..., A, B] sample standard deviation; NaN for fewer than two.
    """

    count: Array
    mean: Array
    deviation: Array

    def greater_p(self) -> Array:
        """[..., A, B] one-sided p of the paired t-test that a is better than b; 1 where nothing is known.

        Where all differences are the same t has no value. The p is then that of the sign-flip test: 2^-n.
        """
        from scipy.special import stdtr

        with np.errstate(invalid="ignore", divide="ignore"):
            p = stdtr(self.count - 1, -self.mean / self._error())
        steady = np.where(self.mean > 0, 0.5**self.count, 1.0)
        p = np.where(self.deviation <= _NO_SPREAD, steady, p)
        return np.where(self.count >= 2, p, 1.0)

    def less_p(self) -> Array:
        """[..., A, B] one-sided p that b is better than a."""
        return Differences(self.count, -self.mean, self.deviation).greater_p()

    def lower(self, alpha: float) -> Array:
        """[..., A, B] bound that the true difference is above, but for a share `alpha` of studies."""
        from scipy.special import stdtrit

        with np.errstate(invalid="ignore"):
            reach = -stdtrit(np.maximum(self.count - 1, 1), alpha) * self._error()
        return np.where(self.count >= 2, self.mean - reach, -np.inf)

    def upper(self, alpha: float) -> Array:
        """[..., A, B] bound that the true difference is below, but for a share `alpha` of studies."""
        return -Differences(self.count, -self.mean, self.deviation).lower(alpha)

    def _error(self) -> Array:
        error: Array = self.deviation / np.sqrt(np.maximum(self.count, 1))
        return error


def differences(a: ArrayLike, b: ArrayLike) -> Differences:
    """Compare every configuration of one group with every one of another.

    Args:
        a: [..., A, seeds] scores, NaN where a configuration lacks a seed.
        b: [..., B, seeds] scores for the same seeds.
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
    """Two-sided p of the sign-flip test of mean difference 0; None for no differences.

    With n seeds it cannot go below 2 / 2^n: 0.25 for 3 and 0.0625 for 5. Up to 14 seeds every pattern of signs
    is counted; beyond, 20,000 are drawn from a fixed seed.
    """
    values = np.asarray(differences, dtype=float)
    count = len(values)
    if not count:
        return None
    if count <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        extra = 0
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(_SAMPLED_PATTERNS, count))
        extra = 1  # the pattern that was observed
    sums = np.abs(signs @ values)
    seen = abs(values.sum())
    reached = int((sums >= seen - 1e-12 * max(seen, 1e-300)).sum())
    return (reached + extra) / (len(signs) + extra)


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d_z of paired differences, mean / standard deviation, with Hedges' correction for few seeds.

    None for fewer than two differences or none that spreads. The correction is 1 - 3 / (4 (n - 1) - 1)
    (Hedges 1981, https://doi.org/10.3102/10769986006002107).
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or (deviation := float(values.std(ddof=1))) <= _NO_SPREAD:
        return None
    return float(values.mean()) / deviation * (1 - 3 / (4 * (len(values) - 1) - 1))


def power(effect: ArrayLike, seeds: ArrayLike, alpha: float) -> Array:
    """Share of studies in which a two-sided paired t-test at `alpha` finds a true difference.

    Args:
        effect: True difference in units of the paired differences' standard deviation.
        seeds: Number of seeds, at least 2.
        alpha: Level of the test, after whatever correction.
    """
    from scipy.special import nctdtr, stdtrit

    seeds = np.asarray(seeds, dtype=float)
    noncentral = np.abs(np.asarray(effect, dtype=float)) * np.sqrt(seeds)
    critical = -stdtrit(seeds - 1, alpha / 2)
    found: Array = 1 - nctdtr(seeds - 1, noncentral, critical) + nctdtr(seeds - 1, noncentral, -critical)
    return np.where(np.isfinite(found), found, 1.0)  # scipy gives up where the effect is beyond doubt


def seeds_needed(difference: float, deviation: float, alpha: float, wanted: float = 0.8) -> int | None:
    """The fewest seeds, at least 2, with which a difference of this size is found with power `wanted`.

    None if more than 1,000 would be needed.

    Args:
        difference: What the true difference is taken to be.
        deviation: Standard deviation of the paired differences.
        alpha: Two-sided level of the test.
        wanted: Power.
    """
    if deviation <= _NO_SPREAD or difference == 0:
        return None if difference == 0 else 2
    counts = np.arange(2, _MOST_SEEDS + 1)
    enough = np.flatnonzero(power(abs(difference) / deviation, counts, alpha) >= wanted)
    return int(counts[enough[0]]) if len(enough) else None


def detectable(deviation: float, seeds: int, alpha: float, wanted: float = 0.8) -> float | None:
    """The smallest true difference that `seeds` seeds find with power `wanted`; None for fewer than 2 seeds."""
    if seeds < 2:
        return None
    low, high = 0.0, 1.0
    while power(high, seeds, alpha) < wanted:
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, seeds, alpha) >= wanted else (middle, high)
    return high * deviation if math.isfinite(deviation) else None
