"""Parallel coordinates: a line a trial, through the values of all settings of its space to its score."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from manytune.report.search_part.search_facts import Dimension, SearchFacts, SpaceFacts, score_then, trial_of
from manytune.report.search_part.trial_dots import words
from manytune.report.series import plotly_text
from manytune.report.sheets import drawn, show
from manytune.report.traces import Chart, trace
from manytune.storage.record import RunState

_MOST_LINES = 150  # trials in one chart, the best ones


@dataclass(frozen=True)
class _VerticalAxis:
    """One vertical axis, from 0 at the bottom to 1."""

    title: str
    low: float
    high: float
    log: bool = False
    order: Mapping[str, str] | None = None
    """Value as JSON → what is shown of it, from the bottom up; None of numbers."""

    @classmethod
    def of_setting(cls, dimension: Dimension, values: Iterable[Any]) -> _VerticalAxis:
        """The axis of a searched setting, which has these values."""
        if dimension.values is not None:
            order = {json.dumps(value, sort_keys=True): dimension.shown(value) for value in dimension.values}
            return cls(dimension.title, -0.5, len(order) - 0.5, order=order)
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return cls(dimension.title, min(numbers, default=0.0), max(numbers, default=1.0), log=dimension.log)

    def place(self, value: Any) -> float | None:
        """Where a value stands; None where it has no place."""
        if self.order is not None:
            keys = [*self.order]
            key = json.dumps(value, sort_keys=True)
            return self._share(keys.index(key)) if key in keys else None
        return self._share(value) if isinstance(value, int | float) else None

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of the marks beside the axis."""
        if self.order is not None:
            return [(self._share(at), text) for at, text in enumerate(self.order.values())]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(self._share(value), drawn(value)) for value in dict.fromkeys((self.low, middle, self.high))]

    def _share(self, value: float) -> float:
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return round((at - low) / (high - low), 4) if high > low else 0.5


def parallel_charts(search: SearchFacts) -> tuple[Chart, ...]:
    """For each space with two settings or more: its trials as lines through the values that they drew, to the score."""
    made = (_parallel(search, space) for space in search.spaces if len(space.dimensions) > 1)
    return tuple(chart for chart in made if chart is not None)


def _parallel(search: SearchFacts, space: SpaceFacts) -> Chart | None:
    scored = [(run, score) for run in space.trials if (score := score_then(run)) is not None]
    scored = [(run, score) for run, score in scored if run.state in (RunState.FINISHED, RunState.PRUNED)]
    if len(scored) < 2:
        return None
    scored.sort(key=lambda one: search.sign * one[1])  # the best line is drawn last, above the others
    scored = scored[-_MOST_LINES:]
    scales = [
        _VerticalAxis.of_setting(each, [trial_of(run).settings.get(each.name) for run, _ in scored])
        for each in space.dimensions
    ]
    scores = [score for _, score in scored]
    scales.append(_VerticalAxis(search.metric.title, min(scores), max(scores)))
    data, x = [], list(range(len(scales)))
    for rank, (run, score) in enumerate(scored):
        values = [*(trial_of(run).settings.get(each.name) for each in space.dimensions), score]
        y = [scale.place(value) for scale, value in zip(scales, values, strict=True)]
        pruned, best = run.state is RunState.PRUNED, rank == len(scored) - 1
        strength = 0.12 + 0.75 * (rank / (len(scored) - 1)) ** 2
        line = {
            "color": f"{space.look.paint}/{strength:.2f}",
            "width": 3 if best else 1.5,
            "dash": "dot" if pruned else "solid",
        }
        hover = f"%{{text}}<br>{search.metric.title} {show(score, 'score')}"
        text = [words(space, run)] * len(x)
        data.append(
            trace("lines+markers", x, y, hover, text=text, line=line, marker={"size": 5, "color": line["color"]})
        )
    layout = {
        "xaxis": {
            "tickvals": x,
            "ticktext": [plotly_text(scale.title) for scale in scales],
            "range": [-0.35, len(scales) - 0.55],
            "showgrid": True,
            "side": "top",
            "fixedrange": True,
        },
        "yaxis": {"range": [-0.06, 1.06], "visible": False, "fixedrange": True},
        "showlegend": False,
        "hovermode": "closest",
        "annotations": [_tick(at, y, text) for at, scale in enumerate(scales) for y, text in scale.ticks],
    }
    caption = (
        f"{space.look.name}: each line is a trial, through the values that it drew to its score. The darker, the "
        "better the score; the thick one is the best; dotted ones were pruned. Where dark lines meet, values matter."
    )
    alt = (
        f"Parallel coordinates of {len(scored)} trials of {space.look.name}: "
        f"{', '.join(scale.title for scale in scales)}. Best: {space.settings(scored[-1][0])}, "
        f"{show(scored[-1][1], 'score')}."
    )
    key = f"{search.key}-chart-parallel-{search.spaces.index(space) + 1}"
    return Chart(key, f"Settings and scores together: {space.look.name}", alt, data, layout, 380, caption=caption)


def _tick(at: int, y: float, text: str) -> dict[str, Any]:
    """A value beside the axis `at`, above the lines."""
    font = {"color": "@muted", "size": 11}
    place = {"x": at, "y": y, "xanchor": "right", "xshift": -7, "showarrow": False}
    return {**place, "text": plotly_text(text), "font": font, "bgcolor": "@card/0.85", "borderpad": 1}
