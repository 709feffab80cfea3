"""Records → one table a task, with a row for each configuration.

Means and standard deviations are over the runs that trained. Runs that collapsed, stalled, failed or were pruned are
never averaged in: they are counted beside the mean and named under the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles, stdev

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from manytune.data.baselines import BaselineScore
from manytune.data.metrics import METRICS, Metric, is_correlation
from manytune.data.tasks import TASKS, Task
from manytune.methods import METHODS
from manytune.methods.base import Axis
from manytune.report.names import Name, name_configurations
from manytune.report.sheets import UNKNOWN, show
from manytune.stats.describe import Summary, summarize
from manytune.storage.artifacts import Baselines
from manytune.storage.record import RunRecord, RunState
from manytune.utils.errors import StoreError, choices
from manytune.utils.text import listed

_LAST_COLLAPSED = "predicted a constant at the last evaluation, left out of the last mean"
_LEFT_OUT = "Means and standard deviations are over the runs that trained; the others are left out of them."
_STALLED = "scored little more than a constant prediction: did not train"
_FAR = 6.0  # standard deviations


def score_of(run: RunRecord, metric: str) -> float | None:
    """A metric of the run's best snapshot."""
    return run.best_score if metric == run.primary_metric else run.scores.get(metric)


def last_score_of(run: RunRecord, metric: str) -> float | None:
    """A metric of the run's last tensors."""
    return run.last_score if metric == run.primary_metric else run.last_scores.get(metric)


@dataclass(frozen=True)
class MetricSummary:
    """One metric of one method over its seeds."""

    metric: Metric
    best: Summary  # over the best snapshots of the runs that trained
    last: Summary  # over the last evaluations of those of them whose last prediction was not one constant


@dataclass(frozen=True)
class MethodRow:
    """One method with its hyper-parameters (a configuration) on one task, over its seeds."""

    label: str
    """The method and its hyper-parameters: "lora r=8, lr 4e-4"."""
    name: Name
    """What tables, charts and sentences call it: without the settings that never vary."""
    runs: tuple[RunRecord, ...]
    """All of its runs, whatever their state."""
    metrics: tuple[MetricSummary, ...]
    """The task's metrics, the primary one first."""
    stalled: tuple[RunRecord, ...] = ()
    """Runs that finished, but score little more than a constant prediction, far below the others."""

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.runs[0].method

    def along(self, axis: Axis) -> int | float | None:
        """Its value of an axis' hyper-parameter; None where it has none, or its method draws it on an axis of its own.

        VeRA's ranks begin where LoRA's end, and mean something else.
        """
        value, kind = self.runs[0].hyperparameters.get(axis.name), METHODS.get(self.method)
        own = axis if kind is None or kind.axis is None or kind.axis.name != axis.name else kind.axis
        return value if own.key == axis.key and isinstance(value, int | float) else None

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that went on to their end and did not collapse."""
        return self.in_state(RunState.FINISHED)

    @property
    def trained(self) -> tuple[RunRecord, ...]:
        """The runs that the means are over: those that finished and did not stall."""
        return tuple(run for run in self.finished if run not in self.stalled)

    @property
    def failures(self) -> tuple[RunRecord, ...]:
        """The runs that did not train: collapsed, stalled, or with a loss or scores that were no numbers."""
        return tuple(run for run in self.runs if run.did_not_train or run in self.stalled)

    def in_state(self, state: RunState) -> tuple[RunRecord, ...]:
        """The runs that ended in this state."""
        return tuple(run for run in self.runs if run.state is state)

    def scored(self, metric: str) -> list[tuple[RunRecord, float]]:
        """The runs that trained and have a best score in this metric, with that score."""
        return [(run, score) for run in self.trained if (score := score_of(run, metric)) is not None]

    @property
    def primary(self) -> MetricSummary:
        """The metric that ranks."""
        return self.metrics[0]

    @property
    def mean(self) -> float | None:
        """Mean best score in the metric that ranks."""
        return self.primary.best.mean

    @property
    def trainable(self) -> int | None:
        """Number of parameters that trained."""
        return next((count for run in self.runs if (count := run.parameters.trainable) is not None), None)

    @property
    def trainable_share(self) -> float | None:
        """Trainable parameters over all parameters, 0 to 1."""
        counts = (run.parameters for run in self.runs)
        return next((one.trainable / one.total for one in counts if one.trainable is not None and one.total), None)

    @property
    def samples_per_second(self) -> float | None:
        """Training samples a second of a run's share of its pack's time; mean over the runs."""
        return summarize(run.cost.samples_per_second for run in self.runs).mean

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that a pack with one of the runs held."""
        return max((peak for run in self.runs if (peak := run.cost.peak_memory_bytes) is not None), default=None)

    @property
    def train_seconds(self) -> float | None:
        """Mean training time of a run, its share of its pack's; over the runs that finished."""
        known = [run.cost.train_seconds for run in self.finished if run.cost.train_seconds is not None]
        return sum(known) / len(known) if known else None

    def mean_cost(self, name: str) -> float | None:
        """Mean of a field of `Cost` over the runs that finished."""
        return summarize(getattr(run.cost, name) for run in self.finished).mean

    @property
    def notes(self) -> tuple[str, ...]:
        """What the mean does not show: "1 of 3 collapsed: <run id>"."""
        named = [(str(state), self.in_state(state)) for state in RunState if state is not RunState.FINISHED]
        named.append((_STALLED, self.stalled))
        named.append((_LAST_COLLAPSED, tuple(run for run in self.trained if run.last_collapsed)))
        return tuple(
            f"{len(runs)} of {len(self.runs)} {what}: {listed([run.run_id for run in runs], limit=200)}"
            for what, runs in named
            if runs
        )


@dataclass(frozen=True)
class TaskTable:
    """All configurations of all methods on one task and backbone."""

    task: str
    model: str
    """Name of the backbone."""
    rows: tuple[MethodRow, ...]
    """One for each configuration, in the order that the records came in."""
    constants: str
    """The settings that the rows' names leave out because they never vary: "LoRA lr 4e-4"; may be empty."""
    baselines: tuple[BaselineScore, ...] = ()
    """Of the same training and dev rows; empty where none were kept."""

    @property
    def title(self) -> str:
        """What to call the task: "CoLA"."""
        return TASKS[self.task].title if self.task in TASKS else self.task

    @property
    def by_mean(self) -> tuple[MethodRow, ...]:
        """The rows, the best mean first; those without one last."""
        sign = -self.rows[0].primary.metric.sign
        return tuple(sorted(self.rows, key=lambda row: (row.mean is None, sign * (row.mean or 0.0))))

    @property
    def names(self) -> dict[str, str]:
        """Label of each configuration → its name in tables."""
        return {row.label: row.name.short for row in self.rows}

    @property
    def bar(self) -> tuple[str, float] | None:
        """What sentences call the best baseline, and its score in the metric that ranks; None where none has one."""
        metric = self.rows[0].primary.metric
        known = [(each.title, score) for each in self.baselines if (score := each.scores.get(metric.name)) is not None]
        sign = metric.sign
        return max(known, key=lambda one: sign * one[1], default=None)

    @property
    def below_bar(self) -> tuple[str, ...]:
        """The methods of which no configuration has a better mean than the best baseline."""
        if self.bar is None:
            return ()
        sign = self.rows[0].primary.metric.sign
        known = [(row.method, sign * row.mean > sign * self.bar[1]) for row in self.rows if row.mean is not None]
        above = {method for method, better in known if better}
        return tuple(dict.fromkeys(method for method, _ in known if method not in above))

    @property
    def verdict_on_baselines(self) -> str | None:
        """That no method beats the best baseline; None where one does, or there is nothing to compare."""
        methods = {row.method for row in self.rows if row.mean is not None}
        if self.bar is None or not methods or len(self.below_bar) < len(methods):
            return None
        return f"No method beats {self.bar[0]} ({show(self.bar[1], 'score')})."


def baseline_line(task: Task, scores: Iterable[BaselineScore]) -> str:
    """What baselines score on dev: "CoLA: MCC on dev without a pretrained model: the commonest class 0.000, …"."""
    metric = METRICS[task.primary_metric]
    parts = (
        f"{each.title} {_baseline_score(each, metric.name)}{f' ({each.note})' if each.note else ''}" for each in scores
    )
    return f"{task.title}: {metric.title} on dev without a pretrained model: {', '.join(parts)}."


def _baseline_score(baseline: BaselineScore, metric: str) -> str:
    score = baseline.scores.get(metric)
    return "undefined" if score is None else show(score, "score")


def tabulate(records: Iterable[RunRecord], baselines: Mapping[str, Baselines] | None = None) -> tuple[TaskTable, ...]:
    """Group records into a table for each task and backbone, in the order in which these are first seen.

    `baselines` are those of tasks by their names; only those of the rows that the task's runs had come into its table.
    Raises StoreError where a record names a metric that this version does not know.
    """
    tables: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for record in records:
        tables.setdefault((record.task, record.model), {}).setdefault(record.label, []).append(record)
    found = []
    for (task, model), configurations in tables.items():
        every = [run for runs in configurations.values() for run in runs]
        names = dict.fromkeys([*(run.primary_metric for run in every), *(name for run in every for name in run.scores)])
        for name in names:
            if name not in METRICS:
                raise StoreError(f"A record of the task {task!r} has a metric that {choices(name, METRICS)}")
        kept = (baselines or {}).get(task)
        scores = kept.scores if kept is not None and kept.fit(every) else ()
        floor, rows = floor_of(next(iter(names)), scores), []
        called, constants = name_configurations({label: runs[0].method for label, runs in configurations.items()})
        for label, runs in configurations.items():
            low = stalled(runs, floor, METRICS[next(iter(names))])
            trained = [run for run in runs if run.state is RunState.FINISHED and run not in low]
            summaries = (
                MetricSummary(
                    METRICS[name],
                    best=summarize(score_of(run, name) for run in trained),
                    last=summarize(last_score_of(run, name) for run in trained if not run.last_collapsed),
                )
                for name in names
            )
            rows.append(MethodRow(label, called[label], tuple(runs), tuple(summaries), low))
        found.append(TaskTable(task, model, tuple(rows), constants, scores))
    return tuple(found)


def floor_of(metric: str, baselines: Iterable[BaselineScore]) -> float | None:
    """The score of the best constant prediction, 0 for what such a prediction leaves undefined; None if unknown."""
    if is_correlation(metric) or metric == "matthews_correlation":
        return 0.0
    return next((each.scores.get(metric) for each in baselines if each.name == "constant"), None)


def stalled(runs: Sequence[RunRecord], floor: float | None, metric: Metric) -> tuple[RunRecord, ...]:
    """The runs of a configuration that finished and whose training did not take off.

    Such a run scores less than half as far above a constant prediction, of score `floor`, as the upper quartile of the
    others (so that they may be many), and lies far below those above that half (so that where all score little, and
    scatter, a low score is no failure). Among fewer than 3 runs nothing is said.
    """
    sign = metric.sign
    finished = [(run, run.best_score) for run in runs if run.state is RunState.FINISHED]
    scored = [(run, sign * score) for run, score in finished if score is not None]
    if floor is None or len(scored) < 3:
        return ()
    bottom, found = sign * floor, []
    for run, score in scored:
        others = [each for other, each in scored if other is not run]
        cut = bottom + (quantiles(others, n=4, method="inclusive")[2] - bottom) / 2
        above = [each for each in others if each >= cut]
        if score < cut and len(above) > 1 and median(above) - score > _FAR * stdev(above):
            found.append(run)
    return tuple(found)


def render(tables: Iterable[TaskTable], sentences: Mapping[tuple[str, str], str]) -> Group:
    """The tables, each with its sentence and the runs left out, for `rich.console.Console.print`.

    `sentences` are (task, model) → the verdict in one sentence.
    """
    parts: list[RenderableType] = []
    for table in tables:
        notes = [f"{row.name.short}: {note}" for row in table.rows for note in row.notes]
        constants = [f"Settings not in the names: {table.constants}."] if table.constants else []
        sentence = sentences.get((table.task, table.model))
        lines = [*constants, *([sentence] if sentence else []), *notes, *([_LEFT_OUT] if notes else [])]
        indented = (Padding(Text(line), (0, 0, 0, 2), expand=False) for line in lines)
        parts += [_FittingTable(table), *indented, Text()]
    return Group(*parts)


@dataclass(frozen=True)
class _FittingTable:
    """A table with one line a row where the console is wide enough, else with the figures stacked in pairs on two."""

    table: TaskTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        one_line = self._drawn(stacked=False)
        wanted = Measurement.get(console, options.update(width=10_000), one_line).maximum
        yield one_line if wanted <= options.max_width else self._drawn(stacked=True)

    def _drawn(self, *, stacked: bool) -> Table:
        title = Text(f"{self.table.title} on {self.table.model}: mean ± standard deviation over seeds", style="bold")
        drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))

        def lay_out(groups: Sequence[Sequence[str]]) -> list[Text]:
            if stacked:  # the label too is broken between its parts, or it would leave no room for the figures
                return [Text("\n".join(group).replace(", ", ",\n")) for group in groups]
            return [Text(text) for group in groups for text in group]

        scores = [(f"{each.metric.title} best", f"{each.metric.title} last") for each in self.table.rows[0].metrics]
        headings = [("method",), ("runs",), *scores, ("trainable", "of all"), ("samples/s", "peak memory")]
        for index, heading in enumerate(lay_out(headings)):
            drawn.add_column(heading, justify="right" if index else "left", overflow="fold")
        for row in self.table.by_mean:
            drawn.add_row(*lay_out(_cells(row)))
        drawn.add_section()
        for baseline in self.table.baselines:
            cells = [(_baseline_score(baseline, each.metric.name), "") for each in self.table.rows[0].metrics]
            drawn.add_row(*lay_out([(baseline.title,), ("",), *cells, ("", ""), ("", "")]))
        return drawn


def _cells(row: MethodRow) -> list[tuple[str, ...]]:
    """What stands in a row of the terminal's table: groups of cells that may be stacked."""
    averaged, runs, speed = len(row.trained), len(row.runs), row.samples_per_second
    # A row without a mean says what became of its runs.
    states = ", ".join(state for state in RunState if state is not RunState.FINISHED and row.in_state(state))
    without_best = UNKNOWN if averaged else states
    without_last = RunState.COLLAPSED if averaged and all(r.last_collapsed for r in row.trained) else without_best
    return [
        (row.name.short,),
        (str(runs) if averaged == runs else f"{averaged} of {runs}",),
        *((_mean_cell(each.best, without_best), _mean_cell(each.last, without_last)) for each in row.metrics),
        (show(row.trainable, "count"), show(row.trainable_share, "share")),
        (UNKNOWN if speed is None else f"{speed:.0f}", show(row.peak_memory_bytes, "bytes")),
    ]


def _mean_cell(summary: Summary, without: str) -> str:
    """Mean ± deviation, or `without` where there is no mean."""
    if summary.mean is None:
        return without
    return f"{summary.mean:.3f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.3f}")
