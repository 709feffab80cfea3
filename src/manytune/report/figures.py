"""Figures fit for a paper: PNG and SVG, drawn by matplotlib without a screen; the same input gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from manytune.report.analysis import Analysis
from manytune.report.guard import attempt
from manytune.report.score_sheets import swept
from manytune.report.series import COSTS, Look, curves, front, looks, quantities
from manytune.report.task_table import MethodRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PALETTE", "draw_figures"]

PALETTE: Mapping[str, str] = {
    "full": "#0072b2",
    "lora": "#009e73",
    "bitfit": "#d55e00",
    "head": "#cc79a7",
    "other": "#56606b",
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
    """File name → content, of every figure that the analysis has something for.

    Args:
        analysis: What is drawn.
        problems: Gets a sentence for each figure that could not be drawn.

    Warns:
        ReportWarning: A figure could not be drawn.
    """
    from matplotlib import rc_context, rcdefaults, rcParams

    found: dict[str, bytes] = {}
    with rc_context():
        rcdefaults()  # not the user's own settings: the same records give the same figures everywhere
        rcParams.update(_STYLE)
        for stem, make in _FIGURES.items():
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
    return figure, [figure.add_subplot(1, columns, place + 1) for place in range(columns)]


def _scores(analysis: Analysis) -> Figure | None:
    rows, look = list(reversed(_shown(analysis))), looks(analysis)
    figure, (axes,) = _figure(height=0.9 + 0.34 * len(rows))
    for place, row in enumerate(rows):
        own, best = look[row.label], row.primary.best
        scores = [run.best_score for run in row.finished if run.best_score is not None]
        color = _color(own)
        axes.plot(
            scores, [place] * len(scores), _MARKERS[own.symbol], color=color, alpha=0.45, markersize=5, linestyle=""
        )
        if best.mean is not None:
            axes.errorbar(best.mean, place, xerr=best.deviation, fmt="|", color=color, markersize=12, markeredgewidth=2)
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


def _ranks(analysis: Analysis) -> Figure | None:
    figure = _swept(analysis, "rank", "LoRA rank", base=2)
    if figure is None:
        return None
    axes = figure.axes[0]
    for row in analysis.best_rows:
        if row.runs[0].method in ("full", "bitfit"):
            own, mean = looks(analysis)[row.label], analysis.mean(row)
            assert mean is not None
            axes.axhline(
                mean,
                color=PALETTE[own.color],
                linestyle=_DASHES["dash" if own.color == "full" else "dot"],
                label=own.name,
            )
    axes.legend(fontsize=7)
    return figure


def _rates(analysis: Analysis) -> Figure | None:
    return _swept(analysis, "learning_rate", "learning rate", base=10)


def _swept(analysis: Analysis, name: str, title: str, base: int) -> Figure | None:
    series = swept(analysis, None, name)
    if not series:
        return None
    figure, (axes,) = _figure()
    shades: dict[str, int] = {}
    look = looks(analysis)
    for key, points in list(series.items())[:_MOST]:
        own = look[points[0][1].label]
        shade = shades[own.color] = shades.get(own.color, -1) + 1
        known = [(value, row.primary.best) for value, row in points if row.primary.best.mean is not None]
        x = [value for value, _ in known]
        mean = [best.mean or 0.0 for _, best in known]
        low, high = ([(best.mean or 0.0) + sign * (best.deviation or 0.0) for _, best in known] for sign in (-1, 1))
        style, marker = list(_DASHES.values())[shade % len(_DASHES)], list(_MARKERS.values())[shade % len(_MARKERS)]
        axes.plot(x, mean, color=PALETTE[own.color], linestyle=style, marker=marker, markersize=5, label=key)
        axes.fill_between(x, low, high, color=PALETTE[own.color], alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=base)
    ticks = sorted({value for points in series.values() for value, _ in points})
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()
    axes.set_xlabel(title)
    axes.set_ylabel(f"{analysis.title}: {analysis.metric.title}")
    axes.legend(fontsize=7)
    return figure


def _cost(analysis: Analysis) -> Figure | None:
    cost, look = COSTS[0], looks(analysis)
    shown = {row.label for row in _shown(analysis)}
    points = [(cost.value(row), analysis.mean(row), row) for row in analysis.rows if row.label in shown]
    known = [(value, mean, row) for value, mean, row in points if value and mean is not None]
    if not known:
        return None
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = _figure()
    pairs = [(float(value), mean) for value, mean, _ in known]
    best = front(pairs, less_is_better=cost.less_is_better, higher_is_better=analysis.metric.higher_is_better)
    axes.plot([pairs[at][0] for at in best], [pairs[at][1] for at in best], ":", color=PALETTE["other"], linewidth=1)
    for value, mean, row in known:
        own = look[row.label]
        spread = row.primary.best.deviation
        marker, color = _MARKERS[own.symbol], _color(own)
        axes.errorbar(value, mean, yerr=spread, fmt=marker, color=color, markersize=6, label=own.name, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # the usual powers of ten are set as formulas, which are off
    axes.set_xlabel(cost.title)
    axes.set_ylabel(f"{analysis.title}: {analysis.metric.title}")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


_FIGURES: Mapping[str, Callable[[Analysis], Any]] = {
    "scores": _scores,
    "curves": _curves,
    "rank": _ranks,
    "rates": _rates,
    "cost": _cost,
}
