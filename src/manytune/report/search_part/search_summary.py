"""A search → its part of summary.json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from manytune.report.search_part.importance import importances
from manytune.report.search_part.search_facts import SearchFacts, SpaceFacts, score_then, trial_of
from manytune.report.search_part.search_section import SearchContent
from manytune.report.search_part.search_sheets import near_the_best
from manytune.search.trials import rung_facts, stopped_pruning
from manytune.stats.budget import budget_curve, spent
from manytune.storage.record import RunRecord, plain


def search_summary(content: SearchContent) -> Any:
    """A search on one task and backbone as plain data; what is not finite is null.

    Scores are the metric's own, whichever direction is better.
    """
    facts = content.facts
    return plain(
        {
            "key": facts.key,
            "task": facts.task,
            "model": facts.model,
            "metric": facts.metric.name,
            "higher_is_better": facts.metric.higher_is_better,
            "select": facts.search.select if facts.search else None,
            "margin": facts.margin,
            "spaces": [_space(facts, space) for space in facts.spaces],
        }
    )


def _space(facts: SearchFacts, space: SpaceFacts) -> dict[str, Any]:
    curve, near, winner = budget_curve(space.facts), near_the_best(facts, space), space.winner
    halving = facts.search.halving if facts.search else None
    return {
        "space": space.name,
        "method": space.method,
        "settings": [each.name for each in space.dimensions],
        "best": None if winner is None else _trial(winner),
        "spent": asdict(spent(space.facts)),
        "best_of_n": None
        if curve is None
        else {
            "trials": curve.best.trials,
            "expected": facts.sign * curve.best.expected,
            "median": facts.sign * curve.best.median,
            "seconds": curve.seconds,
        },
        "near_best": None if near is None else asdict(near),
        "rungs": [asdict(each) for each in rung_facts(space.facts)],
        "stopped_pruning": stopped_pruning(space.facts, halving) if halving else None,
        "importance": importances(space),
        "trials": [_trial(run) for run in space.trials],
    }


def _trial(run: RunRecord) -> dict[str, Any]:
    trial = trial_of(run)
    return {
        "trial": trial.number,
        "run": run.run_id,
        "settings": trial.settings,
        "state": str(run.state),
        "score": score_then(run),
        "steps": run.steps,
        "seconds": run.cost.seconds,
    }
