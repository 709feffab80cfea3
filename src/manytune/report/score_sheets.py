"""An analysis → its tables of scores, statistics and cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from manytune.data.metrics import Metric
from manytune.report.analysis import Analysis, score_of
from manytune.report.answer import train_seconds
from manytune.report.sheets import Cell, Column, Sheet
from manytune.report.task_table import MethodRow, MetricSummary
from manytune.stats import MINIMUM_SEEDS, Comparison, combined_p, mcnemar, metric_draws, summarize
from manytune.storage.directory import PENDING
from manytune.storage.record import RunRecord, RunState

__all__ = [
    "comparison_sheet",
    "cost_sheet",
    "left_out_sheet",
    "parts_sheet",
    "rank_sheet",
    "rate_sheet",
    "run_sheet",
    "score_sheets",
    "standing_sheet",
    "swept",
]

_CONFIGURATION = Column("configuration", "configuration")

_SELECTED = {
    "dev": "The best evaluation was chosen on dev itself, so its scores are optimistic.",
    "train-split": "The best evaluation was chosen on a tenth of train, so its scores on dev are not optimistic.",
}


def score_sheets(analysis: Analysis) -> tuple[Sheet, ...]:
    """One table a metric, the primary one first: best and last evaluation side by side."""
    return tuple(_score_sheet(analysis, place) for place in range(len(analysis.rows[0].metrics)))


def _score_sheet(analysis: Analysis, place: int) -> Sheet:
    metric = analysis.rows[0].metrics[place].metric
    columns = [
        _CONFIGURATION,
        Column("seeds", "seeds", "count"),
        Column("left_out", "left out"),
        Column("mean", "mean", "score"),
        Column("standard_deviation", "sd", "score"),
        Column("median", "median", "score"),
        Column("best", "best", "score"),
        Column("best_seed", "seed", "count"),
        Column("last_mean", "last: mean", "score"),
        Column("last_standard_deviation", "last: sd", "score"),
    ]
    if place == 0:
        examples = (Column("examples_low", "dev: low", "score"), Column("examples_high", "dev: high", "score"))
        columns[5:5] = examples
    rows = []
    for row in analysis.rows:
        cells = _score_cells(analysis, row, row.metrics[place])
        if place == 0:
            cells[5:5] = analysis.intervals.get(row.label, (None, None))
        rows.append(tuple(cells))
    caption = (
        "Mean, standard deviation and median over the seeds that finished, each at its best evaluation; last: at the "
        f"last one. {' '.join(_SELECTED[selection] for selection in analysis.selections if selection in _SELECTED)}"
    ).strip()
    if place == 0:
        caption += " dev: 95 % bootstrap interval of the mean over dev examples."
    name = f"{analysis.key}-scores" if place == 0 else f"{analysis.key}-scores-{metric.name}"
    return Sheet(name, f"{analysis.title}: {metric.title}", caption, tuple(columns), tuple(rows))


def _score_cells(analysis: Analysis, row: MethodRow, summary: MetricSummary) -> list[Cell]:
    metric = summary.metric
    scores = [(run.seed, score) for run in row.finished if (score := score_of(run, metric.name)) is not None]
    seed, best = _best(scores, metric)
    median = statistics.median(score for _, score in scores) if scores else None
    first: list[Cell] = [row.label, len(scores), _left_out(analysis, row), summary.best.mean, summary.best.deviation]
    return [*first, median, best, seed, summary.last.mean, summary.last.deviation]


def _left_out(analysis: Analysis, row: MethodRow) -> str | None:
    """The runs that no mean holds, counted: "1 collapsed, 2 pending"."""
    counts = {str(state): len(row.in_state(state)) for state in RunState if state is not RunState.FINISHED}
    counts[PENDING] = sum(run.label == row.label for run in analysis.pending)
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or None


def _best(scores: Sequence[tuple[int, float]], metric: Metric) -> tuple[int | None, float | None]:
    sign = 1 if metric.higher_is_better else -1
    return max(scores, key=lambda one: sign * one[1], default=(None, None))


def left_out_sheet(analysis: Analysis) -> Sheet | None:
    """The runs that no mean holds, by name, with the reason."""
    rows: list[tuple[Cell, ...]] = []
    for run in analysis.records:
        if run.state is not RunState.FINISHED:
            rows.append((run.run_id, run.label, run.seed, str(run.state), run.failure or next(iter(run.notes), None)))
        elif run.last_collapsed:
            said = "predicts a constant at its last evaluation: left out of the last mean"
            rows.append((run.run_id, run.label, run.seed, str(run.state), said))
    rows += [(run.run_id, run.label, run.seed, run.state, "has not ended") for run in analysis.pending]
    if not rows:
        return None
    columns = (
        Column("run", "run"),
        _CONFIGURATION,
        Column("seed", "seed", "count"),
        Column("state", "state"),
        Column("reason", "why"),
    )
    return Sheet(
        f"{analysis.key}-left-out",
        f"{analysis.title}: runs that are in no mean",
        "Collapsed, failed, pruned and pending runs are counted beside the means and never averaged in.",
        columns,
        tuple(rows),
    )


def run_sheet(analysis: Analysis) -> Sheet:
    """Every run that has ended."""
    names = [summary.metric for summary in analysis.rows[0].metrics]
    columns = [
        Column("run", "run"),
        _CONFIGURATION,
        Column("seed", "seed", "count"),
        Column("state", "state"),
        *(Column(metric.name, metric.title, "score") for metric in names),
        Column("best_step", "at step", "count"),
        *(Column(f"last_{metric.name}", f"last {metric.title}", "score") for metric in names),
        Column("steps", "steps", "count"),
        Column("train_seconds", "training", "seconds"),
    ]
    rows = []
    for run in analysis.records:
        best = [score_of(run, metric.name) for metric in names]
        last = [
            run.last_score if metric.name == run.primary_metric else run.last_scores.get(metric.name)
            for metric in names
        ]
        first = (run.run_id, run.label, run.seed, str(run.state))
        rows.append((*first, *best, run.best_step, *last, run.steps, run.cost.train_seconds))
    caption = "Best scores are those of the best snapshot, read back and scored once more, alone and in fp32."
    return Sheet(f"{analysis.key}-runs", f"{analysis.title}: every run", caption, tuple(columns), tuple(rows))


def comparison_sheet(analysis: Analysis) -> Sheet | None:
    """Every pair of methods; None where there are fewer than two with scores."""
    if not analysis.comparisons:
        return None
    columns = (
        Column("first", "first"),
        Column("second", "second"),
        Column("verdict", "verdict"),
        Column("difference", "difference", "difference"),
        Column("low", "95 %: low", "difference"),
        Column("high", "95 %: high", "difference"),
        Column("seeds", "seeds", "count"),
        Column("wins", "first ahead", "count"),
        Column("p", "p", "p"),
        Column("p_holm", "p (Holm)", "p"),
        Column("sign_flip_p", "p, sign flips", "p"),
        Column("effect_size", "effect size", "effect"),
        Column("seeds_needed", "seeds for 80 %", "count"),
        Column("examples_low", "dev: low", "difference"),
        Column("examples_high", "dev: high", "difference"),
        Column("examples_p", "dev: p", "p"),
        Column("mcnemar_p", "McNemar p", "p"),
        Column("choices_first", "of first's", "count"),
        Column("choices_second", "of second's", "count"),
    )
    caption = (
        "Each method by its configuration with the best mean. p and the interval over seeds are of paired t-tests "
        "that pay for the choice among a method's configurations; Holm corrects over all pairs of methods. Sign flips, "
        "effect size (Hedges' d) and McNemar are of the two configurations alone. dev: interval and p of a paired "
        f"bootstrap over dev examples. Below {MINIMUM_SEEDS} seeds nothing over seeds is shown but the difference."
    )
    rows = tuple(_comparison(analysis, each) for each in analysis.comparisons)
    return Sheet(f"{analysis.key}-comparisons", f"{analysis.title}: methods in pairs", caption, columns, rows)


def _comparison(analysis: Analysis, found: Comparison) -> tuple[Cell, ...]:
    enough = found.seeds >= MINIMUM_SEEDS
    tests = (found.p, found.p_holm, found.sign_flip_p, found.effect)
    return (
        found.first_label,
        found.second_label,
        str(found.verdict),
        found.difference,
        found.low if enough else None,
        found.high if enough else None,
        found.seeds,
        found.wins,
        *(tests if enough else (None,) * len(tests)),
        found.seeds_needed,
        found.examples_low,
        found.examples_high,
        found.examples_p,
        _mcnemar(analysis, analysis.row(found.first_label), analysis.row(found.second_label)),
        *found.choices,
    )


def _mcnemar(analysis: Analysis, first: MethodRow, second: MethodRow) -> float | None:
    """One p over the seeds that both have; None for a regression or without predictions."""
    if analysis.examples is None or analysis.task is None or analysis.task.kind != "classification":
        return None
    labels = np.array(analysis.examples.labels)
    ours, theirs = (
        {run.seed: analysis.predictions[run.run_id] for run in row.finished if run.run_id in analysis.predictions}
        for row in (first, second)
    )
    shared = sorted(ours.keys() & theirs.keys())
    return combined_p([mcnemar(ours[seed] == labels, theirs[seed] == labels)[2] for seed in shared])


def standing_sheet(analysis: Analysis) -> Sheet | None:
    """Which configurations may be the best; None where none has a score."""
    if not analysis.standings:
        return None
    best = analysis.mean(analysis.ranked[0])
    rows: list[tuple[Cell, ...]] = []
    for row in analysis.ranked:
        standing = analysis.standings[row.label]
        said = {True: "yes", False: "no", None: "too few seeds"}[standing.in_reach]
        mean = analysis.mean(row)
        behind = None if mean is None or best is None else mean - best
        p = None if standing.in_reach is None else standing.p
        rows.append((row.label, len(row.finished), mean, behind, p, said, row.trainable, row.trainable_share))
    columns = (
        _CONFIGURATION,
        Column("seeds", "seeds", "count"),
        Column("mean", "mean", "score"),
        Column("from_best", "from the best", "difference"),
        Column("p", "p (is the best)", "p"),
        Column("may_be_best", "may be the best"),
        Column("trainable", "trainable", "count"),
        Column("trainable_share", "of all", "share"),
    )
    caption = (
        "The true best one is among those marked yes in at least 95 % of studies (multiple comparisons with the best, "
        "paired t-tests over seeds, Bonferroni)."
    )
    return Sheet(f"{analysis.key}-standings", f"{analysis.title}: who may be the best", caption, columns, tuple(rows))


def cost_sheet(analysis: Analysis) -> Sheet:
    """What each configuration costs."""
    columns = (
        _CONFIGURATION,
        Column("total", "parameters", "count"),
        Column("trainable", "trainable", "count"),
        Column("trainable_share", "of all", "share"),
        *(Column(name, name, "count") for name in ("backbone", "bias", "adapter", "head")),
        Column("train_seconds", "training", "seconds"),
        Column("eval_seconds", "evaluation", "seconds"),
        Column("samples_per_second", "samples/s", "count"),
        Column("peak_memory_bytes", "peak memory", "bytes"),
        Column("snapshot_bytes", "snapshot", "bytes"),
        Column("pack_size", "in a pack of", "count"),
    )
    rows: list[tuple[Cell, ...]] = []
    for row in analysis.rows:
        parameters = next((run.parameters for run in row.runs if run.parameters.total is not None), None)
        split = ("backbone", "bias", "adapter", "head")
        rows.append(
            (
                row.label,
                parameters.total if parameters else None,
                row.trainable,
                row.trainable_share,
                *(getattr(parameters, name) if parameters else None for name in split),
                train_seconds(row),
                _mean(row, lambda run: run.cost.eval_seconds),
                row.samples_per_second,
                row.peak_memory_bytes,
                _mean(row, lambda run: run.cost.snapshot_bytes),
                _mean(row, lambda run: run.cost.pack_size),
            )
        )
    caption = (
        "backbone, bias, adapter and head add up to the trainable ones. Times are a run's share of its pack's time, "
        "mean over the runs that finished; peak memory is the whole pack's."
    )
    return Sheet(f"{analysis.key}-cost", f"{analysis.title}: cost", caption, columns, tuple(rows))


def _mean(row: MethodRow, value: Callable[[RunRecord], float | None]) -> float | None:
    return summarize(map(value, row.finished)).mean


def swept(analysis: Analysis, method: str | None, name: str) -> dict[str, list[tuple[float, MethodRow]]]:
    """Configurations that differ in one hyper-parameter, as series: what is the same → (value, configuration).

    Series of one value are left out.

    Args:
        analysis: Where they are.
        method: Only of this method; None for all.
        name: The hyper-parameter.
    """
    series: dict[str, list[tuple[float, MethodRow]]] = {}
    for row in analysis.rows:
        settings = dict(row.runs[0].hyperparameters)
        value = settings.pop(name, None)
        if not isinstance(value, int | float) or (method is not None and row.runs[0].method != method):
            continue
        # A label minus its swept part names the series as the rest of the page does.
        key = ", ".join(part for part in _parts(row) if not part.startswith(_SHOWN[name]))
        series.setdefault(key, []).append((float(value), row))
    return {
        key: sorted(points, key=lambda point: point[0])
        for key, points in series.items()
        if len({value for value, _ in points}) > 1
    }


_SHOWN = {"rank": "r=", "learning_rate": "lr "}


def _parts(row: MethodRow) -> list[str]:
    method = row.runs[0].method
    rest = row.label.removeprefix(method).strip()
    first, *others = rest.split(", ")
    return [method, first, *others] if first else [method]


def rank_sheet(analysis: Analysis) -> Sheet | None:
    """Score by LoRA rank; None where fewer than two ranks were run."""
    return _swept_sheet(analysis, "rank", "rank", "rank", "count")


def rate_sheet(analysis: Analysis) -> Sheet | None:
    """Score by learning rate; None where no method has more than one."""
    return _swept_sheet(analysis, "learning_rate", "learning rate", "rates", "rate")


def _swept_sheet(analysis: Analysis, name: str, title: str, stem: str, kind: str) -> Sheet | None:
    rows: list[tuple[Cell, ...]] = []
    for key, points in swept(analysis, None, name).items():
        for value, row in points:
            best = row.primary.best
            left_out = len(row.runs) - len(row.finished)
            rows.append((key, value, len(row.finished), left_out, best.mean, best.deviation, row.trainable))
    if not rows:
        return None
    columns = (
        Column("series", "method"),
        Column(name, title, kind),
        Column("seeds", "seeds", "count"),
        Column("left_out", "left out", "count"),
        Column("mean", "mean", "score"),
        Column("standard_deviation", "sd", "score"),
        Column("trainable", "trainable", "count"),
    )
    caption = f"{analysis.metric.title}, mean and standard deviation over the seeds that finished."
    return Sheet(f"{analysis.key}-{stem}", f"{analysis.title}: {title}", caption, columns, tuple(rows))


def parts_sheet(analysis: Analysis) -> Sheet | None:
    """The primary metric on each part of dev; None where dev has no parts or predictions were not kept."""
    examples = analysis.examples
    if examples is None or not examples.parts or not analysis.predictions:
        return None
    labels = np.array(examples.labels)
    rows: list[tuple[Cell, ...]] = []
    for row in analysis.rows:
        own = [analysis.predictions[run.run_id] for run in row.finished if run.run_id in analysis.predictions]
        cells: list[Cell] = [row.label, len(own)]
        for first, last in examples.parts.values():
            scores = _scores(analysis, own, labels, first, last)
            summary = summarize(scores)
            cells += [summary.mean, summary.deviation]
        rows.append(tuple(cells))
    columns = [_CONFIGURATION, Column("seeds", "seeds", "count")]
    for name in examples.parts:
        columns += [Column(f"{name}_mean", name, "score"), Column(f"{name}_standard_deviation", "sd", "score")]
    sizes = ", ".join(f"{name} {last - first}" for name, (first, last) in examples.parts.items())
    caption = f"{analysis.metric.title}, mean and standard deviation over seeds, on each part of dev ({sizes} rows)."
    return Sheet(f"{analysis.key}-parts", f"{analysis.title}: parts of dev", caption, tuple(columns), tuple(rows))


def _scores(analysis: Analysis, predictions: Sequence[Any], labels: Any, first: int, last: int) -> list[float]:
    if not predictions:
        return []
    part = slice(first, last)
    said = np.stack(predictions)[:, part]
    found = metric_draws(analysis.metric.name, said, labels[part], np.ones((1, last - first)))
    return [] if found is None else [float(score) for score in found[0]]
