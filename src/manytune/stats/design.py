"""How many seeds a study takes that is still to be run: for `manytune plan`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manytune.stats.claims import LEVEL
from manytune.stats.differences import anytime_critical
from manytune.stats.looks import MINIMUM_SEEDS, SeedPlan
from manytune.stats.planning import POWER, detectable, fewest, power

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Needed:
    """Seeds with which 80 % of studies find something; None above 1,000, or beyond the last planned look."""

    seeds: int | None
    """Where one other configuration is the strongest."""
    with_ties: int | None
    """Where all other configurations in question are equally good."""


@dataclass(frozen=True)
class Reach:
    """What so many seeds find in 80 % of studies."""

    seeds: int
    level: float
    """Of this look."""
    difference: float | None
    """The smallest true difference between the best configurations of two methods that is found."""
    margin: float | None
    """The smallest margin within which an equally good configuration is shown to be as good."""


@dataclass(frozen=True)
class Design:
    """A study to be planned: how much is compared, and when it is looked at."""

    deviation: float
    """Standard deviation of one run's score."""
    methods: int = 2
    configurations: int = 1
    """Of each method."""
    looks: tuple[int, ...] = ()

    def better_alpha(self, level: float) -> float:
        """One-sided level of one comparison: the first step of Holm over all pairs, and the choice of the best one."""
        pairs = self.methods * (self.methods - 1) // 2
        return level / 2 / pairs / self.configurations

    def as_good_alpha(self, level: float) -> float:
        """One-sided level of one claim: the first step of Holm over all configurations but the most expensive one."""
        return level / max(1, self.methods * self.configurations - 1)

    def for_better(self, difference: float, *, anytime: bool = False) -> Needed:
        """Seeds to find that a method is better by the difference; `anytime`: where looks were not planned."""
        return self._needed(difference, self.better_alpha, self.configurations, anytime)

    def for_as_good(self, margin: float, *, anytime: bool = False) -> Needed:
        """Seeds to show that a configuration which is equally good is no more than the margin worse."""
        return self._needed(margin, self.as_good_alpha, self.methods * self.configurations - 1, anytime)

    def reach(self, seeds: int) -> Reach:
        """What so many seeds, at least 2, find in 80 % of studies."""
        level = SeedPlan(self.looks).level(seeds)
        better, as_good = (
            detectable(self.deviation, seeds, alpha, self.configurations)
            for alpha in (self.better_alpha(level), self.as_good_alpha(level))
        )
        return Reach(seeds, level, better, as_good)

    def _needed(self, size: float, alpha: Callable[[float], float], rivals: int, anytime: bool) -> Needed:
        def enough(seeds: int, level: float, tied: int) -> bool:
            if self.deviation <= 0:
                return True
            given = size / self.deviation, seeds, alpha(level), self.configurations
            found = power(*given, anytime=anytime)
            if tied > 1:
                found = np.minimum(found, power_over_ties(*given, tied, anytime=anytime))
            return bool(found >= POWER)

        def needed(tied: int) -> int | None:
            if self.looks and not anytime:
                plan = SeedPlan(self.looks)
                return next((look for look in self.looks if enough(look, plan.level(look), tied)), None)
            return fewest(MINIMUM_SEEDS, lambda seeds: enough(seeds, LEVEL, tied))

        return Needed(needed(1), needed(rivals))


def power_over_ties(
    difference: float,
    seeds: ArrayLike,
    alpha: float,
    configurations: int = 1,
    tied: int = 1,
    *,
    anytime: bool = False,
) -> Array:
    """Share of studies that find a configuration better than every one of `tied` equally good ones, all at once.

    E_z Φ(d √n + z - t √2)^tied, z standard normal: the mean that all comparisons share; `difference` d is in standard
    deviations, t is the critical value of `power`. The spread counts as known, which is close with its many degrees of
    freedom.

    >>> power_over_ties(1.0, [20, 30], 0.025 / 4, 4, 4).round(2).tolist()
    [0.46, 0.77]
    """
    from scipy.special import ndtr, stdtrit

    seeds = np.asarray(seeds, dtype=float)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    degrees = 2 * configurations * (seeds - 1)
    critical = anytime_critical(seeds / 2, degrees, alpha) if anytime else -stdtrit(degrees, alpha)
    each = ndtr(difference * np.sqrt(seeds)[..., None] + nodes - critical[..., None] * np.sqrt(2))
    found: Array = (each**tied * weights).sum(-1) / weights.sum()
    return found
