"""Whether a search's trials say more of a setting than chance among so many trials does: by shuffling its values.

Where settings are drawn independently of scores (samplers `random` and, nearly, `sobol` and `grid`), a setting that
does nothing can be shuffled among the trials, and nothing else changes: neither scores nor prunings. So all trials
count, pruned ones at the score with which they left. With `tpe` draws depend on scores, and shuffling says nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manytune.stats.budget import LEVEL, Array, Share, TrialFacts, share, unpruned_trials
from manytune.stats.tuning import RATE, near_best

_SHUFFLES = 1999
FEWEST = 3
"""Trials of a value, or of an octave, below which nothing is claimed of it."""


def last_scores(trials: Sequence[TrialFacts]) -> Array:
    """The score [N] with which each trial left; one without has the worst of the space. Empty where none has one."""
    known = [_last(trial) for trial in trials]
    seen = [score for score in known if score is not None]
    return np.array([min(seen) if score is None else score for score in known]) if seen else np.empty(0)


def _last(trial: TrialFacts) -> float | None:
    if trial.score is not None:
        return trial.score
    return next((score for _, score, _ in reversed(trial.rungs) if score is not None), None)


def near_best_alike(
    one: Sequence[TrialFacts], other: Sequence[TrialFacts], within: float
) -> tuple[Share, Share] | None:
    """The shares near their best of two spaces, over equally many unpruned trials of each: the first of both.

    None where `near_best` is for one of them. That their intervals lie apart by chance alone, where both spaces are
    equally easy, has a chance well below 5 % (docs/statistics.md).
    """
    fewest = min(len(unpruned_trials(one)), len(unpruned_trials(other)))
    shares = [near_best(unpruned_trials(trials)[:fewest], within) for trials in (one, other)]
    return (shares[0], shares[1]) if shares[0] is not None and shares[1] is not None else None


def chance_of_spread(trials: Sequence[TrialFacts], setting: str) -> float | None:
    """How often shuffled values of a setting differ as much in their best scores as the values did (a p-value).

    The best score of a value is that of its best trial, so each value stands at the best of the other settings that it
    was tried with; values with more trials have more chances, in the shuffles as well. None where fewer than two
    values have three trials.
    """
    trials = [trial for trial in trials if setting in trial.settings]
    names = [json.dumps(trial.settings[setting], sort_keys=True) for trial in trials]
    enough = [name for name in dict.fromkeys(names) if names.count(name) >= FEWEST]
    kept = [at for at, name in enumerate(names) if name in enough]
    scores = last_scores(trials)
    if len(enough) < 2 or not len(scores):
        return None
    codes = np.array([enough.index(names[at]) for at in kept])
    shuffled = _shuffles(scores[kept])
    bests = np.stack([shuffled[:, codes == code].max(axis=1) for code in range(len(enough))], axis=1)
    return _chance(np.ptp(bests, axis=1))


@dataclass(frozen=True)
class RateBin:
    """Trials whose learning rates lie in one octave of the searched range."""

    low: float
    high: float
    trials: int
    mean: float | None
    """Of the scores with which they left; None without a trial."""
    trained: Share | None
    """Those that learned anything, of those of which it is known."""
    below: bool | None
    """Whether the mean is below that of the best octave by more than chance gives; None of an octave, the best one
    among them, of which nothing is claimed."""


def rate_bins(trials: Sequence[TrialFacts], low: float, high: float, level: float = LEVEL) -> tuple[RateBin, ...]:
    """What became of trials in each octave of the learning rate from `low` to `high`, the last one cut at `high`.

    The best octave is that with the highest mean of those with at least three trials. Another is below it if their
    difference, over its standard error for equal variances, exceeds the largest one between any two octaves in all but
    `level` of the shuffles: so all that is said of a space is wrong with at most that chance, if the rate does nothing.
    """
    rated = [trial for trial in trials if RATE in trial.settings]
    scores = last_scores(rated)
    if not high > low > 0 or not len(scores):
        return ()
    count = max(1, math.ceil(math.log2(high / low) - 1e-9))
    rates = np.array([float(trial.settings[RATE]) for trial in rated])
    places = np.clip(np.floor(np.log2(rates / low)).astype(int), 0, count - 1)
    sizes = np.bincount(places, minlength=count)
    told = [at for at in range(count) if sizes[at] >= FEWEST]
    means = {at: float(scores[places == at].mean()) for at in range(count) if sizes[at]}
    below = _below(scores, places, told, level)
    found = []
    for at in range(count):
        known = [trial.trained for trial, place in zip(rated, places, strict=True) if place == at]
        learned = [trained for trained in known if trained is not None]
        part = share(sum(learned), len(learned)) if learned else None
        end = min(low * 2 ** (at + 1), high)
        found.append(RateBin(low * 2**at, end, int(sizes[at]), means.get(at), part, below.get(at)))
    return tuple(found)


def _below(scores: Array, places: np.ndarray, told: Sequence[int], level: float) -> dict[int, bool]:
    """Which of the octaves `told`, the best one aside, lie below it."""
    if len(told) < 2:
        return {}
    member = np.stack([places == at for at in told], axis=1).astype(float)  # [N, octaves]
    sizes = member.sum(axis=0)
    error = np.sqrt(1 / sizes[:, None] + 1 / sizes[None, :])

    def differences(of: Array) -> Array:  # [shuffles, N] → [shuffles, octaves, octaves]
        means: Array = of @ member / sizes
        found: Array = (means[:, :, None] - means[:, None, :]) / error
        return found

    all_differences = differences(_shuffles(scores))
    seen, largest = all_differences[0], all_differences.max(axis=(1, 2))
    limit = float(np.quantile(largest, 1 - level, method="higher"))
    best = int((scores @ member / sizes).argmax())
    return {at: bool(seen[best, index] > limit + 1e-12) for index, at in enumerate(told) if index != best}


def _shuffles(scores: Array) -> Array:
    """The scores as they are, and then shuffled [1 + shuffles, N]; the same for the same scores."""
    draw = np.random.default_rng(0)
    shuffled: Array = np.concatenate([scores[None], draw.permuted(np.tile(scores, (_SHUFFLES, 1)), axis=1)])
    return shuffled


def _chance(values: Array) -> float:
    """How many of the values are as large as the first, as a share of all."""
    return float((values >= values[0] - 1e-12).mean())
