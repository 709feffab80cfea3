"""What trials say of settings: no more than chance among so many trials allows, and what is plainly there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from manytune.stats import contrasts
from manytune.stats.budget import TrialFacts, share
from manytune.stats.contrasts import chance_of_spread, last_scores, near_best_alike, rate_bins
from trial_factory import failed, make_trial, pruned

Scores = Callable[[float, int, np.random.Generator], float]


def drawn(scores: Scores, draw: np.random.Generator, count: int = 24) -> list[TrialFacts]:
    """Random trials over 6.6 octaves of rates and three ranks, with `scores` of (octave, rank)."""
    octaves, ranks = draw.uniform(0, 6.64, count), draw.choice([2, 8, 64], count)
    return [
        make_trial(at, scores(octave, rank, draw), settings={"learning_rate": 1e-4 * 2**octave, "rank": int(rank)})
        for at, (octave, rank) in enumerate(zip(octaves, ranks, strict=True))
    ]


def noise(octave: float, rank: int, draw: np.random.Generator) -> float:
    return draw.normal(0, 0.1)


def some_learn(octave: float, rank: int, draw: np.random.Generator) -> float:
    return draw.normal(0.3, 0.05) * (draw.random() < 0.5)


def low_rates_learn_nothing(octave: float, rank: int, draw: np.random.Generator) -> float:
    return 0.0 if octave < 2 else draw.normal(0.3, 0.05)


@pytest.mark.parametrize("scores", [noise, some_learn])
def test_of_settings_that_do_nothing_little_is_claimed(scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrasts, "_SHUFFLES", 199)
    draw = np.random.default_rng(1)
    ranks = rates = ease = 0
    for _ in range(200):
        trials, other = drawn(scores, draw), drawn(scores, draw)
        chance = chance_of_spread(trials, "rank")
        ranks += chance is not None and chance <= 0.05
        rates += any(each.below for each in rate_bins(trials, 1e-4, 1e-2))
        if (shares := near_best_alike(trials[:8], other[:10], 0.03)) is not None:
            ease += shares[0].low > shares[1].high or shares[1].low > shares[0].high
    # 5 % of 200 are 10; more than 17 come with a chance of 1 %.
    assert (ranks <= 17, rates <= 17, ease <= 17) == (True, True, True)


def test_rates_at_which_nothing_learns_are_found_and_no_others() -> None:
    draw = np.random.default_rng(2)
    found = [rate_bins(drawn(low_rates_learn_nothing, draw), 1e-4, 1e-2, level=0.05) for _ in range(20)]
    assert sum(any(each.below for each in bins[:2]) for bins in found) >= 15
    assert not any(each.below for bins in found for each in bins[2:])


def test_a_value_that_is_far_better_is_found() -> None:
    alike = [make_trial(at, float(at >= 12), settings={"rank": 2 if at < 12 else 8}) for at in range(24)]
    chance = chance_of_spread(alike, "rank")
    assert chance is not None
    assert chance < 0.01
    assert chance == chance_of_spread(alike, "rank")  # a report's bytes are the same each time


def test_too_few_trials_of_a_value_say_nothing() -> None:
    trials = [make_trial(at, 0.5 + at, settings={"rank": 2 if at < 5 else 8}) for at in range(7)]
    assert chance_of_spread(trials, "rank") is None
    assert chance_of_spread(trials, "alpha") is None
    (only,) = rate_bins([make_trial(at, 0.1 * at) for at in range(4)], 1e-3, 2e-3)
    assert (only.trials, only.below, only.trained) == (4, None, share(4, 4))
    assert rate_bins([], 1e-3, 2e-3) == rate_bins([failed(0)], 1e-3, 2e-3) == ()


def test_trials_count_with_the_score_they_left_with() -> None:
    left = pruned(2)
    trials = [make_trial(0, 0.4), make_trial(1, 0.6), left, failed(3)]
    assert last_scores(trials).tolist() == [0.4, 0.6, 0.4, 0.4]
    at_rungs = make_trial(2, None, rungs=((25, 0.1, True), (50, 0.3, False)))
    assert last_scores([*trials[:2], at_rungs, failed(3)]).tolist() == [0.4, 0.6, 0.3, 0.3]


def test_octaves_hold_every_trial_and_end_with_the_range() -> None:
    rates = [1e-4, 1.9e-4, 2e-4, 7.9e-4, 1e-3]
    bins = rate_bins(
        [make_trial(at, 0.5, settings={"learning_rate": rate}) for at, rate in enumerate(rates)], 1e-4, 1e-3
    )
    assert [each.trials for each in bins] == [2, 1, 1, 1]
    assert [bins[0].low, bins[-1].high] == [1e-4, 1e-3]
    assert bins[2].mean == pytest.approx(0.5)


def test_two_spaces_compare_at_equal_numbers_of_trials() -> None:
    one = [make_trial(at, 0.5) for at in range(8)]
    other = [*(make_trial(at, 0.5) for at in range(4)), *(make_trial(at, 0.9) for at in range(4, 12))]
    assert near_best_alike(one, other[:4], 0.01) == (share(4, 4), share(4, 4))
    assert near_best_alike(one, other, 0.01) == (share(8, 8), share(4, 8))
    assert near_best_alike(one[:3], other, 0.01) is None
