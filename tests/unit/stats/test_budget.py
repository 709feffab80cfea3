from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from manytune.stats.budget import (
    TrialFacts,
    best_of_n,
    budget_curve,
    cost_to_reach,
    share,
    spent,
    unpruned_scores,
    unpruned_trials,
)
from trial_factory import failed, make_trial, pruned

SCORES = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=8)


@given(SCORES)
def test_the_expected_best_is_the_mean_over_all_subsets(scores: list[float]) -> None:
    found = best_of_n(scores)
    assert found.trials.tolist() == list(range(1, len(scores) + 1))
    means = [np.mean([max(some) for some in combinations(scores, n)]) for n in range(1, len(scores) + 1)]
    assert found.expected == pytest.approx(means)


@pytest.mark.parametrize("count", [1, 8, 24, 60])
def test_the_median_best_lies_between_the_order_statistics_of_scipy(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    found = best_of_n(scores)
    for n in range(1, count + 1):
        q = 0.5 ** (1 / n)
        interval = scipy.stats.quantile_test(scores, p=q).confidence_interval(0.95)
        low, high = np.nan_to_num(interval, nan=np.inf)
        assert (found.low[n - 1], found.high[n - 1]) == (-math.inf if low == math.inf else low, high)
        assert found.median[n - 1] == np.quantile(scores, q, method="inverted_cdf")


def test_a_thousand_trials_neither_overflow_nor_lose_the_best() -> None:
    scores = np.random.default_rng(0).permutation(1000) / 1000
    found = best_of_n(scores)
    # Of the numbers 0 to N - 1, the mean largest of n is n (N + 1) / (n + 1) - 1.
    n = found.trials
    assert found.expected == pytest.approx((n * 1001 / (n + 1) - 1) / 1000)
    assert found.expected[-1] == pytest.approx(0.999)


def test_the_best_of_no_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n([])


def test_scores_are_those_of_trials_that_chance_left_unpruned() -> None:
    trials = [make_trial(0, 0.3), make_trial(1, 0.9, unpruned=False), pruned(2), failed(3)]
    assert [trial.number for trial in unpruned_trials(trials)] == [0, 3]
    assert unpruned_scores(trials).tolist() == [0.3, 0.3]  # the failed one is as bad as the worst
    # Where none was pruned, nothing was chosen by scores.
    assert unpruned_scores([make_trial(0, 0.3), make_trial(1, 0.9, unpruned=False)]).tolist() == [0.3, 0.9]
    assert unpruned_scores([failed(0)]).tolist() == []
    assert unpruned_scores([]).tolist() == []


def test_what_n_trials_take_includes_those_that_were_pruned() -> None:
    curve = budget_curve([make_trial(0, 0.3), make_trial(3, 0.5), pruned(1), pruned(2)])
    assert curve is not None
    assert curve.best.expected.tolist() == pytest.approx([0.4, 0.5])
    assert curve.seconds.tolist() == [6.0, 12.0]
    assert curve.unpruned_seconds.tolist() == [10.0, 20.0]
    assert budget_curve([pruned(0), failed(1)]) is None


@given(st.integers(1, 60), st.data())
def test_a_share_has_wilsons_interval(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    found = share(count, of)
    interval = scipy.stats.binomtest(count, of).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.value == count / of


def search_of(kinds: Sequence[tuple[float | None, float]]) -> list[TrialFacts]:
    made = []
    for number, (score, seconds) in enumerate(kinds):
        made.append(pruned(number, seconds) if score is None else make_trial(number, score, seconds=seconds))
    return made


@given(st.lists(st.tuples(st.none() | st.sampled_from([0.4, 0.6]), st.integers(1, 9).map(float)), max_size=6))
def test_the_expected_cost_is_the_mean_over_all_orders(kinds: list[tuple[float | None, float]]) -> None:
    kinds = [*kinds, (0.7, 4.0)]
    costs = []
    for order in permutations(kinds):
        reached = next(at for at, (score, _) in enumerate(order) if score is not None and score >= 0.6)
        costs.append(sum(seconds for _, seconds in order[: reached + 1]))
    found = cost_to_reach(search_of(kinds), 0.6)
    assert found.expected_seconds == pytest.approx(np.mean(costs))
    assert found.seconds == costs[0]  # the order in which they began
    assert found.spent == sum(seconds for _, seconds in kinds)
    assert found.most_likely is None


def test_the_order_is_that_in_which_trials_began() -> None:
    trials = search_of([(0.4, 1.0), (None, 2.0), (0.6, 4.0), (0.7, 8.0)])
    found = cost_to_reach(trials[::-1], 0.6)
    assert (found.trials, found.seconds) == (3, 7.0)


def test_where_no_trial_reaches_a_score_the_chance_is_bounded() -> None:
    trials = search_of([(0.4, 1.0), (None, 2.0), (0.5, 4.0)])
    found = cost_to_reach(trials, 0.6)
    assert (found.trials, found.seconds, found.expected_seconds, found.spent) == (None, None, None, 7.0)
    exact = scipy.stats.binomtest(0, 2, alternative="less").proportion_ci(0.95).high
    assert found.most_likely == pytest.approx(exact)
    assert cost_to_reach([pruned(0)], 0.6).most_likely is None


def test_what_pruning_spared_is_counted_at_each_trials_own_speed() -> None:
    found = spent([make_trial(0), pruned(1), pruned(2, seconds=12.0, steps=50), pruned(3, seconds=0.0, steps=0)])
    assert (found.trials, found.pruned, found.steps, found.seconds) == (4, 3, 175, 24.0)
    assert (found.steps_saved, found.seconds_saved) == (75 + 50 + 100, 6.0 + 12.0)
