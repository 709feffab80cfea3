"""What it means for the verdict that seeds are added, in a sentence."""

from __future__ import annotations

from dataclasses import replace

from manytune.config import Study
from manytune.stats.looks import MINIMUM_SEEDS, SeedPlan
from manytune.storage.growth import SeedGrowth
from manytune.utils.text import listed

PAYMENT = "a difference has to be about 1.6 times as large to be claimed"
"""What a look that was not planned costs, from 7 seeds up (tests/unit/test_looks_note.py)."""


def looks_note(growth: SeedGrowth, study: Study, grown: Study, *, begun: bool) -> str | None:
    """Say that a study goes past its planned looks, and what the verdict does then; None where it does not.

    `begun` says whether runs have ended, so that scores could be seen.
    """
    before, after = len(study.seeds), len(grown.seeds)
    if set(study.seeds) == set(grown.seeds):
        return None
    planned = growth.planned if begun else grown.looks
    numbers = listed(planned)
    seen = replace(growth, seen=(*growth.seen, before)) if begun else growth
    if unplanned := seen.unplanned(MINIMUM_SEEDS):
        which = f"no planned look ({numbers})" if planned else "and no looks were planned"
        return (
            f"Scores could be seen at {listed(unplanned)} seeds, {which}: the verdict pays for it, so that {PAYMENT}."
        )
    if not planned or after in planned:
        return None
    counted = SeedPlan(planned).reached(after)
    verdict = f"stays that of the first {counted} seeds" if counted else f"waits for {planned[0]} seeds"
    return (
        f"Seeds {before} → {after} is no planned look ({numbers}): the verdict {verdict}. "
        f"If more are added after it, the verdict will pay for it: {PAYMENT}."
    )
