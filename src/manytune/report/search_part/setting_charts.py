"""Trials by their settings, a panel a setting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from manytune.report.search_part.search_facts import Dimension, SearchFacts, SpaceFacts, trial_of
from manytune.report.search_part.trial_dots import DOTS_CAPTION, dots
from manytune.report.series import plotly_text
from manytune.report.traces import Chart
from manytune.storage.record import RunRecord

_MOST_PANELS = 12
_ROW = 270  # pixels of a line of panels
_FIRST_ROW = 70  # more: the legend
_GAP = 0.28  # between two lines of panels, of the height of one with its gap


def slice_chart(search: SearchFacts) -> Chart | None:
    """Score against each searched setting, the spaces that have it in one panel; None where none was searched."""
    settings: dict[str, list[tuple[SpaceFacts, Dimension]]] = {}
    for space in search.spaces:
        for each in space.dimensions:
            settings.setdefault(each.name, []).append((space, each))
    shown = list(settings.values())[:_MOST_PANELS]
    if not shown:
        return None
    rows = -(-len(shown) // 2)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"legend": {"groupclick": "togglegroup"}, "hovermode": "closest"}
    narrow: dict[str, Any] = {"height": _FIRST_ROW + _ROW * len(shown)}
    seen: set[str] = set()
    for at, panel in enumerate(shown):
        axis = "" if at == 0 else str(at + 1)
        title, choices = panel[0][1].title, _choices([each for _, each in panel])
        for space, each in panel:
            for one in dots(search, space, _place(each.name, choices), xaxis=f"x{axis}", yaxis=f"y{axis}"):
                data.append(one | {"showlegend": one["showlegend"] and space.name not in seen})
            seen.add(space.name)
        down, across = divmod(at, 2)
        width = [0.55 * across, 0.45 + 0.55 * across] if len(shown) > 1 else [0, 1]
        x = {"domain": width, "anchor": f"y{axis}", "title": {"text": plotly_text(title), "standoff": 6}}
        y = {"domain": _domain(down, rows), "anchor": f"x{axis}", "title": {"text": search.metric.title, "standoff": 4}}
        layout |= {f"xaxis{axis}": x | _scale(panel, choices), f"yaxis{axis}": y}
        narrow |= {f"xaxis{axis}.domain": [0, 1], f"yaxis{axis}.domain": _domain(at, len(shown))}
    names = ", ".join(panel[0][1].title for panel in shown)
    alt = f"{search.metric.title} of every trial against each searched setting, in panels: {names}."
    caption = f"Each trial at the values that it drew: a flat top is easy to hit, a narrow peak hard. {DOTS_CAPTION}."
    title = "Score against each setting"
    return Chart(
        f"{search.key}-chart-slices", title, alt, data, layout, _FIRST_ROW + _ROW * rows, narrow, caption=caption
    )


def _domain(row: int, rows: int) -> list[float]:
    """The part of the height, from the bottom, of a line of panels; between two there is room for an axis."""
    high = (1 - _GAP * (rows - 1) / rows) / rows
    top = 1 - row * (high + _GAP / rows)
    return [max(0.0, round(top - high, 4)), round(top, 4)]


def _choices(panel: Sequence[Dimension]) -> dict[str, str] | None:
    """Value as JSON → what is shown of it, in the order of the axis; None where a space draws it from a range."""
    if any(each.values is None for each in panel):
        return None
    return {json.dumps(value, sort_keys=True): each.shown(value) for each in panel for value in each.values or ()}


def _place(name: str, choices: Mapping[str, str] | None) -> Any:
    """Trial → where it stands on the axis of a setting; None where it has none."""
    order = {value: at for at, value in enumerate(choices or ())}

    def place(run: RunRecord) -> float | None:
        value = trial_of(run).settings.get(name)
        if choices is not None:
            return order.get(json.dumps(value, sort_keys=True))
        return float(value) if isinstance(value, int | float) else None

    return place


def _scale(panel: Sequence[tuple[SpaceFacts, Dimension]], choices: Mapping[str, str] | None) -> dict[str, Any]:
    """How an axis is laid out: the values to choose from side by side, or numbers."""
    if choices is not None:
        ticks = {"tickvals": list(range(len(choices))), "ticktext": [plotly_text(text) for text in choices.values()]}
        return {**ticks, "range": [-0.5, len(choices) - 0.5]}
    return {"type": "log", "dtick": 1, "exponentformat": "e"} if any(each.log for _, each in panel) else {}
