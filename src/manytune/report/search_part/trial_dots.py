"""How trials are drawn, the same in every chart: finished, pruned or without success."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from manytune.report.search_part.search_facts import SearchFacts, SpaceFacts, score_then, trial_of
from manytune.report.series import plotly_text
from manytune.report.sheets import show
from manytune.report.traces import trace
from manytune.storage.record import RunRecord, RunState

DOTS_CAPTION = (
    "● trained to its end; ○ pruned, at its last score: how it would have ended is not known; × did not train, at its "
    "score or the lowest of all"
)

_STATES: Sequence[tuple[str, tuple[RunState, ...]]] = (
    ("finished", (RunState.FINISHED,)),
    ("pruned", (RunState.PRUNED,)),
    ("did not train", (RunState.COLLAPSED, RunState.FAILED)),
)


def dots(
    search: SearchFacts, space: SpaceFacts, value: Callable[[RunRecord], float | None], **rest: Any
) -> Iterable[dict[str, Any]]:
    """Traces of a space's trials at `value` and their scores, one for each way to end; without a value none is drawn.

    The first one stands in the legend for all.
    """
    named = False
    for name, states in _STATES:
        runs = [run for run in space.in_state(*states) if value(run) is not None]
        if not runs:
            continue
        look = space.look
        hover = f"{look.markup}, %{{text}}<br>{search.metric.title} %{{y:.4f}}"
        yield trace(
            "markers",
            [value(run) for run in runs],
            [search.worst if (score := score_then(run)) is None else score for run in runs],
            hover,
            name=look.markup,
            legendgroup=space.name,
            showlegend=not named,
            text=[words(space, run) for run in runs],
            marker=_marker(space, name),
            **rest,
        )
        named = True


def _marker(space: SpaceFacts, state: str) -> Mapping[str, Any]:
    look = space.look
    if state == "finished":
        return {"color": f"{look.paint}/0.75", "size": 8, "symbol": look.symbol}
    if state == "pruned":
        return {"color": look.paint, "size": 7, "symbol": f"{look.symbol}-open", "line": {"width": 1.3}}
    return {"color": look.paint, "size": 9, "symbol": "x-thin-open", "line": {"width": 2.2}}


def words(space: SpaceFacts, run: RunRecord) -> str:
    """What is said of a trial under the pointer: "trial 7 (pruned): lr 3.1e-4, r=8, 45.0 s"."""
    ended = "" if run.state is RunState.FINISHED else f" ({run.state})"
    cost = run.cost.train_seconds
    facts = [space.settings(run), *([] if cost is None else [show(cost, "seconds")])]
    text = f"trial {trial_of(run).number}{ended}: {', '.join(filter(None, facts))}"
    return plotly_text(text)
