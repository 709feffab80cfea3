from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from manytune.stats.paired import detectable, differences, effect_size, power, seeds_needed, sign_flip

scores = st.floats(min_value=-1, max_value=1)


def two(seeds: int = 6) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(0.5, 0.02, (2, seeds)), draw.normal(0.48, 0.03, (3, seeds))


def test_every_pair_is_scipys_paired_t_test() -> None:
    a, b = two()
    found = differences(a, b)
    assert found.mean.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            test = scipy_stats.ttest_rel(a[i], b[j], alternative="greater")
            assert found.greater_p()[i, j] == pytest.approx(test.pvalue, rel=1e-9)
            assert found.less_p()[i, j] == pytest.approx(1 - test.pvalue, rel=1e-9)
            interval = scipy_stats.ttest_rel(a[i], b[j]).confidence_interval(0.9)
            assert found.lower(0.05)[i, j] == pytest.approx(interval.low, rel=1e-9)
            assert found.upper(0.05)[i, j] == pytest.approx(interval.high, rel=1e-9)


def test_only_seeds_that_both_have_count() -> None:
    a, b = two()
    a[0, :2] = math.nan
    b[1, 5] = math.nan
    found = differences(a, b)
    assert found.count.tolist() == [[4, 3, 4], [6, 5, 6]]
    expected = scipy_stats.ttest_rel(a[0, 2:5], b[1, 2:5], alternative="greater").pvalue
    assert found.greater_p()[0, 1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("a", [[0.9], [math.nan, 0.9]])
def test_one_seed_or_none_says_nothing(a: list[float]) -> None:
    found = differences([a], [[0.1] * len(a)])
    assert (found.greater_p(), found.less_p()) == (1, 1)
    assert (found.lower(0.025), found.upper(0.025)) == (-math.inf, math.inf)
    nothing = differences([[math.nan]], [[0.1]])
    assert nothing.count == 0
    assert nothing.greater_p() == 1


def test_equal_differences_count_as_coin_flips_and_not_as_certainty() -> None:
    always = differences([[0.6, 0.7, 0.8]], [[0.5, 0.6, 0.7]])
    assert always.greater_p() == pytest.approx(1 / 8)
    assert always.less_p() == 1
    same = differences([[0.6, 0.7]], [[0.6, 0.7]])
    assert (same.greater_p(), same.less_p()) == (1, 1)


@given(st.lists(st.floats(min_value=-1, max_value=1).map(lambda x: round(x, 3)), min_size=2, max_size=9))
def test_sign_flips_are_scipys_permutation_test(values: list[float]) -> None:
    test = scipy_stats.permutation_test(
        (np.array(values),), lambda x, axis: np.sum(x, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    flipped = sign_flip(values)
    assert flipped is not None
    # scipy's two-sided p is twice the smaller tail; by symmetry the tails of a sum are equal.
    assert flipped == pytest.approx(min(1.0, test.pvalue), abs=1e-9)


@pytest.mark.parametrize(("seeds", "lowest"), [(3, 0.25), (5, 0.0625), (10, 2 / 1024)])
def test_sign_flips_of_few_seeds_cannot_be_small(seeds: int, lowest: float) -> None:
    assert sign_flip(list(range(1, seeds + 1))) == pytest.approx(lowest)


def test_sign_flips_of_many_seeds_are_sampled_and_the_same_every_time() -> None:
    values = np.random.default_rng(1).normal(0.5, 1, 20).tolist()
    exact = scipy_stats.permutation_test(
        (np.array(values),), lambda x, axis: np.sum(x, axis=axis), permutation_type="samples", n_resamples=200_000
    ).pvalue
    assert sign_flip(values) == sign_flip(values) == pytest.approx(exact, abs=0.006)
    assert sign_flip([]) is None


def test_effect_size_is_dz_made_smaller_for_few_seeds() -> None:
    values = [0.01, 0.03, 0.02, 0.05]
    plain = np.mean(values) / np.std(values, ddof=1)
    assert effect_size(values) == pytest.approx(plain * (1 - 3 / 11))
    assert effect_size([0.1]) is None
    assert effect_size([0.1, 0.1]) is None


def test_hedges_correction_takes_the_bias_away() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, (4000, 5))
    mean = np.mean([effect_size(row) for row in draws.tolist()])
    assert mean == pytest.approx(1.0, abs=0.05)
    assert np.mean(draws.mean(1) / draws.std(1, ddof=1)) > 1.15


@pytest.mark.parametrize(("effect", "seeds", "alpha"), [(1.0, 5, 0.05), (0.5, 20, 0.01), (2.0, 3, 0.05)])
def test_power_is_what_simulation_finds(effect: float, seeds: int, alpha: float) -> None:
    draws = np.random.default_rng(0).normal(effect, 1, (20_000, seeds))
    found = (scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < alpha).mean()
    assert float(power(effect, seeds, alpha)) == pytest.approx(found, abs=0.012)


def test_power_without_an_effect_is_the_level() -> None:
    np.testing.assert_allclose(power(0.0, [3, 5, 50], 0.05), 0.05, atol=1e-9)
    assert power(1e6, 5, 0.05) == 1


def test_seeds_needed_are_the_fewest_that_have_the_power() -> None:
    count = seeds_needed(0.01, 0.012, 0.05)
    assert count is not None
    assert power(0.01 / 0.012, count, 0.05) >= 0.8 > power(0.01 / 0.012, count - 1, 0.05)
    assert seeds_needed(-0.01, 0.012, 0.05) == count
    assert (seeds_needed(0.01, 0.012, 0.01) or 0) > count
    assert seeds_needed(1e-5, 0.1, 0.05) is None
    assert seeds_needed(0.0, 0.1, 0.05) is None
    assert seeds_needed(0.1, 0.0, 0.05) == 2


def test_what_is_detectable_is_found_with_the_power_and_no_less() -> None:
    difference = detectable(0.02, 5, 0.05)
    assert difference is not None
    assert power(difference / 0.02, 5, 0.05) == pytest.approx(0.8, abs=1e-4)
    assert detectable(0.02, 1, 0.05) is None
