"""Records → one table a task, with a row for each method, and one sentence that says what it shows.

Means and standard deviations are over the seeds that finished. Runs that collapsed, failed or were pruned are
never averaged in: they are counted beside the mean and named below the table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.filesize import decimal
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from manytune.data.metrics import METRICS, Metric
from manytune.data.tasks import TASKS
from manytune.stats import Lead, Summary, leader, summarize
from manytune.storage.record import RunRecord, RunState
from manytune.utils.errors import StoreError, choices
from manytune.utils.text import listed, printable

__all__ = ["MethodRow", "MetricSummary", "TaskTable", "render", "tabulate"]

_UNKNOWN = "–"
_LAST_COLLAPSED = "predicted a constant at the last evaluation, left out of the last mean"
_LEFT_OUT = "Means and standard deviations are over the runs that finished; the others are left out of them."


@dataclass(frozen=True)
class MetricSummary:
    """One metric of one method over its seeds."""

    metric: Metric
    best: Summary
    """Over the best snapshots of the runs that finished."""
    last: Summary
    """Over the last evaluations of those of them whose last prediction was not one constant."""


@dataclass(frozen=True)
class MethodRow:
    """One method on one task, over its seeds."""

    label: str
    """What tells the method from the others: "lora r=8, lr 4e-4"."""
    runs: tuple[RunRecord, ...]
    """All of its runs, whatever became of them."""
    metrics: tuple[MetricSummary, ...]
    """The task's metrics, the primary one first."""

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that the means are over."""
        return self.in_state(RunState.FINISHED)

    def in_state(self, state: RunState) -> tuple[RunRecord, ...]:
        """The runs that ended in this state."""
        return tuple(run for run in self.runs if run.state is state)

    @property
    def stragglers(self) -> tuple[tuple[RunRecord, float], ...]:
        """Runs that finished and score less than half of the median of the method's others, with that median.

        Their training did not take off, though they predict no constant. Of fewer than 3 runs none is one.
        """
        scored = [(run, run.best_score) for run in self.finished if run.best_score is not None]
        if len(scored) < 3 or not self.primary.metric.higher_is_better:
            return ()
        ordered = sorted(score for _, score in scored)
        medians = ((run, score, _median_without(ordered, bisect_left(ordered, score))) for run, score in scored)
        return tuple((run, middle) for run, score, middle in medians if middle > 0 and score < middle / 2)

    @property
    def primary(self) -> MetricSummary:
        """The metric that ranks."""
        return self.metrics[0]

    @property
    def trainable(self) -> int | None:
        """Number of parameters that trained."""
        counts = (run.parameters.trainable for run in self.runs)
        return next((count for count in counts if count is not None), None)

    @property
    def trainable_share(self) -> float | None:
        """Trainable parameters over all parameters, 0 to 1."""
        counts = (run.parameters for run in self.runs)
        shares = (one.trainable / one.total for one in counts if one.trainable is not None and one.total)
        return next(shares, None)

    @property
    def samples_per_second(self) -> float | None:
        """Training samples a second of a run's share of its pack's time; mean over the runs."""
        return summarize(run.cost.samples_per_second for run in self.runs).mean

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that a pack with one of the runs held."""
        peaks = (run.cost.peak_memory_bytes for run in self.runs)
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the mean does not show: "1 of 3 collapsed: <run id>"."""
        named = [(str(state), self.in_state(state)) for state in RunState if state is not RunState.FINISHED]
        named.append((_LAST_COLLAPSED, tuple(run for run in self.finished if run.last_collapsed)))
        return tuple(
            f"{len(runs)} of {len(self.runs)} {what}: {listed([run.run_id for run in runs], limit=200)}"
            for what, runs in named
            if runs
        )


@dataclass(frozen=True)
class TaskTable:
    """All methods on one task."""

    task: str
    """Name of the task."""
    model: str
    """Name of the backbone."""
    rows: tuple[MethodRow, ...]
    """One for each method, in the order that the records came in."""

    @property
    def title(self) -> str:
        """What to call the task: "CoLA"."""
        return TASKS[self.task].title if self.task in TASKS else self.task

    @property
    def lead(self) -> Lead | None:
        """The highest mean against the second; None if fewer than two methods have one."""
        metric = self.rows[0].primary.metric
        scores = {row.label: [_best(run, metric) for run in row.finished] for row in self.rows}
        return leader(scores, higher_is_better=metric.higher_is_better)

    @property
    def sentence(self) -> str:
        """Which mean is best, and how its lead compares with the spread over seeds."""
        metric = self.rows[0].primary.metric
        means = {row.label: row.primary.best.mean for row in self.rows}
        known = {label: mean for label, mean in means.items() if mean is not None}
        what = f"{self.title}, {metric.title}"
        if not known:
            return f"{what}: no run finished, so there is nothing to compare."
        lead = self.lead
        if lead is None:
            ((label, mean),) = known.items()
            return f"{what}: only {label} ({_score(mean)}) has a mean; there is nothing to compare it with."
        first, second = (f"{label} ({_score(known[label])})" for label in (lead.first, lead.second))
        if lead.difference == 0:
            return f"{what}: {first} and {second} are equal."
        return f"{what}: {first} is ahead of {second} by {_small(lead.difference)}{_against_spread(lead)}"


def tabulate(records: Iterable[RunRecord]) -> tuple[TaskTable, ...]:
    """Group records into one table for each task and backbone, one row for each method.

    Args:
        records: In any order; tables and rows come in the order in which they are first seen.

    Raises:
        StoreError: A record names a metric that this version does not know.
    """
    tables: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for record in records:
        tables.setdefault((record.task, record.model), {}).setdefault(record.label, []).append(record)
    return tuple(_task_table(task, model, methods) for (task, model), methods in tables.items())


def _task_table(task: str, model: str, methods: Mapping[str, list[RunRecord]]) -> TaskTable:
    runs = [run for group in methods.values() for run in group]
    names = dict.fromkeys([*(run.primary_metric for run in runs), *(name for run in runs for name in run.scores)])
    metrics = [_metric(name, task) for name in names]
    return TaskTable(task, model, tuple(_row(label, group, metrics) for label, group in methods.items()))


def _row(label: str, runs: Iterable[RunRecord], metrics: Iterable[Metric]) -> MethodRow:
    row = MethodRow(label=label, runs=tuple(runs), metrics=())
    steady = [run for run in row.finished if not run.last_collapsed]
    summaries = (
        MetricSummary(
            metric=metric,
            best=summarize(_best(run, metric) for run in row.finished),
            last=summarize(_last(run, metric) for run in steady),
        )
        for metric in metrics
    )
    return replace(row, metrics=tuple(summaries))


def _best(run: RunRecord, metric: Metric) -> float | None:
    return run.best_score if metric.name == run.primary_metric else run.scores.get(metric.name)


def _last(run: RunRecord, metric: Metric) -> float | None:
    return run.last_score if metric.name == run.primary_metric else run.last_scores.get(metric.name)


def _median_without(ordered: Sequence[float], place: int) -> float:
    """The median of sorted values without the one at `place`."""
    low, high = (at + (at >= place) for at in ((len(ordered) - 2) // 2, (len(ordered) - 1) // 2))
    return (ordered[low] + ordered[high]) / 2


def _metric(name: str, task: str) -> Metric:
    if name not in METRICS:
        raise StoreError(f"A record of the task {task!r} has a metric that {choices(name, METRICS)}")
    return METRICS[name]


def _against_spread(lead: Lead) -> str:
    """The end of the sentence: the lead beside the spread over seeds."""
    counts = f"{lead.seeds[0]}" if lead.seeds[0] == lead.seeds[1] else f"{lead.seeds[0]} and {lead.seeds[1]}"
    seeds = f"{counts} seed{'' if lead.seeds == (1, 1) else 's'}"
    if lead.spread is None:
        return f"; from {seeds} each nothing can be said about the spread over seeds, so no difference can be claimed."
    if lead.within_spread:
        return (
            f", no more than the spread over seeds ({_small(lead.spread)}): no difference can be claimed from {seeds}."
        )
    return (
        f", more than the spread over seeds ({_small(lead.spread)}): a hint from {seeds}, "
        "no proof that the one is better."
    )


def render(tables: Iterable[TaskTable]) -> Group:
    """The tables, each with its sentence and the runs left out, for `rich.console.Console.print`.

    A row takes one line where the console is wide enough, else it stacks its figures in pairs on two.
    """
    return Group(*(part for table in tables for part in _render_one(table)))


def _render_one(table: TaskTable) -> list[RenderableType]:
    notes = [f"{row.label}: {note}" for row in table.rows for note in row.notes]
    below = [table.sentence, *notes, *([_LEFT_OUT] if notes else [])]
    return [_Drawn(table), *(Padding(Text(line), (0, 0, 0, 2), expand=False) for line in below), Text()]


@dataclass(frozen=True)
class _Drawn:
    """A table as wide as it likes to be, or else its narrow form."""

    table: TaskTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = _draw(self.table, stacked=False)
        wanted = Measurement.get(console, options.update(width=10_000), wide).maximum
        yield wide if wanted <= options.max_width else _draw(self.table, stacked=True)


def _draw(table: TaskTable, *, stacked: bool) -> Table:
    title = Text(f"{table.title} on {table.model}: mean ± standard deviation over seeds", style="bold")
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lay_out = _one_column_a_group if stacked else _one_column_a_text
    for place, heading in enumerate(lay_out(_headings(table))):
        drawn.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*lay_out(_cells(row)))
    return drawn


def _one_column_a_group(groups: Sequence[Sequence[str]]) -> list[Text]:
    # The label too is broken between its parts, or it would leave no room for the figures.
    return [Text("\n".join(group).replace(", ", ",\n")) for group in groups]


def _one_column_a_text(groups: Sequence[Sequence[str]]) -> list[Text]:
    return [Text(text) for group in groups for text in group]


def _headings(table: TaskTable) -> list[tuple[str, ...]]:
    metrics = [summary.metric.title for summary in table.rows[0].metrics]
    scores = [(f"{metric} best", f"{metric} last") for metric in metrics]
    return [("method",), ("runs",), *scores, ("trainable", "of all"), ("samples/s", "peak memory")]


def _cells(row: MethodRow) -> list[tuple[str, ...]]:
    averaged, runs = len(row.finished), len(row.runs)
    share, speed, memory = row.trainable_share, row.samples_per_second, row.peak_memory_bytes
    return [
        (printable(row.label),),
        (str(runs) if averaged == runs else f"{averaged} of {runs}",),
        *(
            (_mean_cell(each.best, _without_best(row)), _mean_cell(each.last, _without_last(row)))
            for each in row.metrics
        ),
        (
            _UNKNOWN if row.trainable is None else f"{row.trainable:,}",
            _UNKNOWN if share is None else f"{100 * share:.2f} %",
        ),
        (
            _UNKNOWN if speed is None else f"{speed:.0f}",
            _UNKNOWN if memory is None else decimal(memory),
        ),
    ]


def _mean_cell(summary: Summary, instead: str) -> str:
    """Mean ± deviation, or `instead` where there is no mean."""
    if summary.mean is None:
        return instead
    return _score(summary.mean) + ("" if summary.deviation is None else f" ± {summary.deviation:.3f}")


def _without_best(row: MethodRow) -> str:
    """What a row without a best mean shows: what became of its runs."""
    states = (state for state in RunState if state is not RunState.FINISHED and row.in_state(state))
    return _UNKNOWN if row.finished else ", ".join(states)


def _without_last(row: MethodRow) -> str:
    """What a row without a last mean shows."""
    if row.finished and all(run.last_collapsed for run in row.finished):
        return str(RunState.COLLAPSED)
    return _without_best(row)


def _score(value: float) -> str:
    return f"{value:.3f}"


def _small(value: float) -> str:
    """A difference: three decimals, or its first digit where they would show nothing."""
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.1g}"
