from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from manytune.stats.differences import Differences, means
from manytune.stats.differences import differences as between
from manytune.stats.selection import best_of, best_set, holm


def draw(*shape: int, mean: float = 0.5) -> np.ndarray:
    """Scores; another mean is another draw."""
    return np.random.default_rng(round(1000 * mean)).normal(mean, 0.02, shape)


def differences(a: np.ndarray, b: np.ndarray) -> Differences:
    return between(means(a), means(b))


def test_of_one_and_one_it_is_welchs_test() -> None:
    a, b = draw(1, 6), draw(1, 6, mean=0.49)
    found = best_of(differences(a, b), 0.05)
    test = scipy_stats.ttest_ind(a[0], b[0], equal_var=False)
    interval = test.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, interval.low, interval.high), rel=1e-9)


def test_choosing_among_more_costs() -> None:
    a, b = draw(1, 6, mean=0.55), draw(1, 6)
    alone = best_of(differences(a, b), 0.05)
    worse = np.concatenate([a, a - 0.2, a - 0.3, a - 0.4])  # none of these could have won; all scatter alike
    chosen = best_of(differences(worse, b), 0.05)
    assert chosen.p == pytest.approx(8 * differences(worse, b).greater_p()[0, 0])
    assert chosen.low < alone.low


def test_a_method_must_beat_every_configuration_of_the_other() -> None:
    a, b = draw(1, 6, mean=0.6), draw(1, 6)
    easy = best_of(differences(a, b), 0.05)
    hard = best_of(differences(a, np.concatenate([b, a[:, ::-1]])), 0.05)
    assert easy.p < 0.01
    assert hard.p > 0.5
    assert hard.low < 0


def test_turning_the_sides_turns_the_interval() -> None:
    a, b = draw(3, 6), draw(2, 6, mean=0.51)
    one, other = best_of(differences(a, b), 0.05), best_of(differences(b, a), 0.05)
    assert one.p == pytest.approx(other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_interval_and_p_say_the_same() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.03, 0.03, (500, 3, 6)), rng.normal(0, 0.03, (500, 2, 6))
    found = best_of(differences(a, b), 0.05)
    outside = (found.low > 0) | (found.high < 0)
    assert 20 < outside.sum() < 450
    np.testing.assert_array_equal(outside, found.p < 0.05)


def test_the_observed_difference_of_the_best_is_inside() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 4, 5)), rng.normal(size=(200, 3, 5))
    found = best_of(differences(a, b), 0.05)
    observed = a.mean(-1).max(-1) - b.mean(-1).max(-1)
    assert ((found.low <= observed) & (observed <= found.high)).all()


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=8))
def test_holm_steps_down(p: list[float]) -> None:
    adjusted = holm(p)
    order = np.argsort(p, kind="stable")
    running, expected = 0.0, [0.0] * len(p)
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        expected[index] = running
    np.testing.assert_allclose(adjusted, expected)


def test_holm_on_a_known_case() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_the_best_set_leaves_out_what_another_beats() -> None:
    table = np.concatenate([draw(1, 6, mean=0.6), draw(1, 6, mean=0.599), draw(1, 6, mean=0.4)])
    p = best_set(differences(table, table))
    assert p[0] > 0.05
    assert p[1] > 0.05
    greater = differences(table, table).greater_p()
    assert p[2] == pytest.approx(2 * min(greater[0, 2], greater[1, 2]))
    assert p[2] < 0.05


def test_a_single_configuration_is_the_best() -> None:
    table = draw(1, 5)
    assert best_set(differences(table, table)).tolist() == [1.0]
