"""Charts of what a search finds for what it takes: the best of n trials, and the cost of reaching a score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from manytune.report.search_part.search_facts import SearchFacts, SpaceFacts
from manytune.report.sheets import show
from manytune.report.traces import Chart, area, short, trace
from manytune.stats.budget import BudgetCurve, CostToReach, budget_curve, cost_to_reach
from manytune.utils.text import counted

_PAD = 0.06  # of the range of scores, beside it


def budget_chart(search: SearchFacts) -> Chart | None:
    """Expected and median best score by number of trials, and by what they take; None where no space has two trials."""
    known = [(space, budget_curve(space.facts)) for space in search.spaces]
    curves = [(space, curve) for space, curve in known if curve is not None and len(curve.best.trials) > 1]
    if not curves:
        return None
    low, high = _range([score for _, curve in curves for score in (*curve.best.median, *curve.best.expected)], search)
    data = [one for space, curve in curves for one in _best_traces(search, space, curve, (low, high))]
    listed = "; ".join(
        f"{space.look.name}: of 1 trial {_score(search, curve, 0)}, of {len(curve.best.trials)} "
        f"{_score(search, curve, -1)}"
        for space, curve in curves
    )
    first = "trials"
    choices = tuple(
        _choice(data, title, [times for times in _times(curves, at) for _ in range(3)], at > 0)
        for at, title in enumerate(
            (first, "time of the trials, with this search's pruning", "time of the trials if all train to their end")
        )
    )
    layout = {
        "xaxis": {"title": {"text": first}},
        "yaxis": {"title": {"text": f"best {search.metric.title} on {search.selecting_rows}"}, "range": [low, high]},
        "legend": {"groupclick": "togglegroup"},
    }
    caption = (
        "What a search of so many trials finds: line, the mean best score; dots, the score that half of all such "
        "searches reach, with its 95 % band. A curve that is flat early needs little search. Estimated from the trials "
        "chosen beforehand to train to their end; where nothing is shaded above the dots, they are too few for it."
    )
    alt = f"Best {search.metric.title} of n trials by space, the mean, and the median with its band. Mean {listed}."
    return Chart(
        f"{search.key}-chart-budget", "Best score by budget", alt, data, layout, 430, choices=choices, caption=caption
    )


def _best_traces(
    search: SearchFacts, space: SpaceFacts, curve: BudgetCurve, ends: tuple[float, float]
) -> Iterable[dict[str, Any]]:
    """A space's band, cut at the `ends` of the axis, its mean and its median."""
    look, best, x = space.look, curve.best, curve.best.trials.tolist()
    # Where the trials do not bound the band from above, nothing is shaded there.
    bounds = (best.low, np.where(np.isfinite(best.high), best.high, best.median))
    lower, upper = (short(np.clip(search.sign * each, *ends).tolist()) for each in bounds)
    shared: dict[str, Any] = {"legendgroup": space.name}
    yield area(x, lower, upper, f"@{look.color}/0.13", name=f"{look.name}, 95 % band", **shared)
    shared |= {"name": look.markup, "text": [counted(int(n), "trial") for n in x]}
    for name, values, style in (
        ("mean", best.expected, {"width": 2.5, "dash": look.dash}),
        ("median", best.median, {"width": 1.2, "dash": "dot"}),
    ):
        hover = f"{look.markup}, {name} best of %{{text}}<br>{search.metric.title} %{{y:.4f}}"
        shared |= {"showlegend": name == "mean", "line": {"color": look.paint, **style}}
        yield trace("lines", x, short((search.sign * values).tolist()), hover, **shared)


def _range(scores: Sequence[float], search: SearchFacts) -> tuple[float, float]:
    """The ends of the axis of scores."""
    values = [search.sign * score for score in scores]
    pad = _PAD * (max(values) - min(values)) or search.margin or _PAD
    return min(values) - pad, max(values) + pad


def _score(search: SearchFacts, curve: BudgetCurve, at: int) -> str:
    return show(search.sign * float(curve.best.expected[at]), "score")


def _times(curves: Sequence[tuple[SpaceFacts, BudgetCurve]], at: int) -> list[list[float]]:
    """What n trials take, by the `at`-th of the axes to choose from, of each space."""
    return [
        short((curve.best.trials, curve.seconds, curve.unpruned_seconds)[at].tolist())  # type: ignore[misc]
        for _, curve in curves
    ]


def _choice(data: Sequence[dict[str, Any]], title: str, x: Sequence[list[float]], log: bool) -> dict[str, Any]:
    """One horizontal axis to choose: an area goes along it and back."""
    return {
        "title": title,
        "x": [[*each, *reversed(each)] if "fill" in one else each for one, each in zip(data, x, strict=True)],
        "y": [one["y"] for one in data],
        "text": [one.get("text", []) for one in data],
        **_scale([value for each in x for value in each], log),
    }


def _scale(values: Sequence[float], seconds: bool) -> dict[str, Any]:
    """Whether a horizontal axis is logarithmic, and its marks: seconds span tenfold and more, trials do not."""
    if not seconds or min(values) <= 0:
        return {"log": False}
    return {"log": True, "axis": time_marks(min(values), max(values))}


def reach_chart(search: SearchFacts) -> Chart | None:
    """Seconds until a score was reached, as the trials came and over all orders; None where no trial has a score."""
    data: list[dict[str, Any]] = []
    told = []
    for space in search.spaces:
        scores = sorted({trial.score for trial in space.facts if trial.score is not None})
        costs = [cost for score in scores if (cost := cost_to_reach(space.facts, score)).seconds]
        if costs:
            data += _reach_traces(search, space, costs)
            best, took = show(search.sign * costs[-1].target, "score"), show(costs[-1].seconds, "seconds")
            told.append(f"{space.look.name} {best} after {took}")
    if not data:
        return None
    times = [x for one in data for x in one["x"]]
    title = {"text": "time of the space's trials, pruned ones included"}
    layout = {
        "xaxis": {"title": title, "type": "log", **time_marks(min(times), max(times))},
        "yaxis": {"title": {"text": f"{search.metric.title} reached on {search.selecting_rows}"}},
        "legend": {"groupclick": "togglegroup"},
    }
    caption = (
        "How long a space took until a trial reached a score: line, the mean over all orders in which its trials could "
        "have come; dots, the order in which they came. Further to the left is cheaper, further up better."
    )
    alt = f"{search.metric.title} reached against seconds of search, by space. As the trials came: {'; '.join(told)}."
    return Chart(f"{search.key}-chart-reach", "Cost to reach a score", alt, data, layout, 400, caption=caption)


def _reach_traces(search: SearchFacts, space: SpaceFacts, costs: Sequence[CostToReach]) -> Iterable[dict[str, Any]]:
    """What it took a space to reach ever better scores: as its trials came, to their end, and in any order."""
    look, y = space.look, short([search.sign * cost.target for cost in costs])
    came, meant = [cost.seconds or 0.0 for cost in costs], [cost.expected_seconds or 0.0 for cost in costs]
    came, marker = [*came, costs[-1].spent], {"size": 5, "color": look.paint}
    for name, x, mode, style in (
        ("as they came", came, "lines", {"dash": "dot", "shape": "hv", "width": 1.2}),
        ("in any order", meant, "lines+markers", {"dash": look.dash, "width": 2.5}),
    ):
        hover = f"{look.markup}, {name}<br>{search.metric.title} %{{y:.4f}} after %{{text}}"
        facts = {"name": look.markup, "legendgroup": space.name, "showlegend": x is meant, "marker": marker}
        text = [show(value, "seconds") for value in x]
        scores = [*y, y[-1]][: len(x)]
        yield trace(mode, short(x), scores, hover, text=text, line={"color": look.paint, **style}, **facts)


def time_marks(low: float, high: float) -> dict[str, Any]:
    """Marks of a logarithmic axis from `low` to `high` seconds: "1 min", "10 min", "1 h"."""
    values = [value for value in _TIMES if low / 2 <= value <= high * 2]
    return {"tickvals": values, "ticktext": [_time(value) for value in values]}


_TIMES: tuple[float, ...] = (
    *(0.01, 0.1, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200),
    *(86400 * days for days in (1, 2, 5, 10, 30, 100, 365)),
)
"""Seconds that an axis may mark."""


def _time(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
