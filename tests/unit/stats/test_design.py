"""Planned numbers of seeds, against simulated studies."""

from __future__ import annotations

import numpy as np
import pytest

from manytune.stats.claims import LEVEL, Configuration, Judging, Verdict
from manytune.stats.design import Design, Needed
from manytune.stats.differences import differences, means
from manytune.stats.looks import SeedPlan
from manytune.stats.planning import POWER
from manytune.stats.selection import best_of
from manytune.stats.verdict import judge

TRIALS = 2000
STUDIES = 150
"""Studies that are judged whole."""


def error(trials: int) -> float:
    """Three Monte-Carlo standard errors of a share of 80 %."""
    return 3 * (POWER * (1 - POWER) / trials) ** 0.5


@pytest.mark.parametrize(("methods", "ways", "size"), [(2, 1, 1.0), (2, 4, 1.0), (3, 2, 0.7)])
@pytest.mark.parametrize("tied", [False, True])
def test_so_many_seeds_find_a_difference_in_four_of_five_studies(
    methods: int, ways: int, size: float, tied: bool
) -> None:
    needed = Design(0.01, methods, ways).for_better(size * 0.01)
    seeds = needed.with_ties if tied else needed.seeds
    assert seeds is not None
    a, b = np.random.default_rng(0).normal(0, 0.01, (2, TRIALS, ways, seeds))
    a[:, 0] += size * 0.01
    a[:, 1:] -= 1
    b[:, 1:] -= 0 if tied else 1
    pairs = methods * (methods - 1) / 2
    found = (best_of(differences(means(a), means(b)), LEVEL).p < LEVEL / pairs).mean()
    assert found == pytest.approx(POWER, abs=0.04 + error(TRIALS))


def judged(seeds: int, difference: float, margin: float, plan: SeedPlan) -> tuple[float, float]:
    """Shares of studies that call the better method better, and the cheaper one as good."""
    draw, better, as_good = np.random.default_rng(seeds), 0, 0
    for _ in range(STUDIES):
        full = Configuration("full", "full", dict(enumerate(draw.normal(difference, 1, seeds))), parameters=2)
        lora = Configuration("lora", "lora", dict(enumerate(draw.normal(0, 1, seeds))), parameters=1)
        found = judge([full, lora], Judging(margin=margin, seeds=plan))
        (pair,) = found.comparisons
        better += pair.first == "full" and pair.verdict is Verdict.ON_THIS_DEV_SET
        as_good += found.recommended == "lora"
    return better / STUDIES, as_good / STUDIES


def test_judge_finds_what_was_planned() -> None:
    design = Design(1.0)
    seeds = design.for_better(1.5).seeds
    assert seeds is not None
    assert judged(seeds, 1.5, 0.01, SeedPlan())[0] == pytest.approx(POWER, abs=0.04 + error(STUDIES))
    seeds = design.for_as_good(1.5).seeds
    assert seeds is not None
    assert judged(seeds, 0.0, 1.5, SeedPlan())[1] == pytest.approx(POWER, abs=0.04 + error(STUDIES))


@pytest.mark.parametrize("look", [5, 10])
def test_a_planned_look_finds_the_difference_of_its_row(look: int) -> None:
    design = Design(1.0, looks=(5, 10))
    reach = design.reach(look)
    assert reach.difference is not None
    assert reach.margin is not None
    plan = SeedPlan(design.looks)
    assert reach.level == plan.level(look)
    wide = POWER, 0.04 + error(STUDIES)
    assert judged(look, reach.difference, 0.01, plan)[0] == pytest.approx(wide[0], abs=wide[1])
    assert judged(look, 0.0, reach.margin, plan)[1] == pytest.approx(wide[0], abs=wide[1])


def test_with_looks_the_first_that_suffices_is_named_and_none_where_none_does() -> None:
    design = Design(1.0, looks=(5, 10, 20))
    assert design.for_better(3.0).seeds == 5
    assert design.for_better(1.2).seeds == 20
    assert design.for_better(0.5) == Needed(None, None)
    assert design.for_better(1.2, anytime=True).seeds == Design(1.0).for_better(1.2, anytime=True).seeds


def test_a_look_that_was_not_planned_takes_more_seeds_and_ties_do_too() -> None:
    design = Design(1.0, methods=2, configurations=4)
    once, grown = design.for_better(1.0), design.for_better(1.0, anytime=True)
    for needed in (once, grown):
        assert needed.seeds is not None
        assert needed.with_ties is not None
        assert needed.seeds < needed.with_ties
    assert (once.seeds or 0) * 1.5 < (grown.seeds or 0)
    assert (once.with_ties or 0) * 1.3 < (grown.with_ties or 0)


def test_a_verdict_takes_five_seeds_and_no_spread_takes_no_more() -> None:
    assert Design(0.0).for_better(0.01) == Needed(5, 5)
    assert Design(0.01, looks=(5, 10)).for_better(1.0) == Needed(5, 5)
    assert Design(1.0).for_better(1e-6) == Needed(None, None)
