from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from manytune.stats.budget import TrialFacts, share
from manytune.stats.tuning import effect_of, near_best, octaves, take_off
from manytune.storage.record import RunState
from trial_factory import failed, make_trial, pruned


def rated(number: int, rate: float, score: float | None = 0.5, **changes: Any) -> TrialFacts:
    return make_trial(number, score, settings={"learning_rate": rate}, **changes)


def test_trials_are_near_the_best_of_the_other_half() -> None:
    scores = [0.5, 0.51, 0.1, 0.49, 0.2, 0.48]
    trials = [make_trial(number, score) for number, score in enumerate(scores)]
    # Best of the odd ones 0.51, of the even ones 0.5: within 0.015, only 0.5, 0.51 and 0.49 are near.
    assert near_best(trials, within=0.015) == share(3, 6)
    assert near_best(trials, within=1.0) == share(6, 6)
    # One outstanding trial is not near itself: the best that half of the trials find is lower.
    assert near_best([make_trial(number, 0.9 if number == 0 else 0.1) for number in range(4)], 0.05) == share(2, 4)


def test_what_was_pruned_says_nothing_of_how_much_is_good() -> None:
    trials = [*(make_trial(number, 0.5) for number in range(4)), *(pruned(number) for number in range(4, 9))]
    trials.append(make_trial(9, 0.5, unpruned=False))
    assert near_best(trials, 0.01) == share(4, 4)
    assert near_best(trials[1:], 0.01) is None


def test_failed_trials_are_far_from_the_best() -> None:
    trials = [make_trial(0, 0.5), make_trial(1, 0.5), make_trial(2, 0.1), failed(3), failed(4)]
    assert near_best(trials, 0.1) == share(2, 5)


def test_octaves_are_the_share_of_the_range() -> None:
    rates = 1e-4 * 2.0 ** np.arange(8)
    trials = [rated(number, rate, 0.5 if 2 <= number < 6 else 0.1) for number, rate in enumerate(rates)]
    found = octaves(trials, 0.05, low=1e-4, high=1e-4 * 2**8)
    part = share(4, 8)
    assert found is not None
    assert (found.value, found.low, found.high, found.of) == pytest.approx((4.0, 8 * part.low, 8 * part.high, 8.0))
    assert (found.open_below, found.open_above) == (False, False)
    rising = [rated(number, rate, 0.5 if number >= 4 else 0.1) for number, rate in enumerate(rates)]
    open_above = octaves(rising, 0.05, low=1e-4, high=1e-4 * 2**8)
    assert open_above is not None
    assert (open_above.open_below, open_above.open_above) == (False, True)


def test_octaves_of_a_known_curve_are_found() -> None:
    draw = np.random.default_rng(0)
    rates = 10 ** draw.uniform(-5, -2, 4000)
    quality = 0.6 - 0.2 * np.log10(rates / 3e-4) ** 2
    trials = [rated(number, *each) for number, each in enumerate(zip(rates, quality, strict=True))]
    found = octaves(trials, 0.02, low=1e-5, high=1e-2)
    true = 2 * math.sqrt(0.02 / 0.2) * math.log2(10)
    assert found is not None
    assert found.low < true < found.high
    assert found.value == pytest.approx(true, rel=0.1)


def test_there_are_no_octaves_where_rates_were_not_searched() -> None:
    fixed = [make_trial(number, settings={"rank": 8}) for number in range(8)]
    assert octaves(fixed, 0.05, 1e-4, 1e-2) is None
    assert octaves([rated(number, 1e-3) for number in range(8)], 0.05, 1e-3, 1e-3) is None
    assert octaves([rated(number, 1e-3) for number in range(3)], 0.05, 1e-4, 1e-2) is None
    assert take_off(fixed) == ()


def test_how_many_trials_take_off_by_rate() -> None:
    rates = np.geomspace(1e-4, 1e-2, 8)
    collapse: dict[str, Any] = {"state": RunState.COLLAPSED, "trained": False}
    trials = [rated(number, rate, **({} if number < 5 else collapse)) for number, rate in enumerate(rates)]
    trials += [
        rated(8, 2e-3, None, state=RunState.FAILED, trained=None),  # memory ran out
        rated(9, 5e-3, None, state=RunState.PRUNED, unpruned=False, trained=None),
    ]
    low, high = take_off(trials)
    assert (low.low, low.high, high.low, high.high) == pytest.approx((1e-4, 1e-3, 1e-3, 1e-2))
    assert (low.trained, high.trained) == (share(4, 4), share(1, 4))
    assert take_off([rated(0, 1e-3), rated(1, 1e-3)])[0].trained == share(2, 2)
    assert take_off([rated(0, 1e-3, None, state=RunState.FAILED, trained=None)]) == ()


def test_a_bin_without_trials_says_nothing() -> None:
    rates = [1e-4] * 6 + [1e-1] * 6
    bins = take_off([rated(number, rate) for number, rate in enumerate(rates)])
    assert [each.trained for each in bins] == [share(6, 6), None, share(6, 6)]


def test_each_value_is_shown_at_its_own_best_rate() -> None:
    def ranked(number: int, rank: int, rate: float, score: float | None, **changes: Any) -> TrialFacts:
        return make_trial(number, score, settings={"rank": rank, "learning_rate": rate}, **changes)

    trials = [
        ranked(5, 8, 2e-3, 0.9, unpruned=False),
        ranked(1, 2, 1e-3, 0.5),
        ranked(0, 8, 1e-3, 0.6),
        ranked(2, 8, 1e-2, 0.2),
        ranked(3, 8, 1e-4, 0.4),
        ranked(4, 2, 1e-1, None, state=RunState.FAILED, trained=False),
        ranked(6, 64, 1e-3, None, state=RunState.PRUNED, unpruned=False, trained=None),
        ranked(7, 64, 1e-3, 0.7),
        ranked(8, 64, 4e-3, 0.1),
    ]
    eight, two, large = effect_of(trials, "rank")
    assert (eight.value, eight.trials, eight.best, eight.rate, eight.fewest) == (8, 4, 0.9, 2e-3, 2)
    # The mean best of two of 0.6, 0.2 and 0.4; the trial that scores kept alive does not count.
    assert eight.expected == pytest.approx((0.6 + 0.6 + 0.4) / 3)
    assert (two.value, two.best, two.expected) == (2, 0.5, 0.5)
    assert (large.value, large.trials, large.best, large.expected) == (64, 3, 0.7, 0.7)
    assert effect_of(trials, "alpha") == ()


def test_a_value_without_an_unpruned_trial_leaves_nothing_to_compare() -> None:
    trials = [
        make_trial(0, 0.5, settings={"alpha": {"of_rank": 1}}),
        make_trial(1, None, state=RunState.PRUNED, unpruned=False, trained=None, settings={"alpha": 16}),
    ]
    first, second = effect_of(trials, "alpha")
    assert (first.value, first.best, first.rate, first.expected) == ({"of_rank": 1}, 0.5, None, None)
    assert (second.value, second.best, second.expected, second.fewest) == (16, None, None, 0)
