"""Verdicts on the methods of one task: which is better than which, and which configurations may be the best.

A verdict is over seeds, by paired t-tests that account for the choice among a method's configurations, and
corrected over all pairs of methods (Holm). It takes at least 5 seeds. Where dev predictions were kept, the method
must also be better over dev examples; else the verdict is "better on this dev set".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.stats.paired import detectable, differences, effect_size, seeds_needed, sign_flip
from manytune.stats.selection import best_of, best_of_draws, best_set, holm

Array = NDArray[Any]

LEVEL = 0.05
"""Significance level: the share of studies without a true difference in which one may be claimed."""

MINIMUM_SEEDS = 5
"""Seeds that a verdict takes: the spread over fewer of them is known too badly."""


class Verdict(StrEnum):
    """The result of a comparison of two methods."""

    BETTER = "better"
    """Over seeds and, where predictions were kept, over dev examples."""
    ON_THIS_DEV_SET = "better on this dev set"
    """Better over seeds, but not over dev examples: another dev set might say otherwise."""
    WITHIN_NOISE = "within noise"
    """No difference can be told from chance."""
    TOO_FEW_SEEDS = "too few seeds"
    """Fewer than 5 seeds are shared: no verdict."""


@dataclass(frozen=True, eq=False)
class Configuration:
    """One way to train: a method with its hyper-parameters, over its seeds."""

    method: str
    label: str
    scores: Mapping[int, float]
    """Seed → score of the runs that finished; higher is better."""
    draws: Array | None = None
    """[draws] mean score over seeds in resampled dev sets, the same for all configurations; None if unknown."""

    @property
    def mean(self) -> float:
        """Mean score over its seeds."""
        return math.fsum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class Comparison:
    """Two methods, each represented by its best configuration; the first is the one with the higher mean."""

    first: str
    second: str
    first_label: str
    """The first's configuration with the highest mean."""
    second_label: str
    choices: tuple[int, int]
    """Among how many configurations each was chosen."""
    difference: float
    """Mean difference of these two over the seeds that both have; the difference of their means if they share none."""
    seeds: int
    """Seeds that both have."""
    low: float | None
    """Lower bound of the 95 % interval over seeds, which accounts for the choice of both; None if unknown."""
    high: float | None
    p: float
    """Two-sided p that accounts for the choice of both; 1 below 2 shared seeds."""
    p_holm: float
    """`p`, corrected over all pairs of methods of the task."""
    verdict: Verdict
    sign_flip_p: float | None
    """Two-sided p of the sign-flip test of the two configurations alone, which assumes no distribution."""
    effect: float | None
    """Cohen's d_z of the two configurations with Hedges' correction; None where the differences have no spread."""
    wins: int
    """Seeds in which the first is ahead."""
    deviation: float | None
    """Standard deviation of the paired differences."""
    alpha: float
    """The level for one pair of configurations, after all corrections: LEVEL / pairs / configurations of the first."""
    seeds_needed: int | None
    """Seeds, at least 5, that find a true difference of this size with power 80 %; None if unknown or above 1,000."""
    detectable: float | None
    """The smallest true difference that these seeds find with power 80 %; None below 2 seeds."""
    examples_low: float | None
    """Lower bound of the 95 % interval over dev examples; None where predictions were not kept."""
    examples_high: float | None
    examples_p: float | None
    """Two-sided bootstrap p over dev examples."""
    seed_differences: tuple[float, ...] = field(default=(), repr=False)
    """One a shared seed, in the seeds' order."""


@dataclass(frozen=True)
class Standing:
    """Whether a configuration may be the best of all."""

    label: str
    p: float  # p of the hypothesis that it is the best
    may_be_best: bool | None  # None where there are too few seeds to say


def compare(first: Sequence[Configuration], second: Sequence[Configuration], pairs: int) -> Comparison:
    """Compare two methods by their best configurations; each given configuration has at least one score.

    `pairs` is how many pairs of methods the task has, for `alpha`. `compare_all` sets `p_holm` and the verdict.

    >>> full = Configuration("full", "full", {0: 0.64, 1: 0.63, 2: 0.65, 3: 0.62, 4: 0.64})
    >>> head = Configuration("head", "head", {0: 0.55, 1: 0.53, 2: 0.56, 3: 0.54, 4: 0.53})
    >>> found = compare([head], [full], pairs=1)
    >>> found.first, round(found.difference, 3), round(found.low, 3), round(found.high, 3)
    ('full', 0.094, 0.08, 0.108)
    """
    a, b = (max(group, key=lambda one: one.mean) for group in (first, second))
    if b.mean > a.mean:
        return compare(second, first, pairs)
    seeds = sorted({seed for one in (*first, *second) for seed in one.scores})
    over_seeds = best_of(differences(_table(first, seeds), _table(second, seeds)), LEVEL)
    draws_a, draws_b = ([one.draws for one in group if one.draws is not None] for group in (first, second))
    over_examples = None
    if (len(draws_a), len(draws_b)) == (len(first), len(second)):
        over_examples = best_of_draws(np.stack(draws_a, axis=1), np.stack(draws_b, axis=1), LEVEL)
    paired = [a.scores[seed] - b.scores[seed] for seed in seeds if seed in a.scores and seed in b.scores]
    deviation = float(np.std(paired, ddof=1)) if len(paired) > 1 else None
    difference = math.fsum(paired) / len(paired) if paired else a.mean - b.mean
    alpha = LEVEL / pairs / len(first)
    needed = None if deviation is None else seeds_needed(difference, deviation, alpha)
    return Comparison(
        first=a.method,
        second=b.method,
        first_label=a.label,
        second_label=b.label,
        choices=(len(first), len(second)),
        difference=difference,
        seeds=len(paired),
        low=float(over_seeds.low) if np.isfinite(over_seeds.low) else None,
        high=float(over_seeds.high) if np.isfinite(over_seeds.high) else None,
        p=float(over_seeds.p),
        p_holm=float(over_seeds.p),
        verdict=Verdict.TOO_FEW_SEEDS,
        sign_flip_p=sign_flip(paired),
        effect=effect_size(paired),
        wins=sum(each > 0 for each in paired),
        deviation=deviation,
        alpha=alpha,
        seeds_needed=None if needed is None else max(MINIMUM_SEEDS, needed),
        detectable=None if deviation is None else detectable(deviation, len(paired), alpha),
        examples_low=None if over_examples is None else float(over_examples.low),
        examples_high=None if over_examples is None else float(over_examples.high),
        examples_p=None if over_examples is None else float(over_examples.p),
        seed_differences=tuple(paired),
    )


def compare_all(configurations: Sequence[Configuration]) -> tuple[Comparison, ...]:
    """Compare all methods of a task with one another, pair by pair.

    Configurations without a score are left out. The best method's comparisons come first.

    >>> full = Configuration("full", "full", {0: 0.64, 1: 0.63, 2: 0.65, 3: 0.62, 4: 0.64})
    >>> head = Configuration("head", "head", {0: 0.55, 1: 0.53, 2: 0.56, 3: 0.54, 4: 0.53})
    >>> [(found.first, str(found.verdict), found.second) for found in compare_all([head, full])]
    [('full', 'better', 'head')]
    """
    methods: dict[str, list[Configuration]] = {}
    for one in configurations:
        if one.scores:
            methods.setdefault(one.method, []).append(one)
    ranked = sorted(methods, key=lambda name: -max(one.mean for one in methods[name]))
    pairs = list(itertools.combinations(ranked, 2))
    found = [compare(methods[first], methods[second], len(pairs)) for first, second in pairs]
    adjusted = holm([each.p for each in found]).tolist()
    return tuple(replace(each, p_holm=p, verdict=_verdict(each, p)) for each, p in zip(found, adjusted, strict=True))


def standings(configurations: Sequence[Configuration]) -> tuple[Standing, ...]:
    """Which configurations may be the best of all, at 95 %; those without a score are left out.

    >>> full = Configuration("full", "full", {0: 0.64, 1: 0.63, 2: 0.65, 3: 0.62, 4: 0.64})
    >>> head = Configuration("head", "head", {0: 0.55, 1: 0.53, 2: 0.56, 3: 0.54, 4: 0.53})
    >>> {found.label: found.may_be_best for found in standings([head, full])}
    {'head': False, 'full': True}
    """
    known = [one for one in configurations if one.scores]
    if not known:
        return ()
    best = max(known, key=lambda one: one.mean)
    table = _table(known, sorted({seed for one in known for seed in one.scores}))
    tested = zip(known, best_set(differences(table, table)).tolist(), strict=True)
    enough = {one.label: len(one.scores.keys() & best.scores.keys()) >= MINIMUM_SEEDS for one in known}
    return tuple(Standing(one.label, p, p > LEVEL if enough[one.label] else None) for one, p in tested)


def _verdict(found: Comparison, p_holm: float) -> Verdict:
    if found.seeds < MINIMUM_SEEDS:
        return Verdict.TOO_FEW_SEEDS
    # The first has the higher mean. Where the test nevertheless favours the second, neither is better.
    if p_holm >= LEVEL or found.low is None or found.low <= 0:
        return Verdict.WITHIN_NOISE
    if found.examples_low is not None and found.examples_low <= 0:
        return Verdict.ON_THIS_DEV_SET
    return Verdict.BETTER


def _table(group: Sequence[Configuration], seeds: Sequence[int]) -> Array:
    """[configurations, seeds] scores, NaN where there is none."""
    return np.array([[one.scores.get(seed, math.nan) for seed in seeds] for one in group])
