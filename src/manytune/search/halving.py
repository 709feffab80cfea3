"""Asynchronous successive halving: which trials leave at a rung, and when a search space prunes no more.

A trial is compared at its rungs with all trials of its space that were there before, at equal steps of equal
schedules (Li et al. 2020, https://arxiv.org/abs/1810.05934, as optuna's SuccessiveHalvingPruner decides). None waits
for others: the first trials at a rung are compared with few, and go on more often than later ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from manytune.config import Training, digest
from manytune.config.plan import EvaluationSteps, evaluation_steps, steps_per_epoch, total_steps, warmup_steps
from manytune.config.search import Halving

FEWEST_PAIRS = 5
"""Of fewer trials, scores at a rung do not say whether it foretells the end."""

_LARGEST_BLOCK = 1000


def rung_steps(
    halving: Halving, evaluations: EvaluationSteps, total: int, warmup: int, epoch_steps: int
) -> tuple[int, ...]:
    """The optimizer steps after which a trial is compared, ascending, each once; there may be none.

    For each share of its `total` steps: the first of its `evaluations` from there on, but not before the end of
    `warmup` and one more epoch, because earlier scores say little; none at its last step. All are optimizer steps.

    >>> rung_steps(Halving(), EvaluationSteps(every=10, total=100), total=100, warmup=6, epoch_steps=10)
    (30, 50)
    """
    steps = set()
    for share in halving.rungs:
        begin = max(math.ceil(round(share * total, 6)), warmup + epoch_steps)  # 0.1 · 30 is above 3 in floating point
        at = bisect_left(evaluations, begin)
        if at < len(evaluations) and evaluations[at] < total:
            steps.add(evaluations[at])
    return tuple(sorted(steps))


def trial_rungs(halving: Halving, training: Training, rows: int) -> tuple[int, ...]:
    """The optimizer steps after which a trial is compared that trains so on so many rows."""
    total = total_steps(training, rows)
    epoch = steps_per_epoch(rows, training.batch_size, training.accumulate)
    return rung_steps(halving, evaluation_steps(training, epoch, total), total, warmup_steps(training, total), epoch)


def unpruned(seed: int, space: str, number: int, share: float) -> bool:
    """Whether trial `number` (from 0) of a space is one of the `share` that is never pruned.

    Of every block of consecutive trials equally many are chosen (of a third: one of every three), by a hash whose key
    is the search's `seed`, the space and the block: no score and no other trial has a say.
    """
    chosen, block = _ratio(share)
    index, place = divmod(number, block)
    order = sorted(range(block), key=lambda other: digest([seed, space, index, other], 16))
    return place in order[:chosen]


@lru_cache
def _ratio(share: float) -> tuple[int, int]:
    """How many of a block of how many trials are chosen: the smallest block that has about this share."""
    near = (
        (round(share * block), block)
        for block in range(1, _LARGEST_BLOCK + 1)
        if abs(round(share * block) / block - share) <= share * (1 - share) / 20
    )
    return next(near, (round(share), 1))


def goes_on(score: float | None, competing: Sequence[float], factor: int) -> bool:
    """Whether a score is among the best floor(n / factor), at least 1, of the n `competing` ones, its own among them.

    Higher is better. Scores that tie with the last of the best go on too. One that is no number (None) never does.

    >>> [goes_on(score, [0.4, 0.7, 0.5, 0.6], factor=2) for score in (0.7, 0.6, 0.5, None)]
    [True, True, False, False]
    """
    if score is None:
        return False
    return score >= sorted(competing)[-max(1, len(competing) // factor)]


def foretells(rung_scores: Sequence[float | None], final_scores: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation between scores at a rung and at the end of the same trials, both [N].

    Higher is better; None, a score that is no number, ranks below all others. None below 5 trials, and where all scores
    of either are the same.

    >>> foretells([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.1, 0.3, 0.4, 0.5])
    0.9
    """
    if len(rung_scores) != len(final_scores):
        raise ValueError(
            f"{len(rung_scores)} scores at a rung and {len(final_scores)} at the end are not of equal trials"
        )
    if len(rung_scores) < FEWEST_PAIRS:
        return None
    first, last = (_centred_ranks(scores) for scores in (rung_scores, final_scores))
    size = math.sqrt(float(first @ first) * float(last @ last))
    return None if size == 0 else float(first @ last) / size


def disproved(correlations: Mapping[tuple[int, int], float | None], halving: Halving) -> str | None:
    """Why a space is to prune no more, if a rung does not foretell the end well enough; else None.

    `correlations` is (total steps, step of a rung) → what `foretells` says of it.

    >>> disproved({(100, 30): 0.21, (100, 50): None}, Halving())
    'scores at step 30 of 100 foretell the end with a rank correlation of 0.21'
    """
    for (total, step), rho in correlations.items():
        if rho is not None and rho < halving.least_correlation:
            return f"scores at step {step} of {total} foretell the end with a rank correlation of {rho:.2f}"
    return None


def _centred_ranks(scores: Iterable[float | None]) -> NDArray[np.float64]:
    """Ranks less their mean; scores that tie share theirs."""
    values = np.array([-math.inf if score is None else score for score in scores])
    below = (values[None, :] < values[:, None]).sum(1)
    above = (values[None, :] > values[:, None]).sum(1)
    ranks: NDArray[np.float64] = (below - above) / 2
    return ranks


@dataclass
class SpaceHalving:
    """Successive halving of one search space: what was decided of its trials, and why.

    Its answers depend on nothing but the calls that came before. So after an interruption it is made anew and given the
    same calls, or what was decided then (`restore`), in the order of the search's journal; asked again of a trial that
    it has decided on, it says the same.

    >>> space = SpaceHalving(Halving(), seed=1, space="lora")
    >>> [space.unpruned(number) for number in range(6)]
    [False, False, True, False, False, True]
    >>> space.decide(total=100, step=30, arriving={0: 0.7, 1: 0.5, 2: 0.6, 3: 0.4})
    {0: True, 1: False, 2: True, 3: False}
    """

    halving: Halving
    seed: int
    """The search's."""
    space: str
    """A name that no other space of the search has."""
    higher_is_better: bool = True
    """Of the task's primary metric."""
    off: str | None = None
    """Why the space prunes no more: the rung that does not foretell the end; None as long as it prunes."""
    # (total, step of a rung) → trial → its score there, higher is better; and whether it went on
    _scores: dict[tuple[int, int], dict[int, float | None]] = field(default_factory=dict)
    _losses: dict[tuple[int, int], dict[int, float]] = field(default_factory=dict)
    _decided: dict[tuple[int, int], dict[int, bool]] = field(default_factory=dict)
    _final: dict[int, float | None] = field(default_factory=dict)  # of unpruned trials, higher is better

    def unpruned(self, number: int) -> bool:
        """Whether trial `number` trains to its end whatever it scores."""
        return unpruned(self.seed, self.space, number, self.halving.unpruned)

    def decide(
        self,
        total: int,
        step: int,
        arriving: Mapping[int, float | None],
        losses: Mapping[int, float | None] = MappingProxyType({}),
    ) -> dict[int, bool]:
        """Which of the trials that reach a rung at the same tick go on: trial number → whether.

        `total` steps is what they take if they go on, `step` the rung's; `arriving` is trial number → score by the
        primary metric, None where it is no number. All scores of a tick are recorded before any is decided: in a pack
        trials arrive together, and one by one the first would pass with nothing to be compared with.

        Of equal scores, that with the lower of the `losses` on the same rows is the better: before trials take off,
        many predict one constant, and their scores are all the same.
        """
        scores = self._scores.setdefault((total, step), {})
        decided = self._decided.setdefault((total, step), {})
        new = [number for number in arriving if number not in scores]
        scores.update((number, self._signed(arriving[number])) for number in new)
        self._note_losses(total, step, {number: losses.get(number) for number in new})
        places = self._places(total, step)
        for number in new:
            decided[number] = (
                self.off is not None
                or self.unpruned(number)
                or goes_on(places.get(number), [*places.values()], self.halving.factor)
            )
        return {number: decided[number] for number in arriving}

    def _places(self, total: int, step: int) -> dict[int, float]:
        """The trials whose score at a rung is a number, placed from 0, the worst, upwards; equal ones share a place."""
        losses = self._losses[total, step]
        keys = {
            number: (score, -losses.get(number, math.inf))
            for number, score in self._scores[total, step].items()
            if score is not None
        }
        order = {key: float(place) for place, key in enumerate(sorted(set(keys.values())))}
        return {number: order[key] for number, key in keys.items()}

    def _note_losses(self, total: int, step: int, losses: Mapping[int, float | None]) -> None:
        known = {number: loss for number, loss in losses.items() if loss is not None and math.isfinite(loss)}
        self._losses.setdefault((total, step), {}).update(known)

    def restore(
        self,
        total: int,
        step: int,
        decided: Mapping[int, tuple[float | None, bool]],
        losses: Mapping[int, float | None] = MappingProxyType({}),
    ) -> None:
        """Take over what was decided together before: trial number → score, and whether it went on; and its loss."""
        self._note_losses(total, step, losses)
        self._scores.setdefault((total, step), {}).update(
            (number, self._signed(score)) for number, (score, _) in decided.items()
        )
        self._decided.setdefault((total, step), {}).update((number, kept) for number, (_, kept) in decided.items())

    def ended(self, number: int, score: float | None) -> None:
        """A trial trained to its end, or failed because its loss or scores were no numbers (None).

        A trial that was pruned, or failed for another reason, says nothing of the rungs: it is not passed.
        """
        if number in self._final or not self.unpruned(number):
            return
        self._final[number] = self._signed(score)
        self.off = self.off or disproved(self.correlations(), self.halving)

    def correlations(self) -> dict[tuple[int, int], float | None]:
        """(total steps, step of a rung) → how well scores there foretell the end, over its unpruned trials so far.

        None where `foretells` cannot say. Only trials that were chosen beforehand count: those that a rung left by
        their scores differ less, so their ranks correlate less.
        """
        found = {}
        for rung, scores in self._scores.items():
            both = [number for number in scores if number in self._final]
            found[rung] = foretells([scores[number] for number in both], [self._final[number] for number in both])
        return found

    def _signed(self, score: float | None) -> float | None:
        if score is None or not math.isfinite(score):
            return None
        return score if self.higher_is_better else -score
