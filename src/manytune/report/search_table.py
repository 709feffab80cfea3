"""What the terminal shows of a search: for each task a line a space, with what its trials found and took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from manytune.config.search import Search
from manytune.report.search_part.search_facts import SearchFacts, SpaceFacts, searches_of
from manytune.report.sheets import UNKNOWN, show
from manytune.report.views import plain_table
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord, RunState
from manytune.utils.text import counted

_COLUMNS = ("space", "trials", "pruned", "best score", "settings of the best", "seconds")


def search_tables(store: Store) -> Group | None:
    """The tables of a study's trials; None where it does not search, or no trial has ended."""
    study = store.study()
    return None if study.search is None else trial_tables(store.trials(), study.search)


def trial_tables(records: Iterable[RunRecord], search: Search | None = None) -> Group | None:
    """A table for each task and backbone that has trials among these records; None where none has.

    The best score is that of the finished trial which a confirmation would train again; seconds are of training and
    evaluation, those of pruned trials included.
    """
    found = searches_of(records, search=search)
    return Group(*(part for each in found for part in _table(each))) if found else None


def _table(search: SearchFacts) -> Iterable[RenderableType]:
    title = f"{search.title} on {search.model}: the search, {search.metric.title} on {search.selecting_rows}"
    yield plain_table(_COLUMNS, (_row(space) for space in search.ranked), title=title)
    for space in search.spaces:
        states = Counter(run.state for run in space.in_state(RunState.COLLAPSED, RunState.FAILED))
        if states:
            what = ", ".join(f"{count} {state}" for state, count in states.items())
            line = f"{space.look.name}: of {counted(len(space.trials), 'trial')}, {what}"
            yield Padding(Text(line), (0, 0, 0, 2), expand=False)
    yield Text()


def _row(space: SpaceFacts) -> tuple[object, ...]:
    winner = space.winner
    return (
        space.look.name,
        len(space.trials),
        len(space.in_state(RunState.PRUNED)),
        UNKNOWN if winner is None else show(winner.best_score, "score"),
        UNKNOWN if winner is None else space.settings(winner) or "as given",
        show(space.seconds, "seconds"),
    )
