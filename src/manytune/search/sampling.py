"""The settings of a search's trials, drawn by optuna's samplers.

A draw depends on the search's seed, the trial's number and, with `tpe`, on the trials so far, and on nothing that an
interruption would lose: samplers work on studies in memory, which are made anew from what the journal holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from manytune.config import digest
from manytune.config.search import Search
from manytune.config.spaces import Space
from manytune.search.optuna_library import distributions, from_params, load_optuna, quiet, to_params


@dataclass(frozen=True)
class Drawn:
    """A trial that was drawn before."""

    values: dict[str, Any]  # of the space's dimensions
    state: Literal["running", "ended", "pruned", "failed"]
    score: float | None = None  # higher is better; of one that was pruned, its last
    step: int = 0  # of that score


def seed_of(search: Search, *key: Any) -> int:
    """A seed below 2**31 that depends on the search's own and on `key`."""
    return int(digest([search.seed, *key], 12), 16) % 2**31


class SpaceSampler:
    """Draws the trials of one space."""

    def __init__(self, search: Search, space: Space) -> None:
        self._search, self._space = search, space
        self._optuna = load_optuna()
        self._seed = seed_of(search, "settings", space.task, space.name)
        self._study: Any = None  # of a sampler that does not ask for scores
        self._drawn: list[dict[str, Any]] = []

    def draw(self, number: int, before: Sequence[Drawn] = ()) -> dict[str, Any]:
        """The values of trial `number` (from 0), `before` which these were drawn: their order is that of numbers."""
        if not self._space.dimensions:
            return {}
        with quiet(self._optuna):
            if self._search.sampler == "tpe":
                return self._by_scores(number, before)
            while len(self._drawn) <= number:
                self._drawn.append(self._next())
        return self._drawn[number]

    def _next(self) -> dict[str, Any]:
        """The next draw of a sequence that is known beforehand."""
        kinds = distributions(self._optuna, self._space)
        if self._study is None:
            self._study = self._optuna.create_study(sampler=self._sampler())
            if self._search.sampler == "sobol":
                # Without a trial that is known, optuna would draw the first one at random.
                first = {name: _first(kind) for name, kind in kinds.items()}
                made = self._optuna.trial.create_trial(params=first, distributions=kinds, value=0.0)
                self._study.add_trial(made)
        return from_params(self._space, self._study.ask(kinds).params)

    def _sampler(self) -> Any:
        samplers = self._optuna.samplers
        if self._search.sampler == "sobol":
            return samplers.QMCSampler(
                qmc_type="sobol", scramble=True, seed=self._seed, warn_independent_sampling=False
            )
        if self._search.sampler == "grid":
            choices = {name: kind.choices for name, kind in distributions(self._optuna, self._space).items()}
            return samplers.GridSampler(choices, seed=self._seed)
        return samplers.RandomSampler(seed=self._seed)

    def _by_scores(self, number: int, before: Sequence[Drawn]) -> dict[str, Any]:
        optuna, kinds = self._optuna, distributions(self._optuna, self._space)
        seed = seed_of(self._search, "settings", self._space.task, self._space.name, number)
        # Trials that are in the pack count as poor ones, so that not all of a pack are drawn from one place.
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        states = optuna.trial.TrialState
        state_of = {"running": states.RUNNING, "ended": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        for each in before:
            known = {} if each.score is None else {each.step: each.score}
            made = optuna.trial.create_trial(
                params=to_params(each.values),
                distributions=kinds,
                state=state_of[each.state],
                value=each.score if each.state == "ended" else None,
                intermediate_values=known,
            )
            study.add_trial(made)
        return from_params(self._space, study.ask(kinds).params)


def _first(kind: Any) -> Any:
    """The first value of a distribution."""
    return kind.choices[0] if hasattr(kind, "choices") else kind.low
