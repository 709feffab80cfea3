from __future__ import annotations

import numpy as np
import pytest

from manytune.stats.differences import differences, means
from manytune.stats.planning import POWER, detectable, power, seeds_for, upper_deviation

TRIALS = 4000


def found(difference: float, seeds: int, alpha: float, configurations: int) -> float:
    """By simulation: the share of studies that find it, where a method's other configurations scatter alike."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, TRIALS, configurations, seeds))
    p = differences(means(a + difference), means(b)).greater_p()
    return float((p[:, 0, 0] < alpha).mean())


@pytest.mark.parametrize(
    ("difference", "seeds", "configurations"), [(1.0, 10, 1), (2.0, 5, 1), (2.0, 5, 4), (0.5, 40, 2)]
)
def test_power_is_what_a_simulation_finds(difference: float, seeds: int, configurations: int) -> None:
    alpha = 0.025 / configurations
    expected = float(power(difference, seeds, alpha, configurations))
    error = 3 * (0.25 / TRIALS) ** 0.5
    # Welch's degrees of freedom are estimated, and some configurations keep their own variance by chance.
    assert expected - 0.04 - error <= found(difference, seeds, alpha, configurations) <= expected + error


def test_so_many_seeds_are_enough_and_one_less_is_not() -> None:
    needed = seeds_for(0.01, 0.01, 0.025)
    assert needed is not None
    assert power(1.0, needed, 0.025) >= POWER > power(1.0, needed - 1, 0.025)
    assert detectable(0.01, needed, 0.025) == pytest.approx(0.01, rel=0.03)
    assert seeds_for(0.01, 0.0, 0.025) == 2
    assert seeds_for(0.0, 0.01, 0.025) is None
    assert seeds_for(1e-6, 0.01, 0.025) is None
    assert detectable(0.01, 1, 0.025) is None


def test_a_spread_is_below_its_upper_bound_in_four_of_five_studies() -> None:
    deviations = np.random.default_rng(0).normal(size=(TRIALS, 5)).std(axis=1, ddof=1)
    bounds = np.array([upper_deviation(each, 4) for each in deviations])
    assert (bounds >= 1).mean() == pytest.approx(0.8, abs=3 * (0.8 * 0.2 / TRIALS) ** 0.5)
