"""Descriptive statistics over seeds: how far scores scatter. They do not test whether a difference is real."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
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
