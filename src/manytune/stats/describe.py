"""Descriptive statistics over seeds: how far scores scatter. They do not test whether a difference is real."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and spread of a few numbers."""

    count: int
    mean: float | None  # None for no numbers
    deviation: float | None  # sample standard deviation (divisor count - 1); None for fewer than two numbers


def summarize(values: Iterable[float | None]) -> Summary:
    """Mean and sample standard deviation of the values; None and NaN are unknown and left out.

    >>> summarize([1.0, 3.0, None])
    Summary(count=2, mean=2.0, deviation=1.4142135623730951)
    """
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    return Summary(
        count=len(known),
        mean=statistics.fmean(known) if known else None,
        deviation=statistics.stdev(known) if len(known) > 1 else None,
    )


@dataclass(frozen=True)
class Lead:
    """The best mean of several groups against the second best."""

    first: str
    second: str
    difference: float
    """How much better the first mean is; never negative, whichever direction is better."""
    spread: float | None
    """Pooled standard deviation of these two, sqrt(Σ (n - 1) s² / Σ (n - 1)); None if neither has two seeds."""
    seeds: tuple[int, int]
    """Number of seeds of the first and of the second."""

    @property
    def within_spread(self) -> bool | None:
        """Whether the difference is no larger than the spread; None where the spread is unknown."""
        return None if self.spread is None else self.difference <= self.spread


def leader(groups: Mapping[str, Iterable[float | None]], *, higher_is_better: bool) -> Lead | None:
    """Compare the best mean with the second best; None if fewer than two groups have scores.

    `groups` is name → scores, one a seed; unknown ones are left out. Of equal means the earlier group is the first.

    >>> lead = leader({"full": [0.5, 0.7], "lora": [0.8, 0.9]}, higher_is_better=True)
    >>> lead.first, round(lead.difference, 3), round(lead.spread, 3), lead.within_spread
    ('lora', 0.25, 0.112, False)
    """
    sign = 1.0 if higher_is_better else -1.0
    summaries = {name: summarize(scores) for name, scores in groups.items()}
    means = {name: summary.mean for name, summary in summaries.items() if summary.mean is not None}
    ranked = sorted(means, key=lambda name: -sign * means[name])  # stable: ties stay in order
    if len(ranked) < 2:
        return None
    first, second = ranked[:2]
    pair = (summaries[first], summaries[second])
    spreads = [(each.count - 1, each.deviation) for each in pair if each.deviation is not None]
    degrees = sum(n for n, _ in spreads)
    return Lead(
        first=first,
        second=second,
        difference=sign * (means[first] - means[second]),
        spread=math.sqrt(sum(n * s**2 for n, s in spreads) / degrees) if degrees else None,
        seeds=(pair[0].count, pair[1].count),
    )
