from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from manytune.stats.differences import Differences, differences, means

scores = st.floats(min_value=-1, max_value=1)


def alone(*groups: list[float]) -> list[Differences]:
    """Each configuration by itself, as a method of one configuration."""
    return [means([each]) for each in groups]


def test_two_configurations_alone_are_scipys_welch_test() -> None:
    draw = np.random.default_rng(0)
    for seeds in (2, 3, 7):
        a, b = draw.normal(0.5, 0.02, seeds), draw.normal(0.48, 0.05, seeds + 2)
        found = differences(*alone(a, b))
        test = scipy_stats.ttest_ind(a, b, equal_var=False, alternative="greater")
        assert found.degrees.item() == pytest.approx(test.df, rel=1e-9)
        assert found.greater_p().item() == pytest.approx(test.pvalue, rel=1e-9)
        assert found.less_p().item() == pytest.approx(1 - test.pvalue, rel=1e-9)
        interval = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
        assert found.lower(0.05).item() == pytest.approx(interval.low, rel=1e-9)
        assert found.upper(0.05).item() == pytest.approx(interval.high, rel=1e-9)


def test_variances_are_pooled_within_a_method() -> None:
    draw = np.random.default_rng(1)
    group = draw.normal(0, 1, (3, 6))
    found = means(group)
    pooled = group.var(axis=1, ddof=1).mean()
    assert found.error == pytest.approx(np.full(3, math.sqrt(pooled / 6)))
    assert found.degrees.tolist() == [15, 15, 15]


def test_a_configuration_that_scatters_far_more_keeps_its_own_variance() -> None:
    draw = np.random.default_rng(1)
    group = draw.normal(0, 1, (3, 6))
    group[1] *= 10
    found = means(group)
    assert found.error[1] == pytest.approx(group[1].std(ddof=1) / math.sqrt(6))
    assert found.degrees.tolist() == [15, 5, 15]


def test_unequal_and_missing_seeds() -> None:
    found = means([[0.1, 0.2, 0.3, math.nan], [0.4, 0.6, math.nan, math.nan], [0.9, math.nan, math.nan, math.nan]])
    assert found.count.tolist() == [3, 2, 1]
    assert found.degrees.tolist() == [3, 3, 3]  # the one with a single run borrows the others' spread
    assert found.error[2] == pytest.approx(math.sqrt((0.02 + 0.02) / 3))
    one = means([[0.5]])
    assert math.isnan(one.error[0])
    unknown = differences(one, means([[0.1, 0.2, 0.3]]))
    assert unknown.greater_p().item() == 1.0
    assert (unknown.lower(0.05).item(), unknown.upper(0.05).item()) == (-math.inf, math.inf)


def test_equal_scores_have_the_p_of_the_permutation_test() -> None:
    found = differences(*alone([0.7] * 5, [0.6] * 5))
    assert found.greater_p().item() == pytest.approx(1 / math.comb(10, 5))
    assert found.less_p().item() == 1.0
    assert found.lower(0.05).item() == pytest.approx(0.1)
    same = differences(*alone([0.7] * 5, [0.7] * 5))
    assert (same.greater_p().item(), same.less_p().item()) == (1.0, 1.0)


@given(st.lists(scores, min_size=2, max_size=8), st.lists(scores, min_size=2, max_size=8), st.floats(0.001, 0.4))
def test_bounds_and_p_say_the_same(a: list[float], b: list[float], alpha: float) -> None:
    for anytime in (False, True):
        found = differences(*alone(a, b), anytime=anytime)
        p, bound = found.greater_p().item(), found.lower(alpha).item()
        if found.error.item() > 1e-9 and abs(p - alpha) > 1e-6:
            assert (bound > 0) == (p < alpha)
        assert found.lower(alpha).item() <= found.mean.item() <= found.upper(alpha).item()
        turned = differences(*alone(b, a), anytime=anytime)
        assert turned.less_p().item() == pytest.approx(p)


def test_the_error_over_examples_is_at_least_each_part() -> None:
    a, b = alone([0.5, 0.6, 0.7], [0.4, 0.5, 0.7])
    seeds = differences(a, b).error.item() ** 2
    for examples, interaction in ((0.0, 1.0), (0.5, 1.0), (0.5, 0.01)):
        found = differences(a, b, np.array([[examples]]), np.array([[interaction]]))
        assert found.error.item() ** 2 == pytest.approx(max(seeds, examples, seeds + examples - interaction))
        assert found.degrees.item() >= differences(a, b).degrees.item()


def test_an_anytime_test_claims_less_at_one_look() -> None:
    a, b = alone([0.7, 0.72, 0.71, 0.74, 0.7, 0.73], [0.66, 0.6, 0.62, 0.64, 0.65, 0.6])
    assert differences(a, b).greater_p() < differences(a, b, anytime=True).greater_p() < 0.025
