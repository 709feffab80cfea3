"""How many seeds a study takes, from the spread of scores and a difference that the user states.

A difference that a study has shown is no basis for this: by chance it is too large or too small, and the number of
seeds goes with its square.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manytune.stats.differences import anytime_critical

Array = NDArray[np.float64]

MOST_SEEDS = 1000  # more than anyone will run
POWER = 0.8
"""The share of studies in which the number of seeds shall be enough."""


def power(
    difference: ArrayLike, seeds: ArrayLike, alpha: float, configurations: int = 1, *, anytime: bool = False
) -> Array:
    """Share of studies in which Welch's one-sided test at `alpha` finds a true difference between two configurations.

    P(T > t_(1 - alpha, ν)), T noncentral t with noncentrality difference · √(seeds / 2) (Cohen 1988). `difference` is
    in standard deviations of one run's score, `seeds` (at least 2) are those of each configuration, and ν is
    2 · configurations · (seeds - 1), as the variances of a method's configurations are pooled. That degrees of freedom
    are estimated, and that some configurations keep their own variance by chance, costs up to 4 points, not counted.

    With `anytime` the test is the one of a study that grows without a plan.

    >>> power(2.0, [5, 10], 0.025).round(2).tolist()
    [0.79, 0.99]
    >>> power(2.0, [5, 10], 0.025, anytime=True).round(2).tolist()
    [0.12, 0.81]
    """
    from scipy.special import nctdtr, stdtrit

    seeds = np.asarray(seeds, dtype=float)
    degrees = 2 * configurations * (seeds - 1)
    critical = anytime_critical(seeds / 2, degrees, alpha) if anytime else -stdtrit(degrees, alpha)
    found = 1 - nctdtr(degrees, np.asarray(difference, dtype=float) * np.sqrt(seeds / 2), critical)
    found = np.where(np.isinf(critical), 0.0, found)
    # scipy gives NaN where the noncentrality is very large.
    return np.where(np.isfinite(found), found, 1.0)


def seeds_for(
    difference: float, deviation: float, alpha: float, configurations: int = 1, *, anytime: bool = False
) -> int | None:
    """The fewest seeds, at least 2, with which a true difference is found in 80 % of studies; None above 1,000.

    `deviation` is the standard deviation of one run's score, `alpha` one-sided and after all corrections. To show that
    an equal configuration is no more than a margin worse, the same number is needed with the margin as the difference.

    >>> seeds_for(0.02, 0.01, 0.025)
    6
    """
    if difference <= 0:
        return None
    if deviation <= 0:
        return 2
    standard = difference / deviation
    return fewest(2, lambda seeds: bool(power(standard, seeds, alpha, configurations, anytime=anytime) >= POWER))


def fewest(least: int, suffice: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds from `least` on that suffices, as all larger ones do; None above 1,000."""
    counts = range(least, MOST_SEEDS + 1)
    at = bisect.bisect_left(counts, True, key=suffice)
    return counts[at] if at < len(counts) else None


def detectable(
    deviation: float, seeds: int, alpha: float, configurations: int = 1, *, anytime: bool = False
) -> float | None:
    """The smallest true difference that `seeds` seeds find in 80 % of studies; None for fewer than 2 seeds.

    >>> round(detectable(0.01, 10, 0.025), 4)
    0.0132
    """
    if seeds < 2 or not math.isfinite(deviation):
        return None
    if anytime and not math.isfinite(anytime_critical(seeds / 2, 2 * configurations * (seeds - 1), alpha)):
        return None  # so few seeds that nothing could be claimed of them
    return deviation * _least(
        lambda difference: bool(power(difference, seeds, alpha, configurations, anytime=anytime) >= POWER)
    )


def upper_deviation(deviation: float, degrees: float, confidence: float = 0.8) -> float:
    """Upper bound of a true standard deviation, from one that was seen with so many degrees of freedom.

    deviation · √(ν / χ²_(1 - confidence, ν)): a spread seen in few seeds is often too small.

    >>> round(upper_deviation(0.01, 4), 4)
    0.0156
    """
    from scipy.special import chdtri

    return deviation * math.sqrt(degrees / float(chdtri(degrees, confidence)))


def _least(holds: Callable[[float], bool]) -> float:
    """The smallest positive number of which something holds, to a part in a million; it holds of all larger ones."""
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
