"""What the page's charts and the paper's figures both draw: series of numbers with a look each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from manytune.data.metrics import Metric
from manytune.report.analysis import Analysis
from manytune.report.answer import method_title, train_seconds
from manytune.report.task_table import MethodRow
from manytune.stats import summarize
from manytune.storage.record import HistoryRow, RunState
from manytune.utils.text import printable

__all__ = [
    "COSTS",
    "RUNNING",
    "STOPPED",
    "CostAxis",
    "Curve",
    "Look",
    "Traced",
    "curves",
    "curves_of",
    "front",
    "looks",
    "looks_of",
    "loss_rises",
    "quantities",
    "thinned",
]

RUNNING, STOPPED = "running", "stopped"
"""The states of a run that trains now, and of one that has begun and would go on."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
_METHODS = ("full", "lora", "bitfit", "head")

_PALEST = 0.35  # lines differ in style and marker besides
_POINTS = 240  # of one curve: more than a screen's width can tell apart


@dataclass(frozen=True)
class Look:
    """How a configuration is drawn, the same in every chart; told apart without colour too."""

    name: str
    """As short as it can be without being mistaken: "LoRA r=8"."""
    color: str
    """Name in the palette: full, lora, bitfit, head or other."""
    shade: int
    """Its place among its method's configurations, from 0."""
    tone: float = 0.0
    """How far its colour is taken towards the paper's, from 0 to below 1."""

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
    return looks_of({row.label: row.runs[0].method for row in analysis.rows})


def looks_of(methods: Mapping[str, str]) -> dict[str, Look]:
    """Label → look, from label → method."""
    groups: dict[str, list[str]] = {}
    for label, method in methods.items():
        groups.setdefault(method, []).append(label)
    found = {
        label: Look(
            printable(_short(label, method, group)).lstrip("_"),  # matplotlib's legends leave out what begins with _
            method if method in _METHODS else "other",
            place,
            _PALEST * place / max(len(group) - 1, 1),
        )
        for method, group in groups.items()
        for place, label in enumerate(group)
    }
    names = [look.name for look in found.values()]
    return {
        label: look if names.count(look.name) == 1 else replace(look, name=printable(label))
        for label, look in found.items()
    }


def _short(label: str, method: str, group: Sequence[str]) -> str:
    """The method, and the parts of the label in which its configurations differ."""
    parts = [each.removeprefix(method).strip().split(", ") for each in group]
    shared = set(parts[0]).intersection(*parts[1:])
    own = [part for part in label.removeprefix(method).strip().split(", ") if part not in shared]
    title = {"full": "Full", "head": "Head only"}.get(method, method_title(method))
    return " ".join([title, ", ".join(own)]).strip()


@dataclass(frozen=True)
class Curve:
    """One quantity of one configuration by step."""

    label: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    """Over the runs that finished, or train still, and have a value at the step."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """The lowest and the highest of them."""
    runs: tuple[tuple[str, int, str, tuple[int, ...], tuple[float, ...]], ...]
    """Every run, whatever became of it: id, seed, state, steps, values."""


@dataclass(frozen=True)
class Traced:
    """A run whose history is drawn."""

    run_id: str
    seed: int
    state: str
    """Of the run; `running` and `stopped` too."""


def quantities(metric: Metric) -> tuple[tuple[str, str, Callable[[HistoryRow], float | None]], ...]:
    """Name, title and value of what the curves show."""
    return (
        ("score", f"{metric.title} on the selecting split", lambda row: row.metrics.get(metric.name)),
        ("eval_loss", "evaluation loss", lambda row: row.eval_loss),
        ("train_loss", "training loss", lambda row: row.train_loss),
        ("learning_rate", "learning rate", lambda row: row.learning_rate),
    )


def curves(analysis: Analysis, value: Callable[[HistoryRow], float | None]) -> tuple[Curve, ...]:
    """One curve for each configuration that has a history, thinned to what the eye can tell."""
    traced = {row.label: [Traced(run.run_id, run.seed, str(run.state)) for run in row.runs] for row in analysis.rows}
    return curves_of(traced, analysis.histories, value)


def curves_of(
    traced: Mapping[str, Sequence[Traced]],
    histories: Mapping[str, Sequence[HistoryRow]],
    value: Callable[[HistoryRow], float | None],
) -> tuple[Curve, ...]:
    """The same, from label → runs and run id → history."""
    found = []
    for label, own in traced.items():
        runs, by_step = [], dict[int, list[float]]()
        for run in own:
            points = [(each.step, v) for each in histories.get(run.run_id, ()) if (v := value(each)) is not None]
            if not points:
                continue
            if run.state in (RunState.FINISHED, RUNNING, STOPPED):
                for step, each in points:
                    by_step.setdefault(step, []).append(each)
            kept = thinned(points)
            steps, values = zip(*(points[at] for at in kept), strict=True)
            runs.append((run.run_id, run.seed, run.state, steps, values))
        if not runs:
            continue
        means = [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]
        kept = thinned(means)
        steps = tuple(means[at][0] for at in kept)
        found.append(
            Curve(
                label,
                steps,
                tuple(means[at][1] for at in kept),
                tuple(min(by_step[step]) for step in steps),
                tuple(max(by_step[step]) for step in steps),
                tuple(runs),
            )
        )
    return tuple(found)


def thinned(points: Sequence[tuple[float, float]], most: int = _POINTS) -> list[int]:
    """Indices of the points to draw: largest triangles of three buckets (Steinarsson 2013).

    Both ends stay, and so does every turn that can be seen.
    """
    count = len(points)
    if count <= most:
        return list(range(count))
    kept, last = [0], 0
    inner = most - 2
    for bucket in range(inner):
        start, stop = (1 + (count - 2) * each // inner for each in (bucket, bucket + 1))
        after = points[stop : max(stop + 1, 1 + (count - 2) * (bucket + 2) // inner)]
        x = sum(point[0] for point in after) / len(after)
        y = sum(point[1] for point in after) / len(after)
        x0, y0 = points[last]
        last = max(
            range(start, stop),
            key=lambda at: abs((x0 - x) * (points[at][1] - y0) - (x0 - points[at][0]) * (y - y0)),
        )
        kept.append(last)
    return [*kept, count - 1]


def loss_rises(analysis: Analysis) -> tuple[str, ...]:
    """Labels of configurations whose evaluation loss rises by 5 % or more while their score rises too."""
    score, loss, *_ = quantities(analysis.metric)
    losses = {curve.label: curve for curve in curves(analysis, loss[2])}
    scores = {curve.label: dict(zip(curve.steps, curve.mean, strict=True)) for curve in curves(analysis, score[2])}
    found = []
    for label, curve in losses.items():
        if not curve.mean:
            continue
        lowest = min(range(len(curve.mean)), key=lambda at: curve.mean[at])
        then, now = (scores.get(label, {}).get(curve.steps[at]) for at in (lowest, len(curve.mean) - 1))
        better = (
            then is not None and now is not None and (now > then) == analysis.metric.higher_is_better and now != then
        )
        if better and curve.mean[-1] > 1.05 * curve.mean[lowest]:
            found.append(label)
    return tuple(found)


@dataclass(frozen=True)
class CostAxis:
    """What a configuration costs in one respect."""

    name: str
    title: str
    kind: str
    """How a value is shown, out of sheets.FORMATS."""
    less_is_better: bool
    value: Callable[[MethodRow], float | None]


COSTS = (
    CostAxis("trainable", "trainable parameters", "count", True, lambda row: row.trainable),
    CostAxis("train_seconds", "training time of a run", "seconds", True, train_seconds),
    CostAxis("peak_memory_bytes", "peak memory of the pack", "bytes", True, lambda row: row.peak_memory_bytes),
    CostAxis(
        "snapshot_bytes",
        "bytes on disk",
        "bytes",
        True,
        lambda row: summarize(run.cost.snapshot_bytes for run in row.finished).mean,
    ),
    CostAxis("samples_per_second", "training samples a second", "count", False, lambda row: row.samples_per_second),
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
