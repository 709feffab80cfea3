"""Trials for the tests of whatever is computed from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from manytune.stats.budget import TrialFacts
from manytune.storage.record import RunState


def make_trial(number: int, score: float | None = 0.5, **changes: Any) -> TrialFacts:
    """A finished trial with a score, and with `changes`."""
    made = TrialFacts(
        number=number,
        state=RunState.FINISHED,
        score=score,
        seconds=10.0,
        steps=100,
        total_steps=100,
        unpruned=True,
        trained=True,
        settings={"learning_rate": 1e-3},
    )
    return replace(made, **changes)


def pruned(number: int, seconds: float = 2.0, steps: int = 25) -> TrialFacts:
    """A trial that left at a rung."""
    changes = {"state": RunState.PRUNED, "seconds": seconds, "steps": steps}
    return make_trial(number, None, unpruned=False, trained=None, **changes)


def failed(number: int, **changes: Any) -> TrialFacts:
    """A trial whose loss or scores were no numbers."""
    return make_trial(number, None, state=RunState.FAILED, **{"trained": False, **changes})
