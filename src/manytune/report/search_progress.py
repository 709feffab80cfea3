"""How far a search is: for each task and method, trials that have ended, train and wait, and its confirmation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from manytune.config.spaces import search_spaces
from manytune.report.views import plain_table
from manytune.storage.directory import PENDING, Store
from manytune.storage.record import RunRecord


@dataclass(frozen=True)
class MethodProgress:
    """The trials of one method on one task, over all of its search spaces."""

    task: str
    method: str
    wanted: int | None
    """Trials that the budget gives; None under a budget of seconds."""
    begun: int
    """Trials that have begun: those that have ended, and those that train or are to go on."""
    states: dict[str, int]
    """State → trials that have ended in it."""
    rungs: tuple[tuple[int, int], ...]
    """At the first, second, … comparison: trials that came to it, and those that were pruned there."""
    confirmed: int
    """Runs of its winners that have ended, of `to_confirm`, which is 0 before the confirm stage begins."""
    to_confirm: int

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        return sum(self.states.values())


def search_progress(store: Store) -> tuple[MethodProgress, ...]:
    """One for each task and method, in the study's order; empty where the study does not search."""
    study = store.study()
    if study.search is None:
        return ()
    trials = store.trials()
    begun = {run.id: (run.task, run.method.method) for run in store.runs(study)}
    begun |= {run.run_id: (run.task, run.method) for run in trials}
    spaces = [space for task in study.task_names for space in search_spaces(study, task)]
    wanted = Counter[tuple[str, str]]()
    for space in spaces:
        wanted[space.task, space.method] += (study.search.trials or 0) if space.dimensions else 1
    found = []
    for key, count in wanted.items():
        own = [run for run in trials if (run.task, run.method) == key]
        states = Counter(str(run.state) for run in own)
        number = sum(each == key for each in begun.values())
        budget = None if study.search.trials is None else count
        found.append(MethodProgress(*key, budget, number, dict(states), _rungs(own), *_confirmed(store, *key)))
    return tuple(found)


def _rungs(trials: Iterable[RunRecord]) -> tuple[tuple[int, int], ...]:
    came: list[list[bool]] = []
    for run in trials:
        for at, rung in enumerate(run.trial.rungs if run.trial else ()):
            came += [[]] if at == len(came) else []
            came[at].append(rung.kept)
    return tuple((len(kept), kept.count(False)) for kept in came)


def _confirmed(store: Store, task: str, method: str) -> tuple[int, int]:
    """Runs of a method's winners that have ended, and all of them."""
    if not (folder := store.confirm_dir(task)).is_dir():
        return 0, 0
    confirm = Store.open(folder)
    runs = {run.id for run in confirm.runs() if run.method.method == method}
    return sum(run.run_id in runs and run.state != PENDING for run in confirm.status().runs), len(runs)


def progress_table(progress: Sequence[MethodProgress]) -> Table:
    """A row a method: trials by what became of them, its rungs, and its winners' runs."""
    states = list(dict.fromkeys(state for each in progress for state in each.states))
    columns = ("task", "method", "trials", *states, "under way", "waiting", "pruned at each rung", "confirmed")
    rows = [
        (
            each.task,
            each.method,
            each.begun if each.wanted is None else each.wanted,
            *(each.states.get(state, 0) for state in states),
            each.begun - each.ended,
            None if each.wanted is None else max(each.wanted - each.begun, 0),
            ", ".join(f"{left} of {came}" for came, left in each.rungs) or None,
            f"{each.confirmed} of {each.to_confirm}" if each.to_confirm else None,
        )
        for each in progress
    ]
    return plain_table(columns, rows, title="The search: trials of each method, and runs of its winners")
