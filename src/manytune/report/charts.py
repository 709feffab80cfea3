"""An analysis → charts for plotly.js, as plain data.

Colours are names with an @ in front; the page's script puts the theme's values in their place, so that a chart is
right in the light and in the dark.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manytune.data.metrics import Metric
from manytune.report.analysis import Analysis
from manytune.report.score_sheets import swept
from manytune.report.series import COSTS, Curve, Look, curves, front, looks, quantities
from manytune.report.sheets import show
from manytune.report.task_table import MethodRow

__all__ = ["Chart", "cost_chart", "curve_chart", "draw_curves", "rank_chart", "rate_chart", "score_chart"]

_MOST_LINES = 60  # runs drawn one by one; more are a thicket, and their band says the same
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
    look, rows, names = _looks(analysis), analysis.rows, looks(analysis)
    data: list[dict[str, Any]] = []
    for row in reversed(rows):  # plotly's first category is the lowest one
        own, metric = look[row.label], analysis.metric
        scores = [(run, run.best_score) for run in row.finished if run.best_score is not None]
        seeds = {
            "type": "scatter",
            "mode": "markers",
            "name": own.name,
            "x": [score for _, score in scores],
            "y": [own.name] * len(scores),
            "text": [f"seed {run.seed}" for run, _ in scores],
            "hovertemplate": f"%{{y}}, %{{text}}<br>{metric.title} %{{x:.4f}}<extra></extra>",
            "marker": {"color": f"@{own.color}~{own.tone:.2f}/0.6", "size": 9, "symbol": own.symbol},
        }
        best = row.primary.best
        mean = {
            "type": "scatter",
            "mode": "markers",
            "name": f"{own.name}, mean",
            "x": [] if best.mean is None else [best.mean],
            "y": [] if best.mean is None else [own.name],
            "error_x": {
                "type": "data",
                "array": [best.deviation or 0],
                "color": f"@{own.color}~{own.tone:.2f}",
                "thickness": 2,
            },
            "hovertemplate": f"%{{y}}, mean of {best.count}<br>{metric.title} %{{x:.4f}}<extra></extra>",
            "marker": {
                "color": f"@{own.color}~{own.tone:.2f}",
                "size": 15,
                "symbol": "line-ns-open",
                "line": {"width": 3},
            },
        }
        data += [seeds, mean]
    said = "; ".join(f"{names[row.label].name} {_mean(row)}" for row in rows)
    order = [look[row.label].name for row in reversed(rows)]
    return Chart(
        f"{analysis.key}-chart-scores",
        f"{analysis.metric.title} of every seed, with mean ± standard deviation",
        f"Dots: {analysis.metric.title} of every seed by configuration. Means: {said}.",
        data,
        {
            "xaxis": {"title": {"text": analysis.metric.title}, "zeroline": False},
            "yaxis": {
                "automargin": True,
                "categoryorder": "array",
                "categoryarray": order,
                "ticksuffix": "  ",
                "range": [-0.7, len(rows) - 0.3],
            },
            "showlegend": False,
        },
        height=90 + 38 * max(len(rows), 3),
    )


def curve_chart(analysis: Analysis) -> Chart | None:
    """Score, losses and learning rate by step; None without histories."""
    look = _looks(analysis)
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
    """A panel for each quantity; None without curves.

    Args:
        key: Of the task.
        metric: That ranks.
        look: Label → look.
        found: The curves of each of `quantities`.
        first_seen: Labels that are shown at first, the others by the legend; none: all, if they are not too many.
    """
    count = max((sum(len(curve.runs) for curve in panel) for panel in found), default=0)
    lines = count <= _MOST_LINES
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"legend": {"groupclick": "togglegroup"}, "hovermode": "closest"}
    narrow: dict[str, Any] = {"height": 1150}
    shown = first_seen or (look if len(look) <= _MOST_SHOWN else list(look)[:_MOST_SHOWN])
    for place, (panel, (_, title, _)) in enumerate(zip(_PANELS, quantities(metric), strict=True)):
        for curve in found[place]:
            own = look[curve.label]
            axes = {"xaxis": f"x{panel}", "yaxis": f"y{panel}", "legendgroup": curve.label, "type": "scatter"}
            if curve.label not in shown:
                axes["visible"] = "legendonly"
            if lines:
                data += [
                    {
                        **axes,
                        "mode": "lines",
                        "name": f"{own.name}, seed {seed}",
                        "showlegend": False,
                        "x": list(steps),
                        "y": _short(values),
                        "line": {"color": f"@{own.color}~{own.tone:.2f}/0.35", "width": 1, "dash": own.dash},
                        "hovertemplate": f"{own.name}, seed {seed} ({state})<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                    }
                    for _, seed, state, steps, values in curve.runs
                ]
            if not curve.steps:
                continue
            if any(low != high for low, high in zip(curve.low, curve.high, strict=True)):
                data.append(
                    {
                        **axes,
                        "mode": "lines",
                        "name": f"{own.name}, range",
                        "showlegend": False,
                        "hoverinfo": "skip",
                        "x": [*curve.steps, *reversed(curve.steps)],
                        "y": _short([*curve.high, *reversed(curve.low)]),
                        "fill": "toself",
                        "fillcolor": f"@{own.color}/0.08",
                        "line": {"width": 0},
                    }
                )
            data.append(
                {
                    **axes,
                    "mode": "lines+markers" if len(curve.steps) <= 30 else "lines",
                    "name": own.name,
                    "showlegend": place == 0,
                    "x": list(curve.steps),
                    "y": _short(curve.mean),
                    "line": {"color": f"@{own.color}~{own.tone:.2f}", "width": 2.5, "dash": own.dash},
                    "marker": {"symbol": own.symbol, "size": 6, "color": f"@{own.color}~{own.tone:.2f}"},
                    "hovertemplate": f"{own.name}, mean<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                }
            )
        column, line = place % 2, place // 2
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
        narrow[f"yaxis{panel}.domain"] = [0.78 - 0.26 * place, 0.98 - 0.26 * place]
    if not data:
        return None
    return Chart(
        f"{key}-chart-curves",
        "Training, step by step",
        f"{metric.title}, evaluation loss, training loss and learning rate by step: the mean over the seeds "
        "that finished, the range between the lowest and the highest of them"
        + (", and every run as a thin line." if lines else f". {count} runs are not drawn one by one."),
        data,
        layout,
        height=720,
        narrow=narrow,
    )


def rank_chart(analysis: Analysis) -> Chart | None:
    """Score against LoRA rank, with full fine-tuning and BitFit as lines; None with fewer than two ranks."""
    series = swept(analysis, None, "rank")
    if not series:
        return None
    every = sorted({value for points in series.values() for value, _ in points})
    data = _swept(analysis, series)
    for row in analysis.best_rows:
        if row.runs[0].method in ("full", "bitfit"):
            own, mean = _looks(analysis)[row.label], analysis.mean(row)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"best {own.name}" if len(own.name.split()) > 1 else own.name,
                    "x": [every[0], every[-1]],
                    "y": [mean, mean],
                    "line": {"color": f"@{own.color}", "width": 2, "dash": "dash" if own.color == "full" else "dot"},
                    "hovertemplate": f"{own.name}: %{{y:.4f}}<extra></extra>",
                }
            )
    said = "; ".join(f"{name}: " + ", ".join(f"r={v:g} {_mean(row)}" for v, row in p) for name, p in series.items())
    axis = {"type": "log", "tickvals": every, "ticktext": [f"{value:g}" for value in every]}
    return _swept_chart(analysis, "rank", "LoRA rank", "Score against LoRA rank", said, data, axis)


def rate_chart(analysis: Analysis) -> Chart | None:
    """Score against learning rate, of methods with more than one; None where there are none."""
    series = swept(analysis, None, "learning_rate")
    if not series:
        return None
    rates = sorted({value for points in series.values() for value, _ in points})
    said = "; ".join(
        f"{name}: " + ", ".join(f"{show(v, 'rate')} {_mean(row)}" for v, row in p) for name, p in series.items()
    )
    axis = {"type": "log", "tickvals": rates, "ticktext": [show(value, "rate") for value in rates]}
    data = _swept(analysis, series)
    return _swept_chart(analysis, "rates", "learning rate", "Sensitivity to the learning rate", said, data, axis)


def _swept_chart(
    analysis: Analysis,
    stem: str,
    axis_title: str,
    title: str,
    said: str,
    data: list[dict[str, Any]],
    axis: Mapping[str, Any],
) -> Chart:
    return Chart(
        f"{analysis.key}-chart-{stem}",
        title,
        f"Mean {analysis.metric.title} by {axis_title}, with the standard deviation over seeds as a band. {said}.",
        data,
        {
            "xaxis": {"title": {"text": axis_title}, **axis},
            "yaxis": {"title": {"text": analysis.metric.title}},
        },
        height=400,
    )


def _swept(analysis: Analysis, series: Mapping[str, Sequence[tuple[float, MethodRow]]]) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = []
    shades: dict[str, int] = {}
    look = looks(analysis)
    for name, points in series.items():
        color = look[points[0][1].label].color
        shades[color] = shades.get(color, -1) + 1
        own = Look(_plain(name), color, shades[color])
        known = [(value, row.primary.best) for value, row in points if row.primary.best.mean is not None]
        x = [value for value, _ in known]
        mean = [best.mean or 0.0 for _, best in known]
        spread = [best.deviation or 0.0 for _, best in known]
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        data += [
            {
                "type": "scatter",
                "mode": "lines",
                "showlegend": False,
                "legendgroup": own.name,
                "hoverinfo": "skip",
                "x": [*x, *reversed(x)],
                "y": [*high, *reversed(low)],
                "fill": "toself",
                "fillcolor": f"@{color}/0.15",
                "line": {"width": 0},
            },
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": own.name,
                "legendgroup": own.name,
                "x": x,
                "y": mean,
                "text": [f"{best.count} seeds" for _, best in known],
                "line": {"color": f"@{color}", "width": 2.5, "dash": own.dash},
                "marker": {"color": f"@{color}", "size": 9, "symbol": own.symbol},
                "hovertemplate": f"{own.name}, %{{x}}<br>{analysis.metric.title} %{{y:.4f}}, %{{text}}<extra></extra>",
            },
        ]
    return data


def cost_chart(analysis: Analysis) -> Chart | None:
    """Score against each cost, with the Pareto front; None where no cost is known."""
    rows, look, names = analysis.ranked, _looks(analysis), looks(analysis)
    costs = [cost for cost in COSTS if rows and any(cost.value(row) is not None for row in rows)]
    if not costs:
        return None
    choices: list[dict[str, Any]] = []
    for cost in costs:
        known = [(cost.value(row), analysis.mean(row)) for row in rows]
        points = [(value, mean) for value, mean in known if value is not None and mean is not None]
        best = front(points, less_is_better=cost.less_is_better, higher_is_better=analysis.metric.higher_is_better)
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
    for place, row in enumerate(rows, 1):
        own = look[row.label]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": own.name,
                "x": first["x"][place],
                "y": first["y"][place],
                "text": first["text"][place],
                "error_y": {
                    "type": "data",
                    "array": [row.primary.best.deviation or 0],
                    "color": f"@{own.color}~{own.tone:.2f}/0.6",
                },
                "marker": {"color": f"@{own.color}~{own.tone:.2f}", "symbol": own.symbol, "size": 12},
                "hovertemplate": f"{own.name}<br>%{{text}}<br>{analysis.metric.title} %{{y:.4f}}<extra></extra>",
            }
        )
    said = "; ".join(
        f"{names[row.label].name} {show(costs[0].value(row), costs[0].kind)}, {_mean(row)}" for row in rows
    )
    return Chart(
        f"{analysis.key}-chart-cost",
        "Score against cost",
        f"Mean {analysis.metric.title} against a cost to choose; the dotted line joins what nothing is both cheaper "
        f"and better than. By {costs[0].title}: {said}.",
        data,
        {
            "xaxis": {"title": {"text": first["title"]}, "type": "log" if first["log"] else "linear"},
            "yaxis": {"title": {"text": analysis.metric.title}},
        },
        height=440,
        choices=tuple(choices),
    )


def _looks(analysis: Analysis) -> dict[str, Look]:
    """The looks, with names that plotly shows as they are."""
    return {label: replace(look, name=_plain(look.name)) for label, look in looks(analysis).items()}


def _plain(text: str) -> str:
    """Text that plotly takes neither for its subset of HTML nor for a template or a formula."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("{", "&#123;"), ("$", "&#36;")):
        text = text.replace(sign, entity)
    return text


def _mean(row: MethodRow) -> str:
    return show(row.primary.best.mean, "score")


def _short(values: Sequence[float]) -> list[float | None]:
    """Five digits: more cannot be seen, and the page would be twice as large; what is not finite is a gap."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
