"""How easily a method is tuned: how much of a search space is good, and what single settings matter."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manytune.stats.budget import Array, Share, TrialFacts, best_of_n, share, unpruned_scores, unpruned_trials

RATE = "learning_rate"

_FEWEST, _FEWEST_FOR_OCTAVES = 4, 8
"""Unpruned trials below which nothing is said."""

_MOST_BINS, _TRIALS_A_BIN = 6, 4


def near_best(trials: Sequence[TrialFacts], within: float) -> Share | None:
    """How many of a space's unpruned trials come within `within` of its best score; None below 4 of them.

    The best score is that of the other half of the trials (every second one), so no trial is near a best that it is
    itself. It is thus the best that half as many trials find, and rises with their number: compare spaces of equally
    many trials.
    """
    scores = unpruned_scores(trials)
    if len(scores) < _FEWEST:
        return None
    halves = scores[::2], scores[1::2]
    count = sum(int((mine >= other.max() - within).sum()) for mine, other in (halves, halves[::-1]))
    return share(count, len(scores))


@dataclass(frozen=True)
class Octaves:
    """How wide the range of good learning rates is, in octaves (doublings); with its 95 % interval."""

    value: float
    low: float
    high: float
    of: float
    """Octaves of the whole range that was searched."""
    open_below: bool
    """Whether the lowest rate that was tried is good too: the good range may go on below what was searched."""
    open_above: bool
    """The same of the highest rate."""


def octaves(trials: Sequence[TrialFacts], within: float, low: float, high: float) -> Octaves | None:
    """Octaves of the learning rate `within` the peak, where rates are drawn evenly in log(rate) from `low` to `high`.

    The peak is the highest running median of scores along the rates, over about √N of N trials: the best score alone
    rises with their number, by the luck of a seed. The share s of the unpruned trials that come within so much of the
    peak is taken for that of the range, s · log2(high / low), and has Wilson's interval. Where other settings are
    searched too, the peak is that of their median, and the share is over them as they were drawn.

    None of fewer than 8 unpruned trials, and where rates were not searched. Of 8 trials it is a quarter too wide or
    more, because a median of three lies below the peak (docs/statistics.md).
    """
    rated = unpruned_trials(trials)
    scores = unpruned_scores(trials)
    if len(scores) < _FEWEST_FOR_OCTAVES or not high > low > 0 or any(RATE not in trial.settings for trial in rated):
        return None
    scores = scores[np.argsort([trial.settings[RATE] for trial in rated])]
    near = scores >= _peak(scores) - within
    width, part = math.log2(high / low), share(int(near.sum()), len(near))
    return Octaves(part.value * width, part.low * width, part.high * width, width, bool(near[0]), bool(near[-1]))


def _peak(scores: Array) -> float:
    """The highest running median of scores [N], by rising learning rate."""
    aside = round(math.sqrt(len(scores)) / 2)
    return max(float(np.median(scores[max(0, at - aside) : at + aside + 1])) for at in range(len(scores)))


@dataclass(frozen=True)
class TakeOff:
    """How many trials learn anything, of those whose learning rates lie in one bin."""

    low: float
    high: float
    """The rates of the bin: low ≤ rate < high, the last bin up to its end."""
    trained: Share | None
    """Of the unpruned trials with such a rate: those that neither collapsed nor lost their numbers; None of none."""


def take_off(trials: Sequence[TrialFacts]) -> tuple[TakeOff, ...]:
    """By learning rate, how many unpruned trials learn; bins are equally wide in log(rate), one for each 4 trials.

    There are 1 to 6 bins, over the range of all rates that were tried; none where rates were not searched. Trials that
    failed for a reason that says nothing of their settings, such as memory that ran out, are left out.
    """
    rates = [float(trial.settings[RATE]) for trial in trials if RATE in trial.settings]
    told = [(trial.settings[RATE], trial.trained) for trial in unpruned_trials(trials) if RATE in trial.settings]
    known = [(rate, trained) for rate, trained in told if trained is not None]
    if not known or min(rates) <= 0:
        return ()
    count = min(_MOST_BINS, max(1, len(known) // _TRIALS_A_BIN)) if max(rates) > min(rates) else 1
    edges = np.geomspace(min(rates), max(rates), count + 1)
    places = np.clip(np.searchsorted(edges, [rate for rate, _ in known], side="right") - 1, 0, count - 1)
    found = []
    for at in range(count):
        inside = [trained for (_, trained), place in zip(known, places, strict=True) if place == at]
        part = share(sum(inside), len(inside)) if inside else None
        found.append(TakeOff(float(edges[at]), float(edges[at + 1]), part))
    return tuple(found)


@dataclass(frozen=True)
class ValueEffect:
    """One value of a setting, at the best of the rates that were tried with it."""

    value: Any
    trials: int
    """Trials that had it, pruned ones included."""
    best: float | None
    """The best score among those that trained to their end."""
    rate: float | None
    """The learning rate of that trial; None where rates were not searched."""
    expected: float | None
    """Mean best of `fewest` unpruned trials with this value: unlike `best`, no value gains by having more trials."""
    fewest: int
    """The smallest number of unpruned trials that a value had; where it is 0, there is no `expected`."""


def effect_of(trials: Sequence[TrialFacts], setting: str) -> tuple[ValueEffect, ...]:
    """What the values of a setting reach, each at its own best rate; in the order in which they were first tried.

    It describes the trials. Whether one value is better than another is for a study with seeds of each.
    """
    groups: dict[str, list[TrialFacts]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if setting in trial.settings:
            groups.setdefault(json.dumps(trial.settings[setting], sort_keys=True), []).append(trial)
    # The worst score is that of the space, so failed trials count alike for all values.
    whole = dict(zip((trial.number for trial in unpruned_trials(trials)), unpruned_scores(trials), strict=False))
    scores = [[whole[trial.number] for trial in group if trial.number in whole] for group in groups.values()]
    fewest = min(map(len, scores), default=0)
    found = []
    for group, own in zip(groups.values(), scores, strict=True):
        done = [(trial.score, trial) for trial in group if trial.score is not None]
        score, top = max(done, key=lambda each: each[0], default=(None, None))
        expected = float(best_of_n(own).expected[fewest - 1]) if fewest else None
        rate = None if top is None else top.settings.get(RATE)
        found.append(ValueEffect(group[0].settings[setting], len(group), score, rate, expected, fewest))
    return tuple(found)
