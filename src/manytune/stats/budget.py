"""What a search finds for what it takes: the best of n trials, and the seconds until a score is reached.

Only trials that chance alone let train to their end say how scores are distributed: those that survived a rung were
chosen by their scores, and how the others would have ended is not known. So scores come from `unpruned_trials`, costs
from all. Settings must be drawn independently of scores and of one another (samplers `random` and, nearly, `sobol`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manytune.storage.record import RunState

Array = NDArray[np.float64]

LEVEL = 0.05
"""All intervals are of 95 %."""

_NORMAL = 1.959963984540054  # the normal quantile at 97.5 %


@dataclass(frozen=True)
class TrialFacts:
    """What the statistics of a search ask of one trial; `search.trials.trials_of` makes them of records."""

    number: int
    """From 0, in the order in which the trials of the space began."""
    state: RunState
    score: float | None
    """By the primary metric on the rows that select, negated where lower is better: whatever is made of it, higher is
    better. None where it did not train to its end: pruned or failed."""
    seconds: float
    """Of training and evaluation, its share of its packs' time."""
    steps: int
    """Optimizer steps that it took."""
    total_steps: int
    """Those that it takes if it is not pruned."""
    unpruned: bool
    """Whether it was chosen beforehand to train to its end."""
    trained: bool | None
    """Whether it learned anything: False where it collapsed, or its loss or scores were no numbers; None where that is
    not known, because it was pruned, or failed for a reason that says nothing of its settings."""
    settings: Mapping[str, Any]
    """The searched settings with their values: `learning_rate`, `rank`, `training.epochs`, …"""
    rungs: tuple[tuple[int, float | None, bool], ...] = ()
    """(step, score there, whether it went on); scores as `score`."""
    ended: float = 0.0
    """Seconds of the search's work when it left."""


def unpruned_trials(trials: Sequence[TrialFacts]) -> tuple[TrialFacts, ...]:
    """The trials of a space whose scores stand for all: those chosen beforehand, or all where none was pruned."""
    pruned = any(trial.state is RunState.PRUNED for trial in trials)
    return tuple(trial for trial in trials if trial.unpruned or not pruned)


def unpruned_scores(trials: Sequence[TrialFacts]) -> Array:
    """Scores [N] of the unpruned trials; a failed one has the worst score of the space's trials.

    Empty where no trial of the space has a score.
    """
    known = [trial.score for trial in trials if trial.score is not None]
    if not known:
        return np.empty(0)
    return np.array([min(known) if trial.score is None else trial.score for trial in unpruned_trials(trials)])


@dataclass(frozen=True)
class BestOfN:
    """The best score of n trials, for several n; all arrays are [N], higher scores are better."""

    trials: Array
    """n: 1, 2, … up to the number N of trials that it is estimated from."""
    expected: Array
    """Unbiased estimate of the mean best score."""
    median: Array
    """The score that the best of n trials reaches in half of all searches."""
    low: Array
    """Lower end of the 95 % interval of `median`; -inf where the trials cannot bound it."""
    high: Array
    """Its upper end; +inf where they cannot bound it: from n of about N / 5 on."""


def best_of_n(scores: ArrayLike) -> BestOfN:
    """The best score of n trials, from the `scores` [N] of independent ones, N at least 1.

    The mean best of n trials drawn without replacement is the mean over all subsets of n, which is unbiased for that of
    n new trials (Tang et al. 2020, https://doi.org/10.18653/v1/2020.acl-main.246):

        E = Σ_i C(i - 1, n - 1) / C(N, n) · x_(i), x_(i) the i-th smallest score.

    The median best of n is the quantile of one trial's score at q = 0.5^(1/n). Its interval is between two order
    statistics, whose ranks are quantiles of Binomial(N, q); it assumes nothing of the distribution, and holds for each
    n by itself (Lourie et al. 2024, https://doi.org/10.18653/v1/2024.naacl-long.321, show that bootstrap intervals
    are too narrow).

    >>> found = best_of_n([0.1, 0.2, 0.3, 0.4])
    >>> found.expected.round(3).tolist(), found.median.tolist()
    ([0.25, 0.333, 0.375, 0.4], [0.2, 0.3, 0.4, 0.4])
    """
    ordered = np.sort(np.asarray(scores, dtype=float))
    count = len(ordered)
    if not count:
        raise ValueError("the best of n trials needs the score of at least 1")
    trials = np.arange(1, count + 1)
    logs = np.concatenate(([0.0], np.log(trials).cumsum()))  # of factorials
    n, rank = trials[:, None], trials[None, :]
    # [n, i] the share of subsets of n whose largest score is the i-th smallest; C(i - 1, n - 1) is 0 where i < n
    ways = logs[rank - 1] - logs[n - 1] - logs[np.maximum(rank - n, 0)]
    shares = np.exp(ways - (logs[count] - logs[n] - logs[count - n])) * (rank >= n)
    median, low, high = np.array([_quantile(ordered, 0.5 ** (1 / each)) for each in trials]).T
    return BestOfN(trials.astype(float), shares @ ordered, median, low, high)


def _quantile(ordered: Array, q: float) -> tuple[float, float, float]:
    """A quantile of the distribution that the sorted scores [N] are of, and its 95 % interval."""
    from scipy.special import bdtr

    count = len(ordered)
    # P(the quantile is below x_(rank)) = P(fewer than `rank` scores are below it)
    below = bdtr(np.arange(count, dtype=float), count, q)
    lower, upper = np.flatnonzero(below <= LEVEL / 2), np.flatnonzero(below >= 1 - LEVEL / 2)
    low = float(ordered[lower[-1]]) if len(lower) else -math.inf
    high = float(ordered[upper[0]]) if len(upper) else math.inf
    return float(ordered[math.ceil(q * count - 1e-9) - 1]), low, high


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """The best of n trials of a space, and what n trials take."""

    best: BestOfN
    seconds: Array
    """[N] mean seconds of n trials as the search ran them, pruned ones included. A search that takes so long finds
    `best` if pruning loses nothing; where it prunes the best trial now and then, somewhat less."""
    unpruned_seconds: Array
    """[N] mean seconds of n trials that all train to their end: without pruning, `best` takes so long."""


def budget_curve(trials: Sequence[TrialFacts]) -> BudgetCurve | None:
    """The curve of a space from all of its trials, pruned ones included; None where none has a score.

    n trials drawn anew take n times the mean of one trial's seconds, whatever depends on its settings.
    """
    scores = unpruned_scores(trials)
    if not len(scores):
        return None
    best = best_of_n(scores)
    every, whole = (float(np.mean([trial.seconds for trial in group])) for group in (trials, unpruned_trials(trials)))
    return BudgetCurve(best, best.trials * every, best.trials * whole)


@dataclass(frozen=True)
class Share:
    """Which part of something holds, with its 95 % interval (0 to 1)."""

    count: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.count / self.of


def share(count: int, of: int) -> Share:
    """Wilson's interval of a share (1927, https://doi.org/10.1080/01621459.1927.10502953); `of` is at least 1.

    >>> found = share(3, 24)
    >>> round(found.low, 3), round(found.high, 3)
    (0.043, 0.31)
    """
    centre, spread = count + _NORMAL**2 / 2, _NORMAL * math.sqrt(count * (of - count) / of + _NORMAL**2 / 4)
    low, high = (centre - spread) / (of + _NORMAL**2), (centre + spread) / (of + _NORMAL**2)
    return Share(count, of, max(0.0, low) if count else 0.0, min(1.0, high) if count < of else 1.0)


@dataclass(frozen=True)
class CostToReach:
    """What a search of a space took until a trial reached a score."""

    target: float
    trials: int | None
    """Trials that had begun by then, that one included; None where none reached it."""
    seconds: float | None
    """Of these trials, pruned ones included; None where none reached it."""
    expected_seconds: float | None
    """Mean of `seconds` over all orders in which the same trials could have begun."""
    spent: float
    """Seconds of all trials of the space: where none reached the score, more than these."""
    most_likely: float | None
    """Where none reached it: the 95 % upper bound of the chance that one trial does, from the unpruned ones alone;
    None where one reached it, or none is unpruned."""


def cost_to_reach(trials: Sequence[TrialFacts], target: float) -> CostToReach:
    """What it took to reach a score (higher is better), over all trials of a space in the order in which they began.

    Over all orders, a trial that falls short comes before the first of k that reach the score in one of k + 1 orders:

        expected = mean seconds of those that reach it + Σ seconds of the others / (k + 1).

    The upper bound is that of 0 successes in N independent trials, 1 - 0.05^(1 / N).
    """
    ordered = sorted(trials, key=lambda trial: trial.number)
    spent = math.fsum(trial.seconds for trial in ordered)
    reached = [trial.score is not None and trial.score >= target for trial in ordered]
    if any(reached):
        first = reached.index(True) + 1
        good = [trial.seconds for trial, there in zip(ordered, reached, strict=True) if there]
        expected = math.fsum(good) / len(good) + (spent - math.fsum(good)) / (len(good) + 1)
        seconds = math.fsum(trial.seconds for trial in ordered[:first])
        return CostToReach(target, first, seconds, expected, spent, None)
    count = len(unpruned_trials(trials))
    return CostToReach(target, None, None, None, spent, 1 - LEVEL ** (1 / count) if count else None)


@dataclass(frozen=True)
class Spent:
    """What the trials of a space took, and what pruning spared."""

    trials: int
    pruned: int
    steps: int
    """Optimizer steps of all trials."""
    seconds: float
    steps_saved: int
    """Steps that pruned trials did not take."""
    seconds_saved: float
    """Seconds that these would have taken, at each trial's own seconds a step."""


def spent(trials: Sequence[TrialFacts]) -> Spent:
    """What the trials of a space took."""
    pruned = [trial for trial in trials if trial.state is RunState.PRUNED]
    left = [trial.total_steps - trial.steps for trial in pruned]
    saved = (trial.seconds * rest / trial.steps for trial, rest in zip(pruned, left, strict=True) if trial.steps)
    steps, seconds = sum(trial.steps for trial in trials), math.fsum(trial.seconds for trial in trials)
    return Spent(len(trials), len(pruned), steps, seconds, sum(left), math.fsum(saved))
