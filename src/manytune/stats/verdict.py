"""The verdict on one task: who is best, who is as good within a margin, who fails how often.

Page, terminal and tables are made from one `TaskVerdict`, so that they cannot contradict one another. What is claimed,
by which formula and with which measured error rates: docs/statistics.md.

Higher scores are better throughout: the caller turns errors around.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.stats.claims import (
    LEVEL,
    AsGood,
    Comparison,
    Configuration,
    Judging,
    Standing,
    TaskVerdict,
    TrainingRate,
    Verdict,
)
from manytune.stats.differences import Differences, Means, differences, means
from manytune.stats.looks import MINIMUM_SEEDS
from manytune.stats.planning import POWER, detectable, seeds_for, upper_deviation
from manytune.stats.selection import best_of, best_set, holm

Array = NDArray[Any]


def judge(configurations: Iterable[Configuration], judging: Judging | None = None) -> TaskVerdict:
    """Everything that the runs of one task allow to be said.

    >>> full = Configuration("full", "full", {0: 0.64, 1: 0.63, 2: 0.65, 3: 0.62, 4: 0.64})
    >>> head = Configuration("head", "head", {0: 0.55, 1: 0.53, 2: 0.56, 3: 0.54, 4: 0.53})
    >>> found = judge([head, full])
    >>> found.leader, str(found.comparisons[0].verdict), found.as_good["head"].shown
    ('full', 'better on this dev set', False)
    """
    judging = judging or Judging()
    every = judging.seeds.limited(configurations)
    rates = {one.label: training_rate(len(one.scores), one.runs) for one in every if one.runs}
    trained = [one for one in every if one.scores]
    level = judging.seeds.level(len({seed for one in every for seed in (*one.scores, *one.failures)}))
    if not trained:
        return TaskVerdict(judging, level, None, rates=rates)
    groups = by_method(trained)
    ranked = sorted(groups, key=lambda name: -max(one.mean for one in groups[name]))
    pairs = list(itertools.combinations(ranked, 2))
    found = [_compare(groups[first], groups[second], judging, len(pairs), level) for first, second in pairs]
    comparisons = _corrected(found, judging, level)
    among = _among(groups, anytime=judging.seeds.grown)
    as_good = _as_good(groups, among, judging, level)
    leader = max(groups[ranked[0]], key=lambda one: one.mean)
    costs = {one.label: one.parameters for one in trained if one.parameters is not None}
    most = costs.get(leader.label, math.inf)
    shown = [
        label
        for label, each in as_good.items()
        if each.shown and not rates[label].failed and label in costs and costs[label] <= most
    ]
    return TaskVerdict(
        judging,
        level,
        leader=leader.label,
        comparisons=comparisons,
        standings={each.label: each for each in _standings(groups, among, judging, level)},
        as_good=as_good,
        rates=rates,
        intervals=_intervals(groups, judging.ceiling),
        recommended=min(shown, key=lambda label: costs[label], default=None),
    )


def by_method(configurations: Iterable[Configuration]) -> dict[str, list[Configuration]]:
    """Method → its configurations, both in the order given."""
    groups: dict[str, list[Configuration]] = {}
    for one in configurations:
        groups.setdefault(one.method, []).append(one)
    return groups


def training_rate(trained: int, runs: int) -> TrainingRate:
    """How often runs train, with its 95 % interval.

    >>> found = training_rate(5, 5)
    >>> round(found.low, 3), found.high
    (0.478, 1.0)
    """
    from scipy.special import betaincinv

    low = float(betaincinv(trained, runs - trained + 1, LEVEL / 2)) if trained else 0.0
    high = float(betaincinv(trained + 1, runs - trained, 1 - LEVEL / 2)) if trained < runs else 1.0
    return TrainingRate(trained, runs, low, high)


def _compare(
    first: Sequence[Configuration], second: Sequence[Configuration], judging: Judging, pairs: int, level: float
) -> Comparison:
    """Compare two methods by their best configurations; the first's best mean is not below the second's."""
    a, b = (max(group, key=lambda one: one.mean) for group in (first, second))
    anytime = judging.seeds.grown
    means_a, means_b = _means(first), _means(second)
    over_seeds = best_of(differences(means_a, means_b, anytime=anytime), LEVEL)
    over_examples = _over_examples(first, second, means_a, means_b, anytime)
    everywhere = None if over_examples is None else best_of(over_examples, LEVEL)
    of_examples = _examples_variance([a], [b])
    examples = 0.0 if of_examples is None else float(of_examples[0, 0])
    difference = a.mean - b.mean
    low, high = _finite(over_seeds.low), _finite(over_seeds.high)
    if high is not None and judging.ceiling is not None:
        # The second's best true mean is above this bound but in one study of a thousand, and the first's below the best
        # possible score: so much more than 95 % the interval may miss.
        index = second.index(b)
        second_low = b.mean - _critical(means_b.degrees[index]) * means_b.error[index]
        high = min(high, max(difference, judging.ceiling - float(second_low))) if math.isfinite(second_low) else high
    at = first.index(a), second.index(b)
    error, degrees = _deviation(means_a, at[0], means_b, at[1])
    rates = training_rate(len(a.scores), a.runs), training_rate(len(b.scores), b.runs)
    shared = [seed for seed in a.scores if seed in b.scores]
    fewest = min(len(a.scores), len(b.scores))
    alpha = level / 2 / pairs / len(first)
    return Comparison(
        first=a.method,
        second=b.method,
        first_label=a.label,
        second_label=b.label,
        choices=(len(first), len(second)),
        difference=difference,
        seeds=(len(a.scores), len(b.scores)),
        low=low,
        high=high,
        p=float(over_seeds.p),
        p_holm=float(over_seeds.p),
        verdict=Verdict.TOO_FEW_SEEDS,
        deviation=error,
        effect=None if not error or degrees <= 1 else difference / error * (1 - 3 / (4 * degrees - 1)),
        ahead=sum(a.scores[seed] > b.scores[seed] for seed in shared),
        shared=len(shared),
        detectable=None if error is None else detectable(error, fewest, alpha, len(first), anytime=anytime),
        seeds_needed=None
        if error is None
        else _seeds_needed(judging, error, degrees, alpha, len(first), fewest, examples),
        examples_low=None if everywhere is None else _finite(everywhere.low),
        examples_high=None if everywhere is None else _finite(everywhere.high),
        examples_p=None if everywhere is None else float(everywhere.p),
        overall_low=_overall_low(low, a, rates[0], judging.floor),
        rates=rates,
        rates_p=_fisher(*rates),
    )


def _corrected(found: Sequence[Comparison], judging: Judging, level: float) -> tuple[Comparison, ...]:
    """The comparisons with p corrected over all of them, and with their verdicts."""
    over_seeds = holm([each.p for each in found]).tolist()
    # A pair whose predictions were not kept claims nothing of new examples, and takes no part in that correction.
    known = [index for index, each in enumerate(found) if each.examples_p is not None]
    everywhere = dict(zip(known, holm([found[index].examples_p or 0.0 for index in known]).tolist(), strict=True))
    verdicts = [
        _verdict(each, over_seeds[index], everywhere.get(index, 1.0), level)
        if min(each.seeds) >= MINIMUM_SEEDS and min(rate.runs for rate in each.rates) >= judging.seeds.least
        else Verdict.TOO_FEW_SEEDS
        for index, each in enumerate(found)
    ]
    return tuple(
        replace(each, p_holm=p, verdict=verdict) for each, p, verdict in zip(found, over_seeds, verdicts, strict=True)
    )


def _verdict(found: Comparison, p: float, examples_p: float, level: float) -> Verdict:
    # The first has the higher mean. Where the test nevertheless favours the second, neither is better.
    if p >= level or found.low is None or found.low <= 0:
        return Verdict.WITHIN_NOISE
    if examples_p >= level or found.examples_low is None or found.examples_low <= 0:
        return Verdict.ON_THIS_DEV_SET
    if found.rates[0].failed and (found.overall_low is None or found.overall_low <= 0):
        return Verdict.WHEN_IT_TRAINS
    return Verdict.BETTER


def _as_good(
    groups: Mapping[str, Sequence[Configuration]], found: Differences, judging: Judging, level: float
) -> dict[str, AsGood]:
    """Label → whether the configuration is as good as every other one within the margin.

    For one configuration, the largest p over all others is a valid one (an intersection-union test); the claims on all
    configurations are corrected by Holm. The most expensive one is not asked: nobody would choose it for its cost.
    """
    every = [one for group in groups.values() for one in group]
    if len(every) < 2:
        return {}
    dearest = max(range(len(every)), key=lambda index: (every[index].parameters or 0, index))
    asked = [index for index in range(len(every)) if index != dearest]
    square = _every(groups).error ** 2
    square, of_examples = square[:, None] + square[None, :], _examples_variance(every, every)
    greater = replace(found, mean=found.mean + judging.margin).greater_p()
    itself = np.eye(len(every), dtype=bool)
    p = np.where(itself, 0.0, greater).max(-1)
    adjusted = dict(zip(asked, holm(p[asked]).tolist(), strict=True))
    lower = np.where(itself, np.inf, found.lower(level / len(asked))).min(-1)
    best = max(every, key=lambda one: one.mean)
    made = {}
    for index in asked:
        one = every[index]
        enough = _enough(one, best, judging=judging)
        worst = int(np.where(itself[index], -np.inf, greater[index]).argmax())
        variance = square[index, worst] * found.count[index, worst]
        examples = 0.0 if of_examples is None else float(of_examples[index, worst])
        needed = None
        if math.isfinite(variance):
            degrees = float(found.degrees[index, worst])
            there = min(len(one.scores), len(best.scores))
            needed = _seeds_needed(judging, math.sqrt(variance), degrees, level / len(asked), 1, there, examples)
        shown, low = enough and adjusted[index] < level, _finite(lower[index])
        made[one.label] = AsGood(
            one.label,
            # Holm shows more than the bound, which every claim pays for alike.
            low=max(-math.inf if low is None else low, -judging.margin) if shown else low,
            p=adjusted[index],
            shown=shown,
            seeds_needed=needed,
        )
    return made


def _seeds_needed(
    judging: Judging,
    deviation: float,
    degrees: float,
    alpha: float,
    configurations: int,
    there: int,
    examples: float,
) -> int | None:
    """Seeds for a difference of the margin; adding some costs where scores were seen and no more looks are planned.

    `examples` is the variance of the difference over dev examples, of which more seeds take nothing away.
    """
    from scipy.special import ndtri

    anytime = judging.seeds.grown or (there >= MINIMUM_SEEDS and there >= max(judging.seeds.looks, default=0))
    left = judging.margin**2 - (ndtri(1 - alpha) + ndtri(POWER)) ** 2 * examples
    if left <= 0:
        return None
    spread = upper_deviation(deviation, max(1.0, degrees))
    needed = seeds_for(math.sqrt(left), spread, alpha, configurations, anytime=anytime)
    return None if needed is None else max(MINIMUM_SEEDS, needed)


def _standings(
    groups: Mapping[str, Sequence[Configuration]], among: Differences, judging: Judging, level: float
) -> tuple[Standing, ...]:
    """Which configurations may be the best of all, at 95 %."""
    every = [one for group in groups.values() for one in group]
    best = max(every, key=lambda one: one.mean)
    tested = zip(every, best_set(among).tolist(), strict=True)
    return tuple(
        Standing(one.label, p, p > level if _enough(one, best, judging=judging) else None) for one, p in tested
    )


def _intervals(groups: Mapping[str, Sequence[Configuration]], ceiling: float | None) -> dict[str, tuple[float, float]]:
    """Label → 95 % interval of the mean; the spread is pooled within a method, and no end is above the ceiling."""
    from scipy.special import stdtrit

    found = {}
    for group in groups.values():
        of_group = _means(group)
        for index, one in enumerate(group):
            degrees, error = float(of_group.degrees[index]), float(of_group.error[index])
            if degrees > 0 and math.isfinite(error):
                half = -float(stdtrit(degrees, LEVEL / 2)) * error
                high = one.mean + half if ceiling is None else min(one.mean + half, max(ceiling, one.mean))
                found[one.label] = (one.mean - half, high)
    return found


def _critical(degrees: Any) -> float:
    """How many standard errors a mean is above its 99.9 % lower bound."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, 0.001)) if degrees > 0 else math.inf


def _enough(*configurations: Configuration, judging: Judging) -> bool:
    """Whether they have the runs that a claim takes."""
    return all(len(one.scores) >= MINIMUM_SEEDS and one.runs >= judging.seeds.least for one in configurations)


def _among(groups: Mapping[str, Sequence[Configuration]], *, anytime: bool) -> Differences:
    """[C, C] differences among the configurations of all methods, for new seeds; variances are pooled within each.

    Where predictions of all were kept, for new examples too.
    """
    every, configurations = _every(groups), [one for group in groups.values() for one in group]
    return _over_examples(configurations, configurations, every, every, anytime) or differences(
        every, every, anytime=anytime
    )


def _every(groups: Mapping[str, Sequence[Configuration]]) -> Means:
    parts = [_means(group) for group in groups.values()]
    names = ("mean", "error", "degrees", "count")
    return Means(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _means(group: Sequence[Configuration]) -> Means:
    """Of the runs that trained."""
    longest = max(len(one.scores) for one in group)
    return means([[*one.scores.values(), *([math.nan] * (longest - len(one.scores)))] for one in group])


def _over_examples(
    first: Sequence[Configuration], second: Sequence[Configuration], a: Means, b: Means, anytime: bool
) -> Differences | None:
    """Differences whose errors are those of new seeds and new examples; None where predictions were not kept."""
    variance = _examples_variance(first, second)
    if variance is None:
        return None
    interactions = [
        np.array([_interaction(one.draws, one.draws.mean(1)) for one in group if one.draws is not None])
        for group in (first, second)
    ]
    return differences(a, b, variance, interactions[0][:, None] + interactions[1][None, :], anytime=anytime)


def _examples_variance(first: Sequence[Configuration], second: Sequence[Configuration]) -> Array | None:
    """[A, B] variance over dev examples of the difference of two means over seeds; None if one's draws are unknown."""
    means = [one.draws.mean(1) for one in (*first, *second) if one.draws is not None]
    if len(means) < len(first) + len(second):
        return None
    shared: Array = np.cov(np.stack(means))  # of these, no difference has to be held for each draw
    ways, own = len(first), np.diag(shared)
    variance: Array = np.maximum(0.0, own[:ways, None] + own[None, ways:] - 2 * shared[:ways, ways:])
    return variance


def _interaction(draws: Array, mean: Array) -> float:
    """Variance of the interaction of a configuration's seeds with examples, in the mean over its seeds."""
    seeds = draws.shape[1]
    if seeds < 2:
        return 0.0
    return max(0.0, float(draws.var(axis=0, ddof=1).mean() - mean.var(ddof=1)) / int(seeds - 1))


def _deviation(a: Means, i: int, b: Means, j: int) -> tuple[float | None, float]:
    """Pooled standard deviation of one run's score, and its degrees of freedom; None where it is unknown."""
    known = [
        (float(each.degrees[at]), float(each.error[at] ** 2 * each.count[at]))
        for each, at in ((a, i), (b, j))
        if each.degrees[at] > 0
    ]
    degrees = sum(each for each, _ in known)
    return (math.sqrt(sum(n * square for n, square in known) / degrees), degrees) if degrees else (None, 0.0)


def _overall_low(low: float | None, first: Configuration, rate: TrainingRate, floor: float | None) -> float | None:
    """Lower bound of the difference over all runs, from that over the runs that trained.

    A share q of the first's runs fails, and each loses the distance between its mean and what a failed run scores; q is
    at most 1 less the rate's lower bound. Failures of the second only help the first, and are not counted.
    """
    scores = [floor if score is None else score for score in first.failures.values()] or [floor]
    known = [score for score in scores if score is not None]
    if low is None or len(known) < len(scores):
        return None
    failed = min(known)
    return low - (1 - rate.low) * max(0.0, first.mean - failed)


def _fisher(one: TrainingRate, other: TrainingRate) -> float:
    """Two-sided p of Fisher's exact test that both train equally often."""
    if not one.failed + other.failed:
        return 1.0
    from scipy.stats import fisher_exact

    return float(fisher_exact([[one.trained, one.failed], [other.trained, other.failed]])[1])


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
