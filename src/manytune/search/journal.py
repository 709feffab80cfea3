"""The journal of a search: an optuna storage in one file, which optuna's tools read too.

OUT/search/journal.log   a line for each thing that was decided or happened, on the disk before anything follows from it

Each search space is a study of optuna. What optuna has no word for are user attributes of a trial: `run_id`, `method`,
`seed`, `pack`, `joined`, `began`, `order`, `unpruned`, `total_steps`; `rung STEP` for each decision; and `ended`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manytune.config.spaces import Space
from manytune.search.optuna_library import distributions, from_params, load_optuna, quiet, to_params
from manytune.utils.errors import StoreError
from manytune.utils.files import writing

FILE = Path("search") / "journal.log"


@dataclass(frozen=True)
class KeptTrial:
    """A trial as the journal has it."""

    key: int  # by which the journal knows it
    space: str
    number: int
    values: dict[str, Any]
    attributes: dict[str, Any]
    scores: dict[int, float]  # optimizer steps → score, at its evaluations
    finished: bool


class Journal:
    """The journal of the study directory `root`, whose lock the caller holds: nobody else writes."""

    def __init__(self, root: Path, spaces: Sequence[Space], higher_is_better: Mapping[str, bool]) -> None:
        """Open or begin it; `higher_is_better` maps task → of its primary metric.

        Raises StoreError where it is damaged.
        """
        self._optuna = optuna = load_optuna()
        self._path = path = root / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        journals = optuna.storages.journal
        with quiet(optuna):
            try:
                backend = journals.JournalFileBackend(str(path), lock_obj=_NoLock())
                self._storage = optuna.storages.JournalStorage(backend)
                self._spaces = {(each.task, each.name): each for each in spaces}
                self._studies = {}
                for key in self._spaces:
                    name = f"{key[0]}: {key[1]}"
                    direction = "maximize" if higher_is_better[key[0]] else "minimize"
                    optuna.create_study(
                        storage=self._storage, study_name=name, direction=direction, load_if_exists=True
                    )
                    self._studies[key] = self._storage.get_study_id_from_name(name)
            except (ValueError, KeyError) as error:
                raise StoreError(
                    f"{path} is damaged: {type(error).__name__}: {error}. Move it away to search anew; runs that ended "
                    "are kept."
                ) from error

    def trials(self, space: Space) -> list[KeptTrial]:
        """The trials of a space, by their numbers."""
        found = self._storage.get_all_trials(self._studies[space.task, space.name], deepcopy=False)
        return [
            KeptTrial(
                each._trial_id,
                space.name,
                number,
                from_params(space, each.params),
                dict(each.user_attrs),
                dict(each.intermediate_values),
                each.state.is_finished(),
            )
            for number, each in enumerate(each for each in found if "run_id" in each.user_attrs)
        ]

    def begin(self, space: Space, values: Mapping[str, Any], attributes: Mapping[str, Any]) -> int:
        """Note that a trial begins, in one line, so that none is there by half; returns its key."""
        made = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.RUNNING,
            params=to_params(values),
            distributions=distributions(self._optuna, space),
            user_attrs=dict(attributes),
        )
        with writing(self._path):
            key: int = self._storage.create_new_trial(self._studies[space.task, space.name], template_trial=made)
        return key

    def note(self, key: int, name: str, value: Any) -> None:
        """Note an attribute of a trial."""
        self._write(self._storage.set_trial_user_attr, key, name, value)

    def score(self, key: int, step: int, score: float) -> None:
        """Note the score of an evaluation."""
        self._write(self._storage.set_trial_intermediate_value, key, step, score)

    def end(self, key: int, state: str, score: float | None) -> None:
        """Note how a trial ended: `finished`, `collapsed`, `pruned` or `failed`."""
        states = self._optuna.trial.TrialState
        known = {"pruned": states.PRUNED, "failed": states.FAIL}.get(state, states.COMPLETE)
        if known is states.COMPLETE and score is None:
            known = states.FAIL
        values = None if score is None or known is states.FAIL else [score]
        self._write(self._storage.set_trial_state_values, key, known, values)

    def _write(self, write: Callable[..., Any], *given: Any) -> None:
        """Write a line; of a trial that has ended, whose record was removed since, the journal keeps what it has."""
        with writing(self._path), suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            write(*given)


class _NoLock:
    """A lock that locks nothing: only the holder of the directory's lock writes, and a killed one would leave it."""

    def acquire(self) -> bool:
        """Hold it at once."""
        return True

    def release(self) -> None:
        """There is nothing to release."""


def _mend(path: Path) -> None:
    """Remove what a process that was killed may have left: a line without its end."""
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
