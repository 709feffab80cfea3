from __future__ import annotations

import math
from typing import Any

import pytest

from manytune.config.search import Halving
from manytune.search.halving import SpaceHalving
from manytune.search.trials import RungFacts, rung_facts, stopped_pruning, trial_facts, trials_of
from manytune.storage.record import LOSS_FAILURE, RunRecord
from record_factory import make_record
from trial_factory import make_trial

TRIAL: dict[str, Any] = {
    "space": "lora",
    "number": 0,
    "settings": {"learning_rate": 1e-3, "rank": 8},
    "unpruned": False,
    "rungs": [{"step": 25, "score": 0.4, "kept": True}],
    "total_steps": 100,
    "pack": "cola-adapters-0",
    "joined": 0,
    "left": 100,
    "began": 0.0,
    "ended": 30.0,
}


def record_of(number: int, space: str = "lora", trial: dict[str, Any] | None = None, **facts: Any) -> RunRecord:
    cost = {"train_seconds": 20.0, "eval_seconds": 2.0}
    made = TRIAL | {"number": number, "space": space} | (trial or {})
    return make_record(run_id=f"{space}-{number}", trial=made, **{"steps": 100, "cost": cost, **facts})


def test_records_become_trials_by_task_and_space() -> None:
    records = [record_of(1), record_of(0, "full"), record_of(0), make_record(), record_of(0, task="rte")]
    found = trials_of(records)
    assert {key: [trial.number for trial in trials] for key, trials in found.items()} == {
        ("cola", "lora"): [0, 1],
        ("cola", "full"): [0],
        ("rte", "lora"): [0],
    }
    assert trials_of([make_record()]) == {}


def test_a_trial_has_the_facts_of_its_record() -> None:
    found = trial_facts(record_of(3, trial={"unpruned": True}))
    assert found == make_trial(
        3,
        0.5,
        seconds=22.0,
        settings={"learning_rate": 1e-3, "rank": 8},
        rungs=((25, 0.4, True),),
        ended=30.0,
    )
    with pytest.raises(ValueError, match="is no trial"):
        trial_facts(make_record())


@pytest.mark.parametrize(
    ("facts", "score", "trained"),
    [
        ({"state": "finished"}, 0.5, True),
        ({"state": "collapsed", "best_score": 0.0}, 0.0, False),
        ({"state": "pruned"}, None, None),
        ({"state": "failed", "failure": f"{LOSS_FAILURE} NaN at step 3."}, None, False),
        ({"state": "failed", "failure": "Memory ran out."}, None, None),
    ],
)
def test_only_trials_that_ended_by_themselves_have_a_score(
    facts: dict[str, Any], score: float | None, trained: bool | None
) -> None:
    found = trial_facts(record_of(0, **facts))
    assert (found.score, found.trained) == (score, trained)


def test_errors_are_negated_so_that_higher_is_better() -> None:
    rungs = [{"step": 25, "score": 0.4, "kept": True}, {"step": 50, "score": None, "kept": True}]
    found = trial_facts(record_of(0, trial={"rungs": rungs}, primary_metric="rmse", best_score=0.3))
    assert found.score == -0.3
    assert found.rungs == ((25, -0.4, True), (50, None, True))


def test_what_is_not_known_of_the_cost_counts_nothing() -> None:
    assert trial_facts(record_of(0, cost={}, steps=None)).seconds == 0.0


def test_rungs_say_who_reached_and_left_them_and_what_they_foretold() -> None:
    def at(number: int, first: float, last: float | None, **changes: Any) -> Any:
        return make_trial(number, last, rungs=((25, first, True),), **changes)

    trials = [at(number, float(number), float(number)) for number in range(5)]
    trials += [
        at(5, 5.0, -1.0, unpruned=False),  # its score kept it
        at(6, 6.0, None, trained=None),  # memory ran out
        make_trial(7, None, unpruned=False, trained=None, rungs=((25, 0.1, False),)),
        make_trial(8, 0.5, total_steps=200, rungs=((25, 0.1, True), (50, 0.2, False))),
    ]
    assert rung_facts(trials) == (
        RungFacts(100, 25, 8, 1, 5, 1.0),
        RungFacts(200, 25, 1, 0, 1, None),
        RungFacts(200, 50, 1, 1, 1, None),
    )
    # A trial whose loss became no number ranks last.
    worst = [*trials, at(9, 9.0, None, trained=False)]
    assert rung_facts(worst)[0].correlation == pytest.approx(1 - 6 * (5**2 + 5) / (6 * 35))


def test_records_say_that_a_space_prunes_no_more() -> None:
    """The same as the search itself said, from the ends in their order alone."""
    space = SpaceHalving(Halving(), 3, "lora")
    trials = []
    for number in range(30):
        score = math.sin(number * 1.7)
        kept = space.decide(100, 25, {number: score})[number]
        if kept and space.unpruned(number):
            final = score if number < 12 else -score
            space.ended(number, final)
            made = make_trial(number, final, rungs=((25, score, kept),), ended=float(number))
            trials.append(made)
    assert space.off is not None
    assert stopped_pruning(trials[::-1], Halving()) == space.off
    assert stopped_pruning([trial for trial in trials if trial.number < 12], Halving()) is None
    assert stopped_pruning(trials, Halving(least_correlation=-1)) is None
