"""An analysis → its tables of scores, statistics and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, median

import numpy as np

from manytune.data.baselines import SETTINGS
from manytune.data.tasks import GLUE
from manytune.methods.base import Axis
from manytune.report.analysis import Analysis
from manytune.report.names import method_title
from manytune.report.series import swept
from manytune.report.sheets import UNKNOWN, Cell, Field, Sheet, sheet_of
from manytune.report.task_table import MethodRow, last_score_of, score_of
from manytune.stats.describe import summarize
from manytune.stats.examples import combined_p, mcnemar, metric_draws
from manytune.stats.verdict import MINIMUM_SEEDS, Comparison
from manytune.storage.directory import PENDING, RunStatus
from manytune.storage.record import RunRecord, RunState

_CONFIGURATION: Field = ("configuration", "configuration", "label", lambda row: row.label)
_SEEDS: Field = ("seeds", "seeds", "count", lambda row: len(row.finished))
_MEAN: Field = ("mean", "mean", "score", lambda row: row.mean)
_TRAINABLE: Field = ("trainable", "trainable", "count", lambda row: row.trainable)
_TRAINABLE_SHARE: Field = ("trainable_share", "of all", "share", lambda row: row.trainable_share)

_SELECTED = {
    "dev": "The best evaluation was chosen on dev itself, so its scores are optimistic.",
    "train-split": "The best evaluation was chosen on a tenth of train, so its scores on dev are not optimistic.",
}


def score_sheets(analysis: Analysis) -> tuple[Sheet, ...]:
    """One table a metric, the primary one first: best and last evaluation side by side."""
    return tuple(_score_sheet(analysis, index) for index in range(len(analysis.rows[0].metrics)))


def _score_sheet(analysis: Analysis, index: int) -> Sheet:
    metric = analysis.rows[0].metrics[index].metric
    sign = 1 if metric.higher_is_better else -1

    def scores(row: MethodRow) -> list[float]:
        return [score for _, score in row.scored(metric.name)]

    def best(row: MethodRow) -> tuple[int | None, float | None]:
        """Seed and score of the best run that finished."""
        scored = ((run.seed, score) for run, score in row.scored(metric.name))
        return max(scored, key=lambda pair: sign * pair[1], default=(None, None))

    def left_out(row: MethodRow) -> str | None:
        """The runs that are in no mean, counted: "1 collapsed, 2 pending"."""
        counts = {str(state): len(row.in_state(state)) for state in RunState if state is not RunState.FINISHED}
        counts[PENDING] = sum(run.label == row.label for run in analysis.pending)
        return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or None

    fields: list[Field] = [
        _CONFIGURATION,
        ("mean", "mean ± sd", "score", lambda row: row.metrics[index].best.mean),
        ("standard_deviation", "sd", "deviation", lambda row: row.metrics[index].best.deviation),
        ("seeds", "seeds", "count", lambda row: len(scores(row))),
        ("left_out", "left out", "text", left_out),
        ("median", "median", "score", lambda row: median(scores(row)) if scores(row) else None),
        ("best", "best", "score", lambda row: best(row)[1]),
        ("best_seed", "seed", "count", lambda row: best(row)[0]),
        ("last_mean", "last: mean ± sd", "score", lambda row: row.metrics[index].last.mean),
        ("last_standard_deviation", "last: sd", "deviation", lambda row: row.metrics[index].last.deviation),
    ]
    caption = (
        "Mean, standard deviation and median over the seeds that finished, each at its best evaluation; last: at the "
        f"last one. {' '.join(_SELECTED[selection] for selection in analysis.selections if selection in _SELECTED)}"
    ).strip()
    if index > 0:
        return analysis.sheet(f"scores-{metric.name}", metric.title, caption, fields, analysis.table.by_mean)
    intervals, unknown = analysis.intervals, (None, None)
    fields[5:5] = [
        ("examples_low", "dev: low", "score", lambda row: intervals.get(row.label, unknown)[0]),
        ("examples_high", "dev: high", "score", lambda row: intervals.get(row.label, unknown)[1]),
    ]
    caption += " dev: 95 % bootstrap interval of the mean over dev examples."
    return analysis.sheet("scores", metric.title, caption, fields, analysis.table.by_mean)


def baseline_sheet(analysis: Analysis) -> Sheet | None:
    """What baselines score on dev; None where they were not kept."""
    if not analysis.table.baselines:
        return None
    metrics = [summary.metric for summary in analysis.rows[0].metrics]
    fields: list[Field] = [
        ("baseline", "baseline", "text", lambda one: one.title),
        *((each.name, each.title, "score", lambda one, name=each.name: one.scores.get(name)) for each in metrics),
        ("rows", "training rows", "count", lambda one: one.rows),
        ("note", "note", "text", lambda one: one.note or None),
    ]
    paired = analysis.task is not None and len(analysis.task.text_columns) > 1
    pairs = f" of the {SETTINGS['pairs']}" if paired else ""
    caption = (
        "Without a pretrained model: trained on the rows that runs train on, scored on the same dev rows. TF-IDF is of "
        "words and pairs of neighbours, with scikit-learn's LogisticRegression or Ridge"
        f"{pairs}. A correlation of a constant is undefined."
    )
    return analysis.sheet("baselines", "baselines", caption, fields, analysis.table.baselines)


def left_out_sheet(analysis: Analysis) -> Sheet | None:
    """The runs that are in no mean, by name, with the reason; None where there are none."""
    left_out: list[tuple[RunRecord | RunStatus, str | None]] = []
    for run in analysis.records:
        if run.state is not RunState.FINISHED:
            left_out.append((run, run.failure or next(iter(run.notes), None)))
        elif run.last_collapsed:
            left_out.append((run, "predicts a constant at its last evaluation: left out of the last mean"))
    left_out += [(run, "has not ended") for run in analysis.pending]
    if not left_out:
        return None
    fields: list[Field] = [
        ("run", "run", "text", lambda one: one[0].run_id),
        ("configuration", "configuration", "label", lambda one: one[0].label),
        ("seed", "seed", "count", lambda one: one[0].seed),
        ("state", "state", "text", lambda one: str(one[0].state)),
        ("reason", "why", "text", lambda one: one[1]),
    ]
    caption = "Collapsed, failed, pruned and pending runs are counted beside the means and never averaged in."
    return analysis.sheet("left-out", "runs that are in no mean", caption, fields, left_out)


def run_sheet(analysis: Analysis) -> Sheet:
    """Every run that has ended."""
    metrics = {summary.metric.name: summary.metric.title for summary in analysis.rows[0].metrics}
    fields: list[Field] = [
        ("run", "run", "text", lambda run: run.run_id),
        _CONFIGURATION,
        ("seed", "seed", "count", lambda run: run.seed),
        ("state", "state", "text", lambda run: str(run.state)),
        *((name, title, "score", partial(score_of, metric=name)) for name, title in metrics.items()),
        ("best_step", "at step", "count", lambda run: run.best_step),
        *(
            (f"last_{name}", f"last {title}", "score", partial(last_score_of, metric=name))
            for name, title in metrics.items()
        ),
        ("steps", "steps", "count", lambda run: run.steps),
        ("train_seconds", "training", "seconds", lambda run: run.cost.train_seconds),
    ]
    caption = "Best scores are those of the best snapshot, read back and scored once more, alone and in fp32."
    return analysis.sheet("runs", "every run", caption, fields, analysis.records)


def seeds_sheet(analysis: Analysis) -> Sheet | None:
    """The pairs with too few seeds for a verdict, and how many they would need; None where there are none."""
    few = [pair for pair in analysis.comparisons if pair.seeds < MINIMUM_SEEDS]
    if not few:
        return None

    def needed(pair: Comparison) -> int | None:
        return MINIMUM_SEEDS if pair.deviation is None else pair.seeds_needed

    fields: list[Field] = [
        ("first", "first", "label", lambda pair: pair.first_label),
        ("second", "second", "label", lambda pair: pair.second_label),
        ("difference", "difference", "difference", lambda pair: pair.difference),
        ("seeds", "seeds both have", "count", lambda pair: pair.seeds),
        ("needed", "seeds needed", "count", needed),
        ("more", "more", "count", lambda pair: None if (seeds := needed(pair)) is None else seeds - pair.seeds),
    ]
    caption = (
        f"A verdict takes at least {MINIMUM_SEEDS} seeds that both have. With the seeds needed, four of five studies "
        f"would find the difference, if it is real and the spread is as seen; {UNKNOWN}: more than a thousand."
    )
    return analysis.sheet("seeds", "too few seeds for a verdict", caption, fields, few)


def comparison_sheet(analysis: Analysis) -> Sheet | None:
    """Every pair of methods; None where there are fewer than two with scores."""
    if not analysis.comparisons:
        return None

    def tested(name: str) -> Callable[[Comparison], Cell]:
        """A field of the comparison that is shown only where the seeds are enough for a test."""
        return lambda pair: getattr(pair, name) if pair.seeds >= MINIMUM_SEEDS else None

    def mcnemar_p(pair: Comparison) -> float | None:
        """One p over the seeds that both have; None where predictions are not right or wrong, or were not kept."""
        if analysis.examples is None or analysis.task is None or not analysis.task.type.right_or_wrong:
            return None
        labels = np.array(analysis.examples.labels)
        first, second = (
            {run.seed: prediction == labels for run, prediction in analysis.predicted(analysis.row(label))}
            for label in (pair.first_label, pair.second_label)
        )
        return combined_p([mcnemar(first[seed], second[seed])[2] for seed in sorted(first.keys() & second.keys())])

    fields: list[Field] = [
        ("first", "first", "label", lambda pair: pair.first_label),
        ("second", "second", "label", lambda pair: pair.second_label),
        ("verdict", "verdict", "text", lambda pair: str(pair.verdict)),
        ("difference", "difference", "difference", lambda pair: pair.difference),
        ("low", "95 %: low", "difference", tested("low")),
        ("high", "95 %: high", "difference", tested("high")),
        ("seeds", "seeds", "count", lambda pair: pair.seeds),
        ("wins", "first ahead", "count", lambda pair: pair.wins),
        ("p", "p", "p", tested("p")),
        ("p_holm", "p (Holm)", "p", tested("p_holm")),
        ("sign_flip_p", "p, sign flips", "p", tested("sign_flip_p")),
        ("effect_size", "effect size", "effect", tested("effect")),
        ("seeds_needed", "seeds for 80 %", "count", lambda pair: pair.seeds_needed),
        ("examples_low", "dev: low", "difference", lambda pair: pair.examples_low),
        ("examples_high", "dev: high", "difference", lambda pair: pair.examples_high),
        ("examples_p", "dev: p", "p", lambda pair: pair.examples_p),
        ("mcnemar_p", "McNemar p", "p", mcnemar_p),
        ("choices_first", "of first's", "count", lambda pair: pair.choices[0]),
        ("choices_second", "of second's", "count", lambda pair: pair.choices[1]),
    ]
    if all(pair.seeds < MINIMUM_SEEDS for pair in analysis.comparisons):
        untested = ("verdict", "low", "high", "p", "p_holm", "sign_flip_p", "effect_size", "seeds_needed")
        fields = [each for each in fields if each[0] not in untested]
    caption = (
        "Each method by its configuration with the best mean. p and the interval over seeds are of paired t-tests "
        "that pay for the choice among a method's configurations; Holm corrects over all pairs of methods. Sign flips, "
        "effect size (Hedges' d) and McNemar are of the two configurations alone. dev: interval and p of a paired "
        f"bootstrap over dev examples. Below {MINIMUM_SEEDS} seeds nothing over seeds is shown but the difference."
    )
    return analysis.sheet("comparisons", "methods in pairs", caption, fields, analysis.comparisons)


def standing_sheet(analysis: Analysis) -> Sheet | None:
    """Which configurations may be the best; None where none has the seeds for a test."""
    if not analysis.standings:
        return None
    best, standings = analysis.ranked[0].mean, analysis.standings
    words = {True: "yes", False: "no", None: "too few seeds"}

    def p(row: MethodRow) -> float | None:
        return None if standings[row.label].may_be_best is None else standings[row.label].p

    fields: list[Field] = [
        _CONFIGURATION,
        _SEEDS,
        _MEAN,
        ("from_best", "from the best", "difference", lambda row: row.mean - best),
        ("p", "p (is the best)", "p", p),
        ("may_be_best", "may be the best", "text", lambda row: words[standings[row.label].may_be_best]),
        _TRAINABLE,
        _TRAINABLE_SHARE,
    ]
    if all(each.may_be_best is None for each in standings.values()):
        return None
    caption = (
        "The true best one is among those marked yes in at least 95 % of studies (multiple comparisons with the best, "
        "paired t-tests over seeds, Bonferroni)."
    )
    return analysis.sheet("standings", "who may be the best", caption, fields, analysis.ranked)


def cost_sheet(analysis: Analysis) -> Sheet:
    """What each configuration costs."""

    def parameters(name: str, row: MethodRow) -> int | None:
        known = (run.parameters for run in row.runs if run.parameters.total is not None)
        return getattr(next(known, None), name, None)

    fields: list[Field] = [
        _CONFIGURATION,
        ("total", "parameters", "count", partial(parameters, "total")),
        _TRAINABLE,
        _TRAINABLE_SHARE,
        *((name, name, "count", partial(parameters, name)) for name in ("backbone", "bias", "adapter", "head")),
        ("train_seconds", "training", "seconds", lambda row: row.train_seconds),
        ("eval_seconds", "evaluation", "seconds", lambda row: row.mean_cost("eval_seconds")),
        ("samples_per_second", "samples/s", "count", lambda row: row.samples_per_second),
        ("peak_memory_bytes", "peak memory", "bytes", lambda row: row.peak_memory_bytes),
        ("snapshot_bytes", "snapshot", "bytes", lambda row: row.mean_cost("snapshot_bytes")),
        ("pack_size", "in a pack of", "count", lambda row: row.mean_cost("pack_size")),
    ]
    caption = (
        "backbone, bias, adapter and head add up to the trainable ones. Times are a run's share of its pack's time, "
        "mean over the runs that finished; peak memory is the whole pack's."
    )
    return analysis.sheet("cost", "cost", caption, fields, analysis.table.by_mean)


def axis_sheet(axis: Axis, analysis: Analysis) -> Sheet | None:
    """Score by a hyper-parameter; None where no series has two values of it."""
    title = axis.name.replace("_", " ")
    points = [(sweep.name, value, row) for sweep in swept(analysis, axis) for value, row in sweep.points]
    if not points:
        return None
    fields: list[Field] = [
        ("series", "method", "text", lambda one: one[0]),
        (axis.name, title, axis.kind, lambda one: one[1]),
        ("mean", "mean ± sd", "score", lambda one: one[2].mean),
        ("standard_deviation", "sd", "deviation", lambda one: one[2].primary.best.deviation),
        ("seeds", "seeds", "count", lambda one: len(one[2].finished)),
        ("left_out", "left out", "count", lambda one: len(one[2].runs) - len(one[2].finished)),
        ("trainable", "trainable", "count", lambda one: one[2].trainable),
    ]
    caption = f"{analysis.metric.title}, mean and standard deviation over the seeds that finished."
    return analysis.sheet(axis.key, title, caption, fields, points)


def parts_sheet(analysis: Analysis) -> Sheet | None:
    """The primary metric on each part of dev; None where dev has no parts or predictions were not kept."""
    examples = analysis.examples
    if examples is None or not examples.parts or not analysis.predictions:
        return None
    labels = np.array(examples.labels)

    def over_seeds(field: str, first: int, last: int, row: MethodRow) -> float | None:
        predictions = [prediction[first:last] for _, prediction in analysis.predicted(row)]
        if not predictions:
            return None
        once = np.ones((1, last - first))
        scores = metric_draws(analysis.metric.name, np.stack(predictions), labels[first:last], once)
        return None if scores is None else getattr(summarize(scores[0]), field)

    fields: list[Field] = [_CONFIGURATION]
    for name, part in examples.parts.items():
        fields.append((f"{name}_mean", f"{name}: mean ± sd", "score", partial(over_seeds, "mean", *part)))
        fields.append((f"{name}_standard_deviation", "sd", "deviation", partial(over_seeds, "deviation", *part)))
    fields.append(("seeds", "seeds", "count", lambda row: len(analysis.predicted(row))))
    sizes = ", ".join(f"{name} {last - first}" for name, (first, last) in examples.parts.items())
    caption = f"{analysis.metric.title}, mean and standard deviation over seeds, on each part of dev ({sizes} rows)."
    return analysis.sheet("parts", "parts of dev", caption, fields, analysis.table.by_mean)


def glue_sheet(analyses: Sequence[Analysis]) -> Sheet | None:
    """The average over GLUE's nine tasks, of each backbone and method with a score on all of them; None without any.

    A task with several metrics counts by their mean, as on GLUE's leaderboard, and every task counts the same:
    Wang et al. 2018, https://arxiv.org/abs/1804.07461, section 4.
    """
    best: dict[tuple[str, str], dict[str, MethodRow]] = {}
    for analysis in analyses:
        for row in analysis.best_rows:
            best.setdefault((analysis.table.model, row.method), {})[analysis.table.task] = row
    whole = [(model, method, rows) for (model, method), rows in best.items() if set(GLUE) <= rows.keys()]
    if not whole:
        return None

    def score(task: str, item: tuple[str, str, Mapping[str, MethodRow]]) -> float | None:
        scores = [[score for _, score in item[2][task].scored(metric)] for metric in GLUE[task].all_metrics]
        return fmean(map(fmean, scores)) if all(scores) else None

    def average(item: tuple[str, str, Mapping[str, MethodRow]]) -> float | None:
        known = [value for task in GLUE if (value := score(task, item)) is not None]
        return fmean(known) if len(known) == len(GLUE) else None

    def configurations(item: tuple[str, str, Mapping[str, MethodRow]]) -> str:
        return "; ".join(f"{task.title}: {item[2][name].label}" for name, task in GLUE.items())

    fields: list[Field] = [
        ("model", "model", "text", lambda item: item[0]),
        ("method", "method", "text", lambda item: method_title(item[1])),
        ("average", "average", "score", average),
        *((name, task.title, "score", partial(score, name)) for name, task in GLUE.items()),
        ("configurations", "configuration by task", "text", configurations),
    ]
    caption = (
        "Mean over the nine tasks of GLUE; a task's score is the mean of its metrics over the seeds that finished, on "
        "dev (the leaderboard's is on test). Each method by its best configuration on each task, chosen on dev: the "
        "more configurations it had, the more its average owes to that choice."
    )
    whole.sort(key=lambda item: -(average(item) or 0.0))
    return sheet_of("glue-average", "GLUE average", caption, fields, whole)
