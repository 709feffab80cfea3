"""An analysis → charts for plotly.js, as plain data.

Colours are names with an @ in front; the page's script puts the theme's values in their place, so that a chart is
right in the light and in the dark.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manytune.data.metrics import Metric
from manytune.methods.base import Axis
from manytune.report.analysis import Analysis
from manytune.report.series import COSTS, Curve, Look, SweptSeries, curves, front, looks, quantities, references, swept
from manytune.report.sheets import show
from manytune.report.task_table import MethodRow

_MOST_LINES = 60  # runs drawn one by one; of more, their band alone can be read
_MOST_SHOWN = 24  # configurations; of more, the best one of each method shows at first, the others by the legend
_PANELS = ("", "2", "3", "4")


@dataclass(frozen=True)
class Chart:
    """A chart, and what it shows in words."""

    key: str
    title: str
    alt: str
    """What somebody who cannot see it should know."""
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    """Pixels on a wide page."""
    narrow: dict[str, Any] | None = None
    """Changes of the layout on a narrow page; `height` among them."""
    choices: tuple[dict[str, Any], ...] = ()
    """Other horizontal axes to choose from: title, x of every trace, whether logarithmic."""


def score_chart(analysis: Analysis) -> Chart:
    """Every seed's best score, and the mean with its standard deviation, by configuration."""
    look, rows, title = looks(analysis), analysis.rows, analysis.metric.title
    data: list[dict[str, Any]] = []
    for row in reversed(rows):  # plotly's first category is the lowest one
        own, best, scored = look[row.label], row.primary.best, row.scored(analysis.metric.name)
        data.append(
            _dots(own.markup)
            | {
                "x": [score for _, score in scored],
                "y": [own.markup] * len(scored),
                "text": [f"seed {run.seed}" for run, _ in scored],
                "hovertemplate": f"%{{y}}, %{{text}}<br>{title} %{{x:.4f}}<extra></extra>",
                "marker": {"color": f"{own.paint}/0.6", "size": 9, "symbol": own.symbol},
            }
        )
        data.append(
            _dots(f"{own.markup}, mean")
            | {
                "x": [] if best.mean is None else [best.mean],
                "y": [] if best.mean is None else [own.markup],
                "error_x": {"type": "data", "array": [best.deviation or 0], "color": own.paint, "thickness": 2},
                "hovertemplate": f"%{{y}}, mean of {best.count}<br>{title} %{{x:.4f}}<extra></extra>",
                "marker": {"color": own.paint, "size": 15, "symbol": "line-ns-open", "line": {"width": 3}},
            }
        )
    said = "; ".join(f"{look[row.label].name} {show(row.mean, 'score')}" for row in rows)
    return Chart(
        f"{analysis.key}-chart-scores",
        f"{title} of every seed, with mean ± standard deviation",
        f"Dots: {title} of every seed by configuration. Means: {said}.",
        data,
        {
            "xaxis": {"title": {"text": title}, "zeroline": False},
            "yaxis": {
                "automargin": True,
                "categoryorder": "array",
                "categoryarray": [look[row.label].markup for row in reversed(rows)],
                "ticksuffix": "  ",
                "range": [-0.7, len(rows) - 0.3],
            },
            "showlegend": False,
        },
        height=90 + 38 * max(len(rows), 3),
    )


def curve_chart(analysis: Analysis) -> Chart | None:
    """Score, losses and learning rate by step; None without histories."""
    look = looks(analysis)
    first_seen = {row.label for row in (analysis.rows if len(look) <= _MOST_SHOWN else analysis.best_rows)}
    found = [curves(analysis, value) for _, _, value in quantities(analysis.metric)]
    return draw_curves(analysis.key, analysis.metric, look, found, first_seen)


def draw_curves(
    key: str,
    metric: Metric,
    look: Mapping[str, Look],
    found: Sequence[Sequence[Curve]],
    first_seen: Collection[str] = (),
) -> Chart | None:
    """A panel for each of `quantities`, of which `found` holds the curves; None without curves.

    The labels in `first_seen` are shown at first, the others by a click in the legend; if it is empty, as many as can
    be told apart are shown.
    """
    count = max((sum(len(curve.runs) for curve in panel) for panel in found), default=0)
    single = count <= _MOST_LINES
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"legend": {"groupclick": "togglegroup"}, "hovermode": "closest"}
    narrow: dict[str, Any] = {"height": 1150}
    shown = first_seen or list(look)[:_MOST_SHOWN]
    for index, (panel, (_, title, _), panel_curves) in enumerate(zip(_PANELS, quantities(metric), found, strict=True)):
        for curve in panel_curves:
            own, name = look[curve.label], look[curve.label].markup
            axes = {"xaxis": f"x{panel}", "yaxis": f"y{panel}", "legendgroup": curve.label, "type": "scatter"}
            if curve.label not in shown:
                axes["visible"] = "legendonly"
            for _, seed, state, steps, values in curve.runs if single else ():
                data.append(
                    {
                        **axes,
                        "mode": "lines",
                        "name": f"{name}, seed {seed}",
                        "showlegend": False,
                        "x": list(steps),
                        "y": _short(values),
                        "line": {"color": f"{own.paint}/0.35", "width": 1, "dash": own.dash},
                        "hovertemplate": f"{name}, seed {seed} ({state})<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                    }
                )
            if not curve.steps:
                continue
            if curve.low != curve.high:
                data.append(
                    {
                        **axes,
                        "mode": "lines",
                        "name": f"{name}, range",
                        "showlegend": False,
                        "hoverinfo": "skip",
                        **_band(curve.steps, _short(curve.low), _short(curve.high), f"@{own.color}/0.08"),
                    }
                )
            data.append(
                {
                    **axes,
                    "mode": "lines+markers" if len(curve.steps) <= 30 else "lines",
                    "name": name,
                    "showlegend": index == 0,
                    "x": list(curve.steps),
                    "y": _short(curve.mean),
                    "line": {"color": own.paint, "width": 2.5, "dash": own.dash},
                    "marker": {"symbol": own.symbol, "size": 6, "color": own.paint},
                    "hovertemplate": f"{name}, mean<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                }
            )
        line, column = divmod(index, 2)
        layout[f"xaxis{panel}"] = {
            "domain": [0.55 * column, 0.45 + 0.55 * column],
            "anchor": f"y{panel}",
            "title": {"text": "step"},
        }
        layout[f"yaxis{panel}"] = {
            "domain": [0.57, 1.0] if line == 0 else [0.0, 0.43],
            "anchor": f"x{panel}",
            "title": {"text": title, "standoff": 6},
            "exponentformat": "e",
        }
        narrow[f"xaxis{panel}.domain"] = [0, 1]
        narrow[f"yaxis{panel}.domain"] = [0.78 - 0.26 * index, 0.98 - 0.26 * index]
    if not data:
        return None
    return Chart(
        f"{key}-chart-curves",
        "Training, step by step",
        f"{metric.title}, evaluation loss, training loss and learning rate by step: the mean over the seeds "
        "that finished, the range between the lowest and the highest of them"
        + (", and every run as a thin line." if single else f". {count} runs are not drawn one by one."),
        data,
        layout,
        height=720,
        narrow=narrow,
    )


def axis_chart(axis: Axis, analysis: Analysis) -> Chart | None:
    """Score against a hyper-parameter; None where no series has two values of it.

    Methods without this hyper-parameter are lines where they have a `reference_dash`.
    """
    sweeps, metric = swept(analysis, axis), analysis.metric.title
    if not sweeps:
        return None
    values = sorted({value for sweep in sweeps for value, _ in sweep.points})
    data = [trace for sweep in sweeps for trace in _sweep_traces(metric, sweep)]
    for own, mean, dash in references(analysis, axis):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"best {own.markup}" if len(own.name.split()) > 1 else own.markup,
                "x": [values[0], values[-1]],
                "y": [mean, mean],
                "line": {"color": f"@{own.color}", "width": 2, "dash": dash},
                "hovertemplate": f"{own.markup}: %{{y:.4f}}<extra></extra>",
            }
        )

    def mean_at(value: float, row: MethodRow) -> str:
        return f"{axis.prefix}{show(value, axis.kind)} {show(row.mean, 'score')}"

    said = "; ".join(f"{sweep.name}: {', '.join(mean_at(*point) for point in sweep.points)}" for sweep in sweeps)
    ticks = {"type": "log", "tickvals": values, "ticktext": [show(value, axis.kind) for value in values]}
    return Chart(
        f"{analysis.key}-chart-{axis.key}",
        f"Score against {axis.title}",
        f"Mean {metric} by {axis.title}, with the standard deviation over seeds as a band. {said}.",
        data,
        {"xaxis": {"title": {"text": axis.title}, **ticks}, "yaxis": {"title": {"text": metric}}},
        height=400,
    )


def _sweep_traces(metric: str, sweep: SweptSeries) -> list[dict[str, Any]]:
    name, color = sweep.look.markup, f"@{sweep.look.color}"
    x = [value for value, _ in sweep.known]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "showlegend": False,
            "legendgroup": name,
            "hoverinfo": "skip",
            **_band(x, sweep.band(-1), sweep.band(1), f"{color}/0.15"),
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "legendgroup": name,
            "x": x,
            "y": sweep.band(0),
            "text": [f"{best.count} seeds" for _, best in sweep.known],
            "line": {"color": color, "width": 2.5, "dash": sweep.look.dash},
            "marker": {"color": color, "size": 9, "symbol": sweep.look.symbol},
            "hovertemplate": f"{name}, %{{x}}<br>{metric} %{{y:.4f}}, %{{text}}<extra></extra>",
        },
    ]


def cost_chart(analysis: Analysis) -> Chart | None:
    """Score against each cost, with the Pareto front; None where no cost is known."""
    rows, look, metric = analysis.ranked, looks(analysis), analysis.metric
    costs = [cost for cost in COSTS if rows and any(cost.value(row) is not None for row in rows)]
    if not costs:
        return None
    choices: list[dict[str, Any]] = []
    for cost in costs:
        known = [(cost.value(row), row.mean) for row in rows]
        points = [(value, mean) for value, mean in known if value is not None and mean is not None]
        best = front(points, less_is_better=cost.less_is_better, higher_is_better=metric.higher_is_better)
        choices.append(
            {
                "title": cost.title,
                "x": [[points[at][0] for at in best], *([value] for value, _ in known)],
                "y": [[points[at][1] for at in best], *([mean] for _, mean in known)],
                "text": [[], *([None if value is None else show(value, cost.kind)] for value, _ in known)],
                "log": all(value > 0 for value, _ in points),
            }
        )
    first = choices[0]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": first["x"][0],
            "y": first["y"][0],
            "line": {"color": "@muted", "width": 1.5, "dash": "dot", "shape": "linear"},
            "hoverinfo": "skip",
        }
    ]
    for index, row in enumerate(rows, 1):  # 0 is the front
        own, deviation = look[row.label], row.primary.best.deviation or 0
        data.append(
            _dots(own.markup)
            | {key: first[key][index] for key in ("x", "y", "text")}
            | {
                "error_y": {"type": "data", "array": [deviation], "color": f"{own.paint}/0.6"},
                "marker": {"color": own.paint, "symbol": own.symbol, "size": 12},
                "hovertemplate": f"{own.markup}<br>%{{text}}<br>{metric.title} %{{y:.4f}}<extra></extra>",
            }
        )
    cost = costs[0]
    said = "; ".join(
        f"{look[row.label].name} {show(cost.value(row), cost.kind)}, {show(row.mean, 'score')}" for row in rows
    )
    return Chart(
        f"{analysis.key}-chart-cost",
        "Score against cost",
        f"Mean {metric.title} against a cost to choose; the dotted line joins what nothing is both cheaper "
        f"and better than. By {cost.title}: {said}.",
        data,
        {
            "xaxis": {"title": {"text": first["title"]}, "type": "log" if first["log"] else "linear"},
            "yaxis": {"title": {"text": metric.title}},
        },
        height=440,
        choices=tuple(choices),
    )


def _dots(name: str) -> dict[str, Any]:
    return {"type": "scatter", "mode": "markers", "name": name}


def _band(x: Sequence[float], low: Sequence[Any], high: Sequence[Any], color: str) -> dict[str, Any]:
    """The area between two lines: along the upper one and back along the lower one."""
    line = {"x": [*x, *reversed(x)], "y": [*high, *reversed(low)]}
    return line | {"fill": "toself", "fillcolor": color, "line": {"width": 0}}


def _short(values: Sequence[float]) -> list[float | None]:
    """Five digits: more cannot be seen, and the page would be twice as large; what is not finite is a gap."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
