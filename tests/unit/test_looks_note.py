"""What `extend` says of planned looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from manytune.cli.looks_note import looks_note
from manytune.config import Study
from manytune.stats.differences import Differences
from manytune.storage.growth import SeedGrowth
from study_files import small_study

PLAN = (5, 10, 20)


def of(seeds: int, looks: tuple[int, ...] = PLAN) -> Study:
    given: Any = {"looks": list(looks), "list": list(range(seeds))} if looks else list(range(seeds))
    return small_study(Path("m"), seeds=given)


def note(before: int, after: int, growth: SeedGrowth | None = None, *, begun: bool = True) -> str | None:
    return looks_note(growth or SeedGrowth(PLAN), of(before), of(after), begun=begun)


def test_from_look_to_look_nothing_is_to_be_said() -> None:
    assert note(5, 10) is note(10, 20) is note(5, 20) is note(5, 5) is None
    assert note(5, 7, begun=False) is not None
    assert looks_note(SeedGrowth(), of(3, ()), of(5, ()), begun=True) is None, "nothing could be claimed of 3 seeds"


def test_past_a_look_it_says_what_the_verdict_does() -> None:
    assert note(5, 7) == (
        "Seeds 5 → 7 is no planned look (5, 10, 20): the verdict stays that of the first 5 seeds. If more are added "
        "after it, the verdict will pay for it: a difference has to be about 1.6 times as large to be claimed."
    )
    assert "stays that of the first 20 seeds" in str(note(20, 25))
    assert "the verdict waits for 5 seeds" in str(note(2, 4))


def test_after_an_unplanned_look_the_verdict_pays() -> None:
    said = note(7, 10, SeedGrowth(PLAN, seen=(5,)))
    assert said is not None
    assert said.startswith("Scores could be seen at 7 seeds, no planned look (5, 10, 20): the verdict pays for it")
    without = looks_note(SeedGrowth(), of(5, ()), of(10, ()), begun=True)
    assert without is not None
    assert without.startswith("Scores could be seen at 5 seeds, and no looks were planned: the verdict pays for it")


@pytest.mark.parametrize("seeds", [7, 10, 20, 50])
def test_the_payment_is_what_it_is_said_to_be(seeds: int) -> None:
    one, degrees = np.ones((1, 1)), 2.0 * (seeds - 1)
    grown = Differences(0 * one, one, degrees * one, one, seeds / 2 * one, anytime=True)
    fixed = scipy_stats.t.ppf(0.975, degrees)
    assert -grown.lower(0.025).item() / fixed == pytest.approx(1.65, abs=0.2)
