"""Records of trials → what the statistics of a search ask of them, and what its rungs foretold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from manytune.config.search import Halving
from manytune.data.metrics import METRICS
from manytune.search.halving import FEWEST_PAIRS, disproved, foretells
from manytune.stats.budget import TrialFacts
from manytune.storage.record import RunRecord, RunState


def trials_of(records: Iterable[RunRecord]) -> dict[tuple[str, str], tuple[TrialFacts, ...]]:
    """(task, space) → its trials by number; records of runs that are no trials are passed over.

    Scores are negated where lower is better, so higher is better in all statistics of a search.
    """
    found: dict[tuple[str, str], list[TrialFacts]] = {}
    for record in records:
        if record.trial is not None:
            found.setdefault((record.task, record.trial.space), []).append(trial_facts(record))
    return {key: tuple(sorted(trials, key=lambda trial: trial.number)) for key, trials in found.items()}


def trial_facts(record: RunRecord) -> TrialFacts:
    """The facts of one trial; a ValueError where the run was none."""
    trial = record.trial
    if trial is None:
        raise ValueError(f"{record.run_id} is no trial of a search")
    sign = METRICS[record.primary_metric].sign
    ended = record.state in (RunState.FINISHED, RunState.COLLAPSED)
    score = record.best_score if ended else None
    trained = True if record.state is RunState.FINISHED else False if record.did_not_train else None
    return TrialFacts(
        number=trial.number,
        state=record.state,
        score=None if score is None else sign * score,
        seconds=record.cost.seconds,
        steps=record.steps or 0,
        total_steps=trial.total_steps,
        unpruned=trial.unpruned,
        trained=trained,
        settings=trial.settings,
        rungs=tuple((each.step, None if each.score is None else sign * each.score, each.kept) for each in trial.rungs),
        ended=trial.ended,
    )


@dataclass(frozen=True)
class RungFacts:
    """What a rung did to the trials of a space."""

    total_steps: int
    """Of the trials that are compared there."""
    step: int
    reached: int
    """Trials that reached it."""
    left: int
    """Trials that were pruned there."""
    pairs: int
    """Unpruned trials with a score there and at the end (a failed one ranks last)."""
    correlation: float | None
    """Spearman's rank correlation of these two scores; None below 5 pairs, and where either are all the same."""


def rung_facts(trials: Sequence[TrialFacts]) -> tuple[RungFacts, ...]:
    """The rungs of a space, by total steps and step."""
    here: dict[tuple[int, int], list[tuple[TrialFacts, float | None, bool]]] = {}
    for trial in trials:
        for step, score, kept in trial.rungs:
            here.setdefault((trial.total_steps, step), []).append((trial, score, kept))
    found = []
    for (total, step), reached in sorted(here.items(), key=lambda each: each[0]):
        told = [(score, trial.score) for trial, score, _ in reached if trial.unpruned and trial.trained is not None]
        rho = foretells([score for score, _ in told], [score for _, score in told])
        left = sum(not kept for _, _, kept in reached)
        found.append(RungFacts(total, step, len(reached), left, len(told), rho))
    return tuple(found)


def stopped_pruning(trials: Sequence[TrialFacts], halving: Halving) -> str | None:
    """Why a space pruned no more, in words without a subject; None where it pruned to the end.

    "scores at step 30 of 100 foretell the end with a rank correlation of 0.21"
    """
    ends = sorted((trial for trial in trials if trial.unpruned), key=lambda trial: (trial.ended, trial.number))
    for count in range(FEWEST_PAIRS, len(ends) + 1):
        told = {(rung.total_steps, rung.step): rung.correlation for rung in rung_facts(ends[:count])}
        if why := disproved(told, halving):
            return why
    return None
