"""What the terminal shows of a search: for each task a line a space, with what its trials found and took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from manytune.report.search_part.search_facts import SearchFacts, SpaceFacts, searches_in
from manytune.report.search_part.search_remarks import about_choices, about_ease, about_rates
from manytune.report.sheets import UNKNOWN, show
from manytune.report.views import plain_table
from manytune.storage.directory import Store
from manytune.storage.record import RunState
from manytune.utils.text import counted

_COLUMNS = ("space", "trials", "pruned", "best score", "settings of the best", "seconds")


def search_tables(store: Store, *, remarks: bool = False) -> Group | None:
    """A table for each task that a study searches; None where it does not, or no trial has ended.

    The best score is that of the finished trial which a confirmation would train again; seconds are of training and
    evaluation, those of pruned trials included. With `remarks`, what the trials say of the methods' settings follows.
    """
    study = store.study()
    found = () if study.search is None else searches_in(study, store.trials())
    return Group(*(part for each in found for part in _table(each, remarks))) if found else None


def _table(search: SearchFacts, remarks: bool) -> Iterable[RenderableType]:
    title = f"{search.title} on {search.model}: the search, {search.metric.title} on {search.selecting_rows}"
    yield plain_table(_COLUMNS, (_row(space) for space in search.ranked), title=title)
    for space in search.spaces:
        states = Counter(run.state for run in space.in_state(RunState.COLLAPSED, RunState.FAILED))
        if states:
            what = ", ".join(f"{count} {state}" for state, count in states.items())
            line = f"{space.look.name}: of {counted(len(space.trials), 'trial')}, {what}"
            yield Padding(Text(line), (0, 0, 0, 2), expand=False)
    said = (about_ease, about_choices, about_rates) if remarks else ()
    for line in (line for about in said for line in about(search)):
        yield Padding(Text(line), (1, 0, 0, 2))
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
