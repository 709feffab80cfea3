"""An analysis → charts for plotly.js, as plain data; `traces` says what colours are written as."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from manytune.data.metrics import Metric
from manytune.methods.base import Axis
from manytune.report.analysis import Analysis
from manytune.report.breakdown import best_predictions
from manytune.report.series import (
    COSTS,
    Curve,
    Look,
    baseline_lines,
    curves,
    front,
    looks,
    quantities,
    references,
    shown_rows,
    swept,
)
from manytune.report.sheets import show
from manytune.report.task_table import MethodRow
from manytune.report.traces import Chart, area, short, trace
from manytune.utils.text import counted

MOST_ROWS = 14
"""Configurations in the answer's picture."""

_MOST_LINES = 60  # runs drawn as a line each; of more, only their range can be read
_MOST_SHOWN = 24  # configurations visible at first; the legend shows the others
_MOST_DOTS = 1000  # dev rows in a scatter plot
_PANELS = ("", "2", "3", "4")  # what plotly appends to "x" and "y" in the names of the panels' axes


def answer_chart(analysis: Analysis) -> Chart | None:
    """The answer as a picture: the best configurations as in `score_chart`; None where none has a mean."""
    rows = shown_rows(analysis, MOST_ROWS)
    return score_chart(analysis, rows, "answer") if analysis.leader is not None else None


def every_score_chart(analysis: Analysis) -> Chart | None:
    """All configurations, where the answer's picture does not hold them or there is none."""
    whole = len(analysis.rows) <= MOST_ROWS and analysis.leader is not None
    return None if whole else score_chart(analysis, analysis.table.by_mean, "scores")


def score_chart(analysis: Analysis, rows: Sequence[MethodRow], key: str) -> Chart:
    """Every seed's best score, the mean with its 95 % interval for new seeds, and the runs that did not train.

    The leader's margin is a band: what lies in it is as good, as far as the user cares.
    """
    look, title, leader = looks(analysis), analysis.metric.title, analysis.leader
    # Plotly's first category is the lowest one.
    data = [each for row in reversed(rows) for each in _score_traces(analysis, row, look[row.label])]
    ends = _readable(analysis, rows)
    if ends is not None:
        data += _beyond(data, ends, analysis.sign)
    means_listed = "; ".join(f"{look[row.label].name} {show(row.mean, 'score')}" for row in rows)
    alt = (
        f"{title} by configuration: dots are seeds, diamonds means with their 95 % interval for new seeds, crosses "
        f"runs that did not train. Means: {means_listed}."
    )
    order = {"categoryorder": "array", "categoryarray": [look[row.label].markup for row in reversed(rows)]}
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": title}, "zeroline": False, **({} if ends is None else {"range": list(ends)})},
        "yaxis": {"automargin": True, **order, "ticksuffix": "  ", "range": [-0.7, len(rows) - 0.3]},
        "showlegend": False,
    }
    caption, height = "◆ mean with its 95 % interval for new seeds; ● one seed; × a run that did not train", 0
    if ends is not None:
        caption += f"; {'◄' if analysis.sign > 0 else '►'} beyond the axis"
    height = 90 + 32 * max(len(rows), 3)
    if leader is not None and leader.mean is not None:
        margin = analysis.verdict.judging.margin
        edges = sorted((leader.mean, leader.mean - analysis.sign * margin))
        band = {"type": "rect", "xref": "x", "yref": "paper", "x0": edges[0], "x1": edges[1], "y0": 0, "y1": 1}
        layout["shapes"] = [{**band, "fillcolor": "@good/0.16", "line": {"width": 0}, "layer": "below"}]
        caption += f"; green: less than the margin of {show(margin, 'margin')} behind the best mean"
    baselines = [each for each in baseline_lines(analysis) if ends is None or ends[0] <= each[1] <= ends[1]]
    if baselines:
        for each in data:
            each["showlegend"] = False
        listed = [f"{name} {show(score, 'score')}" for name, score, _ in baselines]
        for words, (_, score, dash) in zip(listed, baselines, strict=True):
            line = {"color": "@muted", "width": 2, "dash": dash}
            # Unseen markers: plotly leaves room beside these, while a line would lie on the edge.
            marks = {"marker": {"size": 12, "opacity": 0}, "line": line}
            data.append(trace("lines+markers", [score, score], [0, 1], words, name=words, yaxis="y2", **marks))
        # An axis of its own lets a line go from edge to edge.
        layout["yaxis2"] = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
        layout["showlegend"] = True
        alt += f" Lines, baselines: {'; '.join(listed)}."
        height += 50
    caption += ". Intervals of two may overlap although their difference is beyond chance."
    return Chart(f"{analysis.key}-chart-{key}", f"{title} by configuration", alt, data, layout, height, caption=caption)


def _readable(analysis: Analysis, rows: Sequence[MethodRow]) -> tuple[float, float] | None:
    """The part of the axis of scores to show, where some lie so far off that the best would be a dot; None: all of it.

    It goes four times as far below the best mean as the better half of the configurations do.
    """
    means = [row.mean for row in rows if row.mean is not None]
    if analysis.leader is None or analysis.leader.mean is None or len(means) < 3:
        return None
    best, sign = analysis.leader.mean, analysis.sign
    scores = {row.label: [score for _, score in row.scored(analysis.metric.name)] for row in rows}
    better = [row for row in rows if row.mean is not None][: (len(means) + 1) // 2]
    near = [score for row in better for score in (*scores[row.label], *(analysis.seed_interval(row.label) or ()))]
    reach = max(sign * (best - score) for score in near)
    every = [score for found in scores.values() for score in found]
    every += [run.best_score for row in rows for run in row.failures if run.best_score is not None]
    if reach <= 0 or max(sign * (best - score) for score in every) <= 4 * reach:
        return None
    highest = max(sign * score for score in (*every, *near))
    edges = best - sign * 4 * reach, sign * (highest + reach / 4)
    return min(edges), max(edges)


def _beyond(data: Sequence[dict[str, Any]], ends: tuple[float, float], sign: int) -> list[dict[str, Any]]:
    """Marks at the edge with the scores of what lies beyond it: a mean, else single seeds, and runs that failed."""
    edge = ends[0] if sign > 0 else ends[1]
    found: dict[str, tuple[str, list[str]]] = {}
    for symbol, before in (("diamond", ""), ("circle", ""), ("x-thin-open", "×")):
        for drawn in (each for each in data if each["marker"]["symbol"] == symbol):
            off = [(x, y) for x, y in zip(drawn["x"], drawn["y"], strict=True) if sign * x < sign * edge]
            if off and (symbol != "circle" or off[0][1] not in found):
                paint = drawn["marker"]["color"].partition("/")[0]
                _, words = found.setdefault(off[0][1], (paint, []))
                words += [f"{before}{show(x, 'score')}" for x, _ in off]
    inner = edge + 0.012 * (ends[1] - ends[0]) * sign
    place = {"textposition": "middle right"} if sign > 0 else {"textposition": "middle left"}
    symbol = "triangle-left" if sign > 0 else "triangle-right"
    return [
        trace(
            "markers+text",
            [inner],
            [name],
            name=f"{name}, beyond",
            text=[", ".join(words)],
            marker={"color": paint, "size": 10, "symbol": symbol},
            **place,
        )
        for name, (paint, words) in found.items()
    ]


def _score_traces(analysis: Analysis, row: MethodRow, look: Look) -> Iterable[dict[str, Any]]:
    """A configuration's seeds, its mean with its interval, and the runs that did not train."""
    name, score = look.markup, f"<br>{analysis.metric.title} %{{x:.4f}}"
    scored = row.scored(analysis.metric.name)
    seeds = [f"seed {run.seed}" for run, _ in scored]
    dot = {"color": f"{look.paint}/0.4", "size": 7, "symbol": "circle"}
    x = [value for _, value in scored]
    yield trace("markers", x, [name] * len(x), f"%{{y}}, %{{text}}{score}", name=name, text=seeds, marker=dot)
    mean, ends = row.mean, analysis.seed_interval(row.label)
    if mean is not None:
        hover = f"%{{y}}, mean of {row.primary.best.count}{score}"
        marks: dict[str, Any] = {"marker": {"color": look.paint, "size": 12, "symbol": "diamond"}}
        if ends is not None:
            hover += f"<br>95 % {show(ends[0], 'score')} to {show(ends[1], 'score')}"
            arms = {"array": [ends[1] - mean], "arrayminus": [mean - ends[0]], "symmetric": False}
            marks["error_x"] = {"type": "data", **arms, "color": look.paint, "thickness": 2.5, "width": 5}
        yield trace("markers", [mean], [name], hover, name=f"{name}, mean", **marks)
    failed = {run.seed: run.best_score for run in row.failures if run.best_score is not None}
    if failed:
        seeds = [f"seed {seed} did not train" for seed in failed]
        cross = {"color": "@caution", "size": 10, "symbol": "x-thin-open", "line": {"width": 2.5}}
        x, y, hover = list(failed.values()), [name] * len(failed), f"%{{y}}, %{{text}}{score}"
        yield trace("markers", x, y, hover, name=f"{name}, did not train", text=seeds, marker=cross)


def curve_chart(analysis: Analysis) -> Chart | None:
    """Score, losses and learning rate by step; None without histories."""
    look = looks(analysis)
    visible = {row.label for row in (analysis.rows if len(look) <= _MOST_SHOWN else analysis.best_rows)}
    panels = [curves(analysis, value) for value in quantities(analysis.metric).values()]
    return draw_curves(analysis.key, analysis.metric, look, panels, visible)


def draw_curves(
    key: str,
    metric: Metric,
    look: Mapping[str, Look],
    panels: Sequence[Sequence[Curve]],
    visible: Collection[str] = (),
) -> Chart | None:
    """The curves of each of `quantities`, a panel each; None without curves.

    Labels in `visible`, or the first 24 if it is empty, are shown at first, the others by a click in the legend.
    """
    count = max((sum(len(curve.runs) for curve in panel) for panel in panels), default=0)
    single = count <= _MOST_LINES
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"legend": {"groupclick": "togglegroup"}, "hovermode": "closest"}
    narrow: dict[str, Any] = {"height": 1150}
    visible = visible or list(look)[:_MOST_SHOWN]
    for index, (axis, title, panel) in enumerate(zip(_PANELS, quantities(metric), panels, strict=True)):
        for curve in panel:
            drawn, name = look[curve.label], look[curve.label].markup
            shared: dict[str, Any] = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "legendgroup": curve.label}
            if curve.label not in visible:
                shared["visible"] = "legendonly"
            for seed, state, steps, values in curve.runs if single else ():
                line = {"color": f"{drawn.paint}/0.35", "width": 1, "dash": drawn.dash}
                hover = f"{name}, seed {seed} ({state})<br>step %{{x}}: %{{y:.4g}}"
                facts = shared | {"name": f"{name}, seed {seed}", "showlegend": False, "line": line}
                data.append(trace("lines", steps, short(values), hover, **facts))
            if curve.steps and curve.low != curve.high:
                low, high = short(curve.low), short(curve.high)
                data.append(area(curve.steps, low, high, f"@{drawn.color}/0.08", name=f"{name}, range", **shared))
            if curve.steps:
                mode = "lines+markers" if len(curve.steps) <= 30 else "lines"
                hover = f"{name}, mean<br>step %{{x}}: %{{y:.4g}}"
                facts = shared | {"name": name, "showlegend": index == 0}
                facts["line"] = {"color": drawn.paint, "width": 2.5, "dash": drawn.dash}
                facts["marker"] = {"symbol": drawn.symbol, "size": 6, "color": drawn.paint}
                data.append(trace(mode, curve.steps, short(curve.mean), hover, **facts))
        line_of_panels, column = divmod(index, 2)
        across, down = [0.55 * column, 0.45 + 0.55 * column], [0.0, 0.43] if line_of_panels else [0.57, 1.0]
        heading = {"text": title, "standoff": 6}
        layout[f"xaxis{axis}"] = {"domain": across, "anchor": f"y{axis}", "title": {"text": "step"}}
        layout[f"yaxis{axis}"] = {"domain": down, "anchor": f"x{axis}", "title": heading, "exponentformat": "e"}
        narrow[f"xaxis{axis}.domain"] = [0, 1]
        narrow[f"yaxis{axis}.domain"] = [0.78 - 0.26 * index, 0.98 - 0.26 * index]
    if not data:
        return None
    alt = (
        f"{metric.title}, evaluation loss, training loss and learning rate by step: the mean over the seeds "
        "that finished, the range between the lowest and the highest of them"
    )
    alt += ", and every run as a thin line." if single else f". {count} runs are not drawn one by one."
    return Chart(f"{key}-chart-curves", "Training, step by step", alt, data, layout, 720, narrow)


def axis_chart(axis: Axis, analysis: Analysis) -> Chart | None:
    """Score against a hyper-parameter; None where no series has two values of it.

    Methods without this hyper-parameter are lines where they have a `reference_dash`.
    """
    sweeps, metric = swept(analysis, axis), analysis.metric.title
    if not sweeps:
        return None
    data: list[dict[str, Any]] = []
    for sweep in sweeps:
        look, name, x = sweep.look, sweep.look.markup, [value for value, _ in sweep.known]
        data.append(area(x, sweep.band(-1), sweep.band(1), f"@{look.color}/0.15", legendgroup=name))
        facts: dict[str, Any] = {"name": name, "legendgroup": name}
        facts["text"] = [counted(best.count, "seed") for _, best in sweep.known]
        facts["line"] = {"color": f"@{look.color}", "width": 2.5, "dash": look.dash}
        facts["marker"] = {"color": f"@{look.color}", "size": 9, "symbol": look.symbol}
        hover = f"{name}, %{{x}}<br>{metric} %{{y:.4f}}, %{{text}}"
        data.append(trace("lines+markers", x, sweep.band(0), hover, **facts))
    values = sorted({value for sweep in sweeps for value, _ in sweep.points})
    for look, mean, dash in references(analysis, axis):
        name = f"best {look.markup}" if " " in look.name else look.markup
        line = {"color": f"@{look.color}", "width": 2, "dash": dash}
        ends = [values[0], values[-1]]
        data.append(trace("lines", ends, [mean, mean], f"{look.markup}: %{{y:.4f}}", name=name, line=line))
    listed = "; ".join(
        f"{sweep.name}: "
        + ", ".join(f"{axis.prefix}{show(value, axis.kind)} {show(row.mean, 'score')}" for value, row in sweep.points)
        for sweep in sweeps
    )
    alt = f"Mean {metric} by {axis.title}, with the standard deviation over seeds as a band. {listed}."
    ticks = {"type": "log", "tickvals": values, "ticktext": [show(value, axis.kind) for value in values]}
    layout = {"xaxis": {"title": {"text": axis.title}, **ticks}, "yaxis": {"title": {"text": metric}}}
    return Chart(f"{analysis.key}-chart-{axis.key}", f"Score against {axis.title}", alt, data, layout, 400)


def cost_chart(analysis: Analysis) -> Chart | None:
    """Score against each cost, with the Pareto front; None where no cost is known."""
    rows, look, metric = analysis.ranked, looks(analysis), analysis.metric
    costs = [cost for cost in COSTS if rows and any(cost.value(row) is not None for row in rows)]
    if not costs:
        return None
    choices: list[dict[str, Any]] = []  # x, y and text of every trace, the front's first
    for cost in costs:
        values, means = [cost.value(row) for row in rows], [row.mean for row in rows]
        points = [(x, y) for x, y in zip(values, means, strict=True) if x is not None and y is not None]
        best = front(points, less_is_better=cost.less_is_better, higher_is_better=metric.higher_is_better)
        choices.append(
            {
                "title": cost.title,
                "x": [[points[at][0] for at in best], *([value] for value in values)],
                "y": [[points[at][1] for at in best], *([mean] for mean in means)],
                "text": [[], *([None if value is None else show(value, cost.kind)] for value in values)],
                "log": all(value > 0 for value, _ in points),
            }
        )
    cost, first = costs[0], choices[0]
    line = {"color": "@muted", "width": 1.5, "dash": "dot", "shape": "linear"}
    data = [trace("lines", first["x"][0], first["y"][0], name="Pareto front", line=line)]
    for row, x, y, text in zip(rows, first["x"][1:], first["y"][1:], first["text"][1:], strict=True):
        drawn, deviation = look[row.label], row.primary.best.deviation or 0
        hover = f"{drawn.markup}<br>%{{text}}<br>{metric.title} %{{y:.4f}}"
        bar = {"type": "data", "array": [deviation], "color": f"{drawn.paint}/0.6"}
        marker = {"color": drawn.paint, "symbol": drawn.symbol, "size": 12}
        data.append(trace("markers", x, y, hover, name=drawn.markup, text=text, error_y=bar, marker=marker))
    listed = "; ".join(
        f"{look[row.label].name} {show(cost.value(row), cost.kind)}, {show(row.mean, 'score')}" for row in rows
    )
    alt = (
        f"Mean {metric.title} against a cost to choose; the dotted line joins what nothing is both cheaper "
        f"and better than. By {cost.title}: {listed}."
    )
    xaxis = {"title": {"text": cost.title}, "type": "log" if first["log"] else "linear"}
    layout = {"xaxis": xaxis, "yaxis": {"title": {"text": metric.title}}}
    key = f"{analysis.key}-chart-cost"
    return Chart(key, "Score against cost", alt, data, layout, height=440, choices=tuple(choices))


def scatter_chart(analysis: Analysis) -> Chart | None:
    """Predictions of the best configuration, the mean over its seeds, against targets; None where these are classes."""
    best = best_predictions(analysis)
    if best is None or best.task.type.has_classes or best.task.type.value_type is not float:
        return None
    order = np.argsort(best.labels, kind="stable")
    drawn = order[np.unique(np.linspace(0, len(order) - 1, _MOST_DOTS, dtype=int))]
    look, ends = looks(analysis)[best.row.label], [float(best.labels.min()), float(best.labels.max())]
    x, y = (short(values[drawn].tolist()) for values in (best.labels, best.predictions.mean(0)))
    dots = {"color": f"{look.paint}/0.45", "size": 6, "symbol": look.symbol}
    line = {"color": "@muted", "width": 1.5, "dash": "dot"}
    data = [
        trace("lines", ends, ends, name="as labelled", line=line),
        trace("markers", x, y, "target %{x}<br>predicted %{y}", name="dev rows", marker=dots),
    ]
    layout = {"xaxis": {"title": {"text": "target"}}, "yaxis": {"title": {"text": "prediction"}}}
    alt = f"Predictions of {look.name} against targets: {len(drawn)} dev rows, the dotted line where both are equal."
    return Chart(f"{analysis.key}-chart-scatter", "Predictions against targets", alt, data, layout, 400)
