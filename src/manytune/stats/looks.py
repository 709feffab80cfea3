"""Looks at a study while seeds are added: each look could claim something, so each has to pay.

Adding seeds one by one until a difference is significant claims a false one in 11 % of studies when 5 seeds grow to 10,
in 17 % when they grow to 20 (docs/statistics.md). Planned looks hold the level by a smaller one at each
(group-sequential testing, Pocock 1977, https://doi.org/10.1093/biomet/64.2.191). A study that grew without a plan is
judged by a test that holds however often it was looked at (`Differences.anytime`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from manytune.storage.growth import SeedGrowth

if TYPE_CHECKING:
    from manytune.stats.claims import Configuration

MINIMUM_SEEDS = 5
"""Seeds that a verdict takes: the spread over fewer of them is known too badly."""

LOOK_LEVELS = {
    1: (0.05,),
    2: (0.016, 0.036),
    3: (0.010, 0.020, 0.026),
    4: (0.008, 0.014, 0.017, 0.019),
}
"""Number of planned looks → the level of each. Together they claim at most 5 % of nothing, measured by simulation for
looks that lie close together and far apart (tests/unit/stats/test_looks.py)."""


@dataclass(frozen=True)
class SeedPlan:
    """When a study is looked at."""

    looks: tuple[int, ...] = ()
    """Numbers of seeds at which a look was planned, ascending; none: one look at the end."""
    grown: bool = False
    """Whether seeds were added after a look at the scores that was not planned."""

    @classmethod
    def of(cls, growth: SeedGrowth) -> SeedPlan:
        """What a directory's growth comes to: a look that was not planned takes the place of the plan.

        Below `MINIMUM_SEEDS` seeds nothing is claimed, so that seeds which are added there cost nothing.

        >>> SeedPlan.of(SeedGrowth(planned=(5, 10), seen=(3, 5)))
        SeedPlan(looks=(5, 10), grown=False)
        >>> SeedPlan.of(SeedGrowth(planned=(5, 10), seen=(5, 7)))
        SeedPlan(looks=(), grown=True)
        """
        grown = bool(growth.unplanned(MINIMUM_SEEDS))
        return cls(() if grown else growth.planned, grown)

    @property
    def least(self) -> int:
        """Runs of a configuration that must have ended before anything is claimed of it."""
        return max((MINIMUM_SEEDS, *self.looks[:1]))

    def reached(self, seeds: int) -> int | None:
        """The number of seeds of the last planned look that so many seeds reach; None where none is reached."""
        return max((look for look in self.looks if look <= seeds), default=None)

    def level(self, seeds: int) -> float:
        """The level of a look at so many seeds."""
        look = self.reached(seeds)
        return LOOK_LEVELS[len(self.looks)][self.looks.index(look)] if look is not None else LOOK_LEVELS[1][0]

    def kept(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Of a study's seeds, in its order, those of the last planned look that they reach; all without a plan."""
        look = self.reached(len(seeds))
        return tuple(seeds if look is None else seeds[:look])

    def limited(self, configurations: Iterable[Configuration]) -> list[Configuration]:
        """The configurations with the seeds of the last planned look alone, the same for all of them.

        So one that lacks a run is not judged at another look than the others.
        """
        every = list(configurations)
        seeds = dict.fromkeys(seed for one in every for seed in _in_order(one))
        kept = set(self.kept(tuple(seeds)))
        return every if len(kept) == len(seeds) else [_with(one, kept) for one in every]


def _in_order(one: Configuration) -> Iterable[int]:
    return one.order or sorted({*one.scores, *one.failures})


def _with(one: Configuration, kept: set[int]) -> Configuration:
    """A configuration with some of its seeds."""
    chosen = [index for index, seed in enumerate(one.scores) if seed in kept]
    return replace(
        one,
        scores={seed: score for seed, score in one.scores.items() if seed in kept},
        failures={seed: score for seed, score in one.failures.items() if seed in kept},
        draws=None if one.draws is None else one.draws[:, chosen],
    )
