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
    curves,
    front,
    looks,
    quantities,
    references,
    swept,
    swept_axes,
)
from manytune.report.task_table import MethodRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PALETTE: Mapping[str, str] = {
    "blue": "#0072b2",
    "green": "#009e73",
    "vermilion": "#d55e00",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    OTHER_COLOR: "#56606b",
}
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart."""

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
    """File name → content, of every figure that the analysis has data for; `problems` gets a sentence for each failure.

    Warns:
        ReportWarning: A figure could not be drawn.
    """
    from matplotlib import rc_context, rcdefaults, rcParams

    found: dict[str, bytes] = {}
    with rc_context():
        rcdefaults()  # not the user's own settings: the same records give the same figures everywhere
        rcParams.update(_STYLE)
        for stem, make in figure_makers().items():
            name = f"{analysis.key}-{stem}"
            said = f"The figure {name} could not be drawn"
            found |= attempt(said, partial(_files, name, make, analysis), {}, [] if problems is None else problems)
    return found


def _files(name: str, make: Callable[[Analysis], Figure | None], analysis: Analysis) -> dict[str, bytes]:
    figure, found = make(analysis), {}
    if figure is not None:
        for kind, facts in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "manytune"})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=200, metadata=facts)
            found[f"{name}.{kind}"] = file.getvalue()
    return found


def _color(look: Look) -> tuple[float, float, float]:
    """The method's colour, taken towards white by the configuration's tone."""
    channels = (int(PALETTE[look.color][at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (each + (1 - each) * look.tone for each in channels)
    return red, green, blue


def _shown(analysis: Analysis) -> tuple[MethodRow, ...]:
    """The configurations that a figure can hold: all, or the best ones, in the studies' order."""
    if len(analysis.rows) <= _MOST:
        return analysis.rows
    best = {row.label for row in (*analysis.best_rows, *analysis.ranked)[:_MOST]}
    return tuple(row for row in analysis.rows if row.label in best)


def _figure(columns: int = 1, width: float = 5.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, column) for column in range(1, columns + 1)]


def _scores(analysis: Analysis) -> Figure | None:
    rows, look = list(reversed(_shown(analysis))), looks(analysis)
    figure, (axes,) = _figure(height=0.9 + 0.34 * len(rows))
    for height, row in enumerate(rows):
        own, best = look[row.label], row.primary.best
        scores, color = [score for _, score in row.scored(analysis.metric.name)], _color(own)
        heights = [height] * len(scores)
        axes.plot(scores, heights, _MARKERS[own.symbol], color=color, alpha=0.45, markersize=5, linestyle="")
        if best.mean is not None:
            axes.errorbar(
                best.mean, height, xerr=best.deviation, fmt="|", color=color, markersize=12, markeredgewidth=2
            )
    axes.set_yticks(range(len(rows)), [look[row.label].name for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{analysis.title}: {analysis.metric.title}, seeds and mean ± standard deviation")
    return figure


def _curves(analysis: Analysis) -> Figure | None:
    shown = quantities(analysis.metric)[:2]
    look, labels = looks(analysis), {row.label for row in _shown(analysis)}
    drawn = [[each for each in curves(analysis, value) if each.steps and each.label in labels] for *_, value in shown]
    if not any(drawn):
        return None
    figure, panels = _figure(2, width=7.2, height=3.0)
    for axes, (_, title, _), own_curves in zip(panels, shown, drawn, strict=True):
        for curve in own_curves:
            own = look[curve.label]
            line: dict[str, Any] = {"color": _color(own), "linestyle": _DASHES[own.dash]}
            axes.plot(curve.steps, curve.mean, linewidth=1.5, label=own.name, **line)
            axes.fill_between(curve.steps, curve.low, curve.high, color=line["color"], alpha=0.12, linewidth=0)
        axes.set_xlabel("step")
        axes.set_ylabel(title)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    return figure


def _swept(axis: Axis, analysis: Analysis) -> Figure | None:
    sweeps = swept(analysis, axis)
    if not sweeps:
        return None
    figure, (axes,) = _figure()
    for sweep in sweeps[:_MOST]:
        x, color, own = [value for value, _ in sweep.known], PALETTE[sweep.look.color], sweep.look
        style: dict[str, Any] = {"linestyle": _DASHES[own.dash], "marker": _MARKERS[own.symbol], "markersize": 5}
        axes.plot(x, sweep.band(0), color=color, label=sweep.name, **style)
        axes.fill_between(x, sweep.band(-1), sweep.band(1), color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=axis.base)
    ticks = sorted({value for sweep in sweeps for value, _ in sweep.points})
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()
    for own, score, dash in references(analysis, axis):
        axes.axhline(score, color=PALETTE[own.color], linestyle=_DASHES[dash], label=own.name)
    axes.set_xlabel(axis.title)
    axes.set_ylabel(f"{analysis.title}: {analysis.metric.title}")
    axes.legend(fontsize=7)
    return figure


def _cost(analysis: Analysis) -> Figure | None:
    cost, look = COSTS[0], looks(analysis)
    shown = _shown(analysis)
    known = [(float(value), row.mean, row) for row in shown if (value := cost.value(row)) and row.mean is not None]
    if not known:
        return None
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = _figure()
    pairs = [(value, mean) for value, mean, _ in known]
    best = front(pairs, less_is_better=cost.less_is_better, higher_is_better=analysis.metric.higher_is_better)
    axes.plot(
        [pairs[at][0] for at in best], [pairs[at][1] for at in best], ":", color=PALETTE[OTHER_COLOR], linewidth=1
    )
    for value, mean, row in known:
        own, spread = look[row.label], row.primary.best.deviation
        style: dict[str, Any] = {"fmt": _MARKERS[own.symbol], "color": _color(own), "markersize": 6, "linewidth": 1}
        axes.errorbar(value, mean, yerr=spread, label=own.name, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # the usual powers of ten are set as formulas, which are off
    axes.set_xlabel(cost.title)
    axes.set_ylabel(f"{analysis.title}: {analysis.metric.title}")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def figure_makers() -> dict[str, Callable[[Analysis], Figure | None]]:
    """Stem of a file name → what draws the figure, or None where there is nothing to draw."""
    swept_by = {axis.key: partial(_swept, axis) for axis in swept_axes()}
    return {"scores": _scores, "curves": _curves, **swept_by, "cost": _cost}
