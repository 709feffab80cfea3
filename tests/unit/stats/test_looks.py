"""What is claimed of nothing while a study grows, by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from manytune.stats.claims import LEVEL, Configuration, Judging
from manytune.stats.differences import differences, means
from manytune.stats.looks import LOOK_LEVELS, SeedPlan
from manytune.stats.verdict import judge

TRIALS = 20_000
ERROR = 3 * (LEVEL * (1 - LEVEL) / TRIALS) ** 0.5
"""Three Monte-Carlo standard errors."""


def claims(looks: tuple[int, ...], levels: tuple[float, ...], *, anytime: bool = False, trials: int = TRIALS) -> float:
    """Share of studies without a difference in which one is claimed at any look."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, trials, 1, looks[-1]))
    claimed = np.zeros(trials, dtype=bool)
    for look, level in zip(looks, levels, strict=True):
        found = differences(means(a[..., :look]), means(b[..., :look]), anytime=anytime)
        claimed |= 2 * np.minimum(found.greater_p(), found.less_p())[:, 0, 0] < level
    return float(claimed.mean())


@pytest.mark.parametrize("looks", [(5, 10), (5, 6), (5, 20), (5, 10, 20), (5, 6, 7), (5, 20, 80), (5, 10, 20, 40)])
def test_planned_looks_together_hold_the_level(looks: tuple[int, ...]) -> None:
    assert claims(looks, LOOK_LEVELS[len(looks)]) <= LEVEL + ERROR


def test_three_doubling_looks_claim_as_much_as_the_notes_say() -> None:
    assert claims((5, 10, 20), LOOK_LEVELS[3]) == pytest.approx(0.046, abs=0.005)


def test_looking_after_every_seed_claims_too_much_unless_it_is_paid_for() -> None:
    looks = tuple(range(5, 21))
    every = (LEVEL,) * len(looks)
    assert claims(looks, every, trials=4000) > 0.15  # the simulation is able to see it
    assert claims(looks, every, anytime=True, trials=4000) <= LEVEL


def test_a_study_without_planned_looks_has_one_at_the_end() -> None:
    assert SeedPlan().level(7) == LEVEL
    assert SeedPlan().limited([seeds(7)])[0].runs == 7


def seeds(count: int) -> Configuration:
    scores = {seed: 0.1 * seed for seed in range(count) if seed != 1}
    return Configuration("full", "full", scores, failures={1: 0.0}, draws=np.array([[*scores.values()]]))


def test_between_two_looks_the_seeds_of_the_last_one_count() -> None:
    plan = SeedPlan(looks=(5, 10, 20))
    assert [plan.level(count) for count in (4, 5, 9, 10, 19, 20, 30)] == [0.05, 0.01, 0.01, 0.02, 0.02, 0.026, 0.026]
    (limited,) = plan.limited([seeds(8)])
    assert sorted(limited.scores) == [0, 2, 3, 4]
    assert limited.failures == {1: 0.0}
    assert limited.draws is not None
    np.testing.assert_allclose(limited.draws, [[0.0, 0.2, 0.3, 0.4]])
    assert plan.limited([seeds(3)])[0].runs == 3


def test_a_look_is_at_the_same_seeds_for_all_configurations_in_the_studys_order() -> None:
    plan = SeedPlan(looks=(5, 10))
    order = (9, 8, 7, 6, 5, 0, 1)
    whole = Configuration("full", "full", {seed: 0.5 for seed in order}, order=order)
    lacking = Configuration("lora", "lora", {seed: 0.5 for seed in order if seed != 8}, order=order)
    found = plan.limited([whole, lacking])
    assert [list(one.scores) for one in found] == [[9, 8, 7, 6, 5], [9, 7, 6, 5]]


def test_before_the_first_planned_look_nothing_is_claimed() -> None:
    """A report can be written while the study runs: that look was not planned."""
    full, lora = (
        Configuration(name, name, {seed: mean + 0.001 * seed for seed in range(6)}, parameters=cost)
        for name, mean, cost in (("full", 0.9, 2), ("lora", 0.1, 1))
    )
    for looks, claimed in (((6, 10), True), ((8, 10), False)):
        found = judge([full, lora], Judging(margin=2.0, seeds=SeedPlan(looks)))
        assert found.decided is claimed
        assert (found.standings["lora"].may_be_best is None) is not claimed
        assert (found.recommended == "lora") is claimed


def test_all_claims_are_made_at_the_level_of_the_look() -> None:
    """As good, and no more the best, as well as better: each with a p between the look's level and 5 %."""
    noise = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
    full = Configuration("full", "full", dict(enumerate(0.6 + noise)), parameters=2)
    lora = Configuration("lora", "lora", dict(enumerate(0.575 + noise)), parameters=1)
    plans = SeedPlan(), SeedPlan((5, 10, 20)), SeedPlan(grown=True)
    once, planned, grown = (judge([full, lora], Judging(margin=0.05, seeds=plan)) for plan in plans)
    assert 0.01 < once.as_good["lora"].p < 0.05
    assert 0.01 < once.standings["lora"].p < 0.05
    assert once.as_good["lora"].p == planned.as_good["lora"].p < grown.as_good["lora"].p
    assert [found.recommended for found in (once, planned, grown)] == ["lora", None, None]
    assert [found.standings["lora"].may_be_best for found in (once, planned, grown)] == [False, True, True]
    lows = [found.as_good["lora"].low for found in (once, planned)]
    assert lows[0] is not None
    assert lows[1] is not None
    assert lows[0] > -0.05 > lows[1]
