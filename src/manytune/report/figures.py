"""Figures fit for a paper: PNG and SVG, drawn by matplotlib without a screen; the same input gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from manytune.methods.base import Axis
from manytune.report.analysis import Analysis
from manytune.report.guard import attempt
from manytune.report.series import (
    COSTS,
    OTHER_COLOR,
    Look,
    baseline_lines,
    curves,
    front,
    looks,
    quantities,
    references,
    shown_rows,
    swept,
    swept_axes,
)
from manytune.utils.extras import is_installed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE: Mapping[str, str] = {
    "blue": "#0072b2",
    "green": "#009e73",
    "vermilion": "#d55e00",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "wine": "#882255",
    "indigo": "#332288",
    "brown": "#7a4f1d",
    OTHER_COLOR: "#56606b",
}
"""Okabe and Ito's colours and three darker ones, which people with any kind of colour vision can tell apart."""

_DASHES = {
    "solid": "-",
    "dash": (0, (5, 2)),
    "dot": (0, (1, 1.5)),
    "dashdot": (0, (5, 2, 1, 2)),
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 2, 1, 2)),
}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "x": "X"}

_MOST = 16  # configurations in one figure; of more, the best ones are drawn
_BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 7}  # a legend's place

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",  # it comes with matplotlib, so that a figure is the same everywhere
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "manytune",
    "svg.fonttype": "path",
    "text.usetex": False,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


def draw_figures(analysis: Analysis, problems: list[str] | None = None) -> dict[str, bytes]:
    """File name → content, of every figure that the analysis has data for.

    One that cannot be drawn is left out, with a ReportWarning and a sentence in `problems`; without matplotlib, which
    the extra `figures` brings, all are.
    """
    if not is_installed("matplotlib"):
        return {}
    from matplotlib import rc_context, rcdefaults, rcParams

    problems = [] if problems is None else problems
    found: dict[str, bytes] = {}
    with rc_context():
        rcdefaults()  # without the user's settings: the same records give the same figures everywhere
        rcParams.update(_STYLE)
        for stem, make in figure_makers().items():
            name = f"{analysis.key}-{stem}"
            failure = f"The figure {name} could not be drawn"
            found |= attempt(failure, partial(_files, name, make, analysis), {}, problems)
    return found


def _files(name: str, make: Callable[[Analysis], Figure | None], analysis: Analysis) -> dict[str, bytes]:
    """File name → content of one figure; empty where there is nothing to draw."""
    figure, found = make(analysis), {}
    if figure is not None:
        for kind, facts in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "manytune"})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=200, metadata=facts)
            found[f"{name}.{kind}"] = file.getvalue()
    return found


def _color(look: Look) -> tuple[float, float, float]:
    """The method's colour, mixed with white by the configuration's tone."""
    channels = (int(PALETTE[look.color][at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (each + (1 - each) * look.tone for each in channels)
    return red, green, blue


def _figure(columns: int = 1, width: float = 5.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, column) for column in range(1, columns + 1)]


def _scores(analysis: Analysis) -> Figure | None:
    """Every seed's best score, and the mean with its 95 % interval for new seeds, by configuration."""
    rows, look = list(reversed(shown_rows(analysis, _MOST))), looks(analysis)
    figure, (axes,) = _figure(height=0.9 + 0.34 * len(rows))
    for y, row in enumerate(rows):
        ends, color = analysis.seed_interval(row.label), _color(look[row.label])
        scores, marker = [score for _, score in row.scored(analysis.metric.name)], _MARKERS[look[row.label].symbol]
        axes.plot(scores, [y] * len(scores), marker, color=color, alpha=0.45, markersize=5, linestyle="")
        failed = [run.best_score for run in row.failures if run.best_score is not None]
        axes.plot(failed, [y] * len(failed), "x", color=PALETTE["vermilion"], markersize=6, linestyle="")
        if row.mean is not None:
            arms = None if ends is None else [[row.mean - ends[0]], [ends[1] - row.mean]]
            axes.errorbar(row.mean, y, xerr=arms, fmt="D", color=color, markersize=5, capsize=3)
    if analysis.leader is not None and analysis.leader.mean is not None:
        mean, margin = analysis.leader.mean, analysis.sign * analysis.verdict.judging.margin
        axes.axvspan(mean - margin, mean, color=PALETTE["green"], alpha=0.16, linewidth=0)
    for name, score, dash in baseline_lines(analysis):
        style: dict[str, Any] = {"color": PALETTE[OTHER_COLOR], "linestyle": _DASHES[dash], "linewidth": 1.2}
        axes.axvline(score, label=f"{name} {score:.3f}", **style)
    if baseline_lines(analysis):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7)
    axes.set_yticks(range(len(rows)), [look[row.label].name for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{analysis.title}: {analysis.metric.title}, seeds, mean and 95 % interval")
    return figure


def _curves(analysis: Analysis) -> Figure | None:
    """Score and evaluation loss by step, the mean and the range over the seeds; None without histories."""
    look, labels = looks(analysis), {row.label for row in shown_rows(analysis, _MOST)}
    drawn = [
        (title, [curve for curve in curves(analysis, value) if curve.steps and curve.label in labels])
        for title, value in list(quantities(analysis.metric).items())[:2]
    ]
    if not any(found for _, found in drawn):
        return None
    figure, panels = _figure(2, width=7.2, height=3.0)
    for axes, (title, panel_curves) in zip(panels, drawn, strict=True):
        for curve in panel_curves:
            line, color = look[curve.label], _color(look[curve.label])
            dash: Any = _DASHES[line.dash]
            axes.plot(curve.steps, curve.mean, linewidth=1.5, label=line.name, color=color, linestyle=dash)
            axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.12, linewidth=0)
        axes.set(xlabel="step", ylabel=title)
    panels[1].legend(**_BESIDE)
    return figure


def _swept(axis: Axis, analysis: Analysis) -> Figure | None:
    """Score against a hyper-parameter, with methods without it as lines; None where it has one value alone."""
    sweeps = swept(analysis, axis)
    if not sweeps:
        return None
    figure, (axes,) = _figure()
    for sweep in sweeps[:_MOST]:
        x, color, line = [value for value, _ in sweep.known], PALETTE[sweep.look.color], sweep.look
        style: dict[str, Any] = {"linestyle": _DASHES[line.dash], "marker": _MARKERS[line.symbol], "markersize": 5}
        axes.plot(x, sweep.band(0), color=color, label=sweep.name, **style)
        axes.fill_between(x, sweep.band(-1), sweep.band(1), color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=axis.base)
    ticks = sorted({value for sweep in sweeps for value, _ in sweep.points})
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()
    for line, score, dash in references(analysis, axis):
        axes.axhline(score, color=PALETTE[line.color], linestyle=_DASHES[dash], label=line.name)
    axes.set(xlabel=axis.title, ylabel=f"{analysis.title}: {analysis.metric.title}")
    axes.legend(fontsize=7)
    return figure


def _cost(analysis: Analysis) -> Figure | None:
    """Score against the first of `COSTS`, with the Pareto front; None where no cost is known."""
    cost, look, shown = COSTS[0], looks(analysis), shown_rows(analysis, _MOST)
    known = [(float(value), row.mean, row) for row in shown if (value := cost.value(row)) and row.mean is not None]
    if not known:
        return None
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = _figure()
    points = [(value, mean) for value, mean, _ in known]
    best = front(points, less_is_better=cost.less_is_better, higher_is_better=analysis.metric.higher_is_better)
    x, y = zip(*(points[at] for at in best), strict=True)
    axes.plot(x, y, ":", color=PALETTE[OTHER_COLOR], linewidth=1)
    for value, mean, row in known:
        dot, deviation = look[row.label], row.primary.best.deviation
        style: dict[str, Any] = {"fmt": _MARKERS[dot.symbol], "color": _color(dot), "markersize": 6, "linewidth": 1}
        axes.errorbar(value, mean, yerr=deviation, label=dot.name, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # the usual powers of ten are set as formulas, which are off
    axes.set(xlabel=cost.title, ylabel=f"{analysis.title}: {analysis.metric.title}")
    axes.legend(**_BESIDE)
    return figure


def figure_makers() -> dict[str, Callable[[Analysis], Figure | None]]:
    """Stem of a file name → what draws the figure, or None where there is nothing to draw."""
    swept_by = {axis.key: partial(_swept, axis) for axis in swept_axes()}
    return {"scores": _scores, "curves": _curves, **swept_by, "cost": _cost}
