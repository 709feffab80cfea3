"""What the page's charts and the paper's figures both draw: series of numbers with a look each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from manytune.data.metrics import Metric
from manytune.methods import METHODS
from manytune.methods.base import LEARNING_RATE, Axis
from manytune.report.analysis import Analysis
from manytune.report.names import name_configurations
from manytune.report.task_table import MethodRow
from manytune.stats.describe import Summary
from manytune.storage.directory import RunStatus
from manytune.storage.record import HistoryRow, RunRecord, RunState
from manytune.utils.text import cut

OTHER_COLOR = "grey"
"""The colour, by its name in the palette, of methods that are not registered."""

RUNNING, STOPPED = "running", "stopped"
"""The states of a run that trains now, and of one whose process ended before it."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "$": "&#36;"})
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")

_LONGEST_NAME = 60  # characters; a longer one would leave a chart no room
_PALEST = 0.35  # the tone of a method's last configuration
_POINTS = 240  # of one curve: more than a screen's width can tell apart


def plotly_text(text: str) -> str:
    """Text that plotly shows unchanged: it reads a subset of HTML, templates and formulas."""
    return text.translate(_ENTITIES)


@dataclass(frozen=True)
class Look:
    """How a configuration is drawn, the same in every chart: line style and marker tell it apart without colour."""

    name: str  # the method and its settings that vary: "LoRA r=8"
    color: str  # its name in the palette
    shade: int  # index among its method's configurations, from 0: it chooses line style and marker
    tone: float = 0.0  # how far its colour is mixed with the background's, from 0 to below 1

    @property
    def markup(self) -> str:
        """The name as plotly shows it unchanged."""
        return plotly_text(self.name)

    @property
    def paint(self) -> str:
        """The colour as the page's script reads it: palette name and tone."""
        return f"@{self.color}~{self.tone:.2f}"

    @property
    def dash(self) -> str:
        """Line style."""
        return _DASHES[self.shade % len(_DASHES)]

    @property
    def symbol(self) -> str:
        """Marker."""
        return _SYMBOLS[self.shade % len(_SYMBOLS)]


def looks(analysis: Analysis) -> dict[str, Look]:
    """Label → look, of every configuration."""
    return looks_of({row.label: row.method for row in analysis.rows})


def looks_of(methods: Mapping[str, str]) -> dict[str, Look]:
    """Label → look, from label → method."""
    found: dict[str, Look] = {}
    names, _ = name_configurations(methods)
    for method in dict.fromkeys(methods.values()):
        labels = [label for label, other in methods.items() if other == method]
        kind = METHODS.get(method)
        for shade, label in enumerate(labels):
            found[label] = Look(
                cut(names[label].short.lstrip("_"), _LONGEST_NAME),  # matplotlib's legends leave out what begins with _
                kind.color if kind else OTHER_COLOR,
                shade,
                _PALEST * shade / max(len(labels) - 1, 1),
            )
    return found


def shown_rows(analysis: Analysis, most: int) -> tuple[MethodRow, ...]:
    """The configurations that a picture can hold, all or the best of each method first: the best mean first."""
    if len(analysis.rows) <= most:
        return analysis.table.by_mean
    best = {row.label for row in (*analysis.best_rows, *analysis.ranked)[:most]}
    return tuple(row for row in analysis.table.by_mean if row.label in best)


@dataclass(frozen=True)
class Curve:
    """One quantity of one configuration by step."""

    label: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    """Over the runs that finished, or still train, and have a value at the step; `low` and `high` are their range."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: tuple[tuple[int, str, tuple[int, ...], tuple[float, ...]], ...]
    """Every run, whatever its state: seed, state, steps, values."""


BASELINE_DASHES = ("dot", "dash")
"""Line styles of the baselines."""


def baseline_lines(analysis: Analysis) -> list[tuple[str, float, str]]:
    """Name, score in the metric that ranks and line style of each baseline that has one."""
    known = [(each.title, each.scores.get(analysis.metric.name)) for each in analysis.table.baselines]
    return [
        (title, score, BASELINE_DASHES[at % len(BASELINE_DASHES)])
        for at, (title, score) in enumerate(known)
        if score is not None
    ]


def quantities(metric: Metric) -> dict[str, Callable[[HistoryRow], float | None]]:
    """Title → value of what the curves show: score, evaluation loss, training loss, learning rate."""
    return {
        f"{metric.title} on the selecting split": lambda row: row.metrics.get(metric.name),
        "evaluation loss": lambda row: row.eval_loss,
        "training loss": lambda row: row.train_loss,
        "learning rate": lambda row: row.learning_rate,
    }


def curves(analysis: Analysis, value: Callable[[HistoryRow], float | None]) -> tuple[Curve, ...]:
    """One curve for each configuration that has a history, thinned to the points that can be seen."""
    return curves_of({row.label: row.runs for row in analysis.rows}, analysis.histories, value)


def curves_of(
    configurations: Mapping[str, Sequence[RunRecord | RunStatus]],
    histories: Mapping[str, Sequence[HistoryRow]],
    value: Callable[[HistoryRow], float | None],
) -> tuple[Curve, ...]:
    """As `curves`, from label → runs and run id → history."""
    found = []
    for label, members in configurations.items():
        runs, by_step = [], dict[int, list[float]]()
        for run in members:
            points = [(each.step, v) for each in histories.get(run.run_id, ()) if (v := value(each)) is not None]
            if not points:
                continue
            if run.state in (RunState.FINISHED, RUNNING, STOPPED):
                for step, each in points:
                    by_step.setdefault(step, []).append(each)
            steps, values = zip(*(points[at] for at in thinned(points)), strict=True)
            runs.append((run.seed, str(run.state), steps, values))
        if runs:
            means = [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]
            kept = [means[at] for at in thinned(means)]
            low, high = (tuple(end(by_step[step]) for step, _ in kept) for end in (min, max))
            steps, mean = (tuple(column) for column in zip(*kept, strict=True)) if kept else ((), ())
            found.append(Curve(label, steps, mean, low, high, tuple(runs)))
    return tuple(found)


def thinned(points: Sequence[tuple[float, float]], most: int = _POINTS) -> list[int]:
    """Indices of at most `most` points to draw, which keep both ends and every turn that can be seen.

    Largest-Triangle-Three-Buckets (Steinarsson 2013, http://hdl.handle.net/1946/15343): the points between the ends
    are cut into buckets of equal size, and of each bucket that point stays which forms the largest triangle with the
    point kept before and the mean of the next bucket.
    """
    count = len(points)
    if count <= most:
        return list(range(count))
    kept = [0]
    inner = most - 2
    for bucket in range(inner):
        start, stop, end = (1 + (count - 2) * (bucket + ahead) // inner for ahead in range(3))
        after = points[stop : max(stop + 1, end)]
        x, y = (sum(values) / len(after) for values in zip(*after, strict=True))
        x0, y0 = points[kept[-1]]
        areas = {
            at: abs((x0 - x) * (points[at][1] - y0) - (x0 - points[at][0]) * (y - y0)) for at in range(start, stop)
        }
        kept.append(max(areas, key=areas.__getitem__))
    return [*kept, count - 1]


def loss_rises(analysis: Analysis) -> tuple[str, ...]:
    """Labels of configurations whose evaluation loss rises by 5 % or more while their score rises too."""
    score, loss, *_ = quantities(analysis.metric).values()
    scores = {curve.label: dict(zip(curve.steps, curve.mean, strict=True)) for curve in curves(analysis, score)}
    sign = analysis.metric.sign
    found = []
    for curve in curves(analysis, loss):
        lowest = min(curve.mean, default=0.0)
        if curve.mean and curve.mean[-1] > 1.05 * lowest:
            ends = (curve.steps[curve.mean.index(lowest)], curve.steps[-1])
            then, now = (scores.get(curve.label, {}).get(step) for step in ends)
            if then is not None and now is not None and sign * now > sign * then:
                found.append(curve.label)
    return tuple(found)


@dataclass(frozen=True)
class SweptSeries:
    """The configurations of one method that differ in one hyper-parameter alone."""

    name: str
    """The method and the other settings that vary: "LoRA lr 4e-4"."""
    look: Look
    points: tuple[tuple[float, MethodRow], ...]
    """(value of the hyper-parameter, configuration), by rising value."""

    @property
    def known(self) -> tuple[tuple[float, Summary], ...]:
        """Value and best scores of the configurations that have a mean."""
        return tuple((value, row.primary.best) for value, row in self.points if row.mean is not None)

    def band(self, sign: int) -> list[float]:
        """Mean plus `sign` standard deviations of each of `known`."""
        return [(best.mean or 0.0) + sign * (best.deviation or 0.0) for _, best in self.known]


def swept_axes() -> tuple[Axis, ...]:
    """The hyper-parameters to draw scores against: those of the registered methods, and the learning rate."""
    axes = {kind.axis.key: kind.axis for kind in METHODS.values() if kind.axis is not None}
    return (*axes.values(), LEARNING_RATE)


def references(analysis: Analysis, axis: Axis) -> list[tuple[Look, float, str]]:
    """Look, mean score and line style of each method that charts against a hyper-parameter show as a line."""
    look, best = looks(analysis), [(row, METHODS.get(row.method)) for row in analysis.best_rows]
    return [
        (look[row.label], row.mean, kind.reference_dash)
        for row, kind in best
        if kind is not None and kind.reference_dash and row.mean is not None and axis.name not in kind.model_fields
    ]


def swept(analysis: Analysis, axis: Axis) -> tuple[SweptSeries, ...]:
    """Configurations that differ in one hyper-parameter alone; a series of one value is left out."""
    series: dict[str, list[tuple[float, MethodRow]]] = {}
    for row in analysis.rows:
        value = row.along(axis)
        if value is not None:
            series.setdefault(row.name.without(axis.prefix), []).append((float(value), row))
    look, found, shades = looks(analysis), list[SweptSeries](), Counter[str]()
    for key, points in series.items():
        if len({value for value, _ in points}) > 1:
            points.sort(key=lambda point: point[0])
            color = look[points[0][1].label].color
            found.append(SweptSeries(key, Look(key, color, shades[color]), tuple(points)))
            shades[color] += 1
    return tuple(found)


@dataclass(frozen=True)
class CostAxis:
    """One kind of cost of a configuration."""

    title: str
    kind: str  # how a value is shown, out of sheets.FORMATS
    value: Callable[[MethodRow], float | None]
    less_is_better: bool = True


COSTS = (
    CostAxis("trainable parameters", "count", lambda row: row.trainable),
    CostAxis("training time of a run", "seconds", lambda row: row.train_seconds),
    CostAxis("peak memory of the pack", "bytes", lambda row: row.peak_memory_bytes),
    CostAxis("bytes on disk", "bytes", lambda row: row.mean_cost("snapshot_bytes")),
    CostAxis("training samples a second", "count", lambda row: row.samples_per_second, less_is_better=False),
)
"""What scores are drawn against."""


def front(points: Sequence[tuple[float, float]], *, less_is_better: bool, higher_is_better: bool) -> list[int]:
    """Indices of the Pareto front among (cost, score): none is both cheaper and better; by rising cost."""
    cost, score = (1 if less_is_better else -1), (1 if higher_is_better else -1)
    order = sorted(range(len(points)), key=lambda at: (cost * points[at][0], -score * points[at][1]))
    kept: list[int] = []
    for at in order:
        if not kept or score * points[at][1] > score * points[kept[-1]][1]:
            kept.append(at)
    return sorted(kept, key=lambda at: points[at][0])
