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
from manytune.report.sheets import Cell, Field, Sheet, sheet_of, show
from manytune.report.task_table import MethodRow, last_score_of, score_of
from manytune.stats.claims import Comparison, Verdict
from manytune.stats.describe import summarize
from manytune.stats.examples import metric_draws
from manytune.storage.directory import PENDING, RunStatus
from manytune.storage.record import RunRecord, RunState

_CONFIGURATION: Field = ("configuration", "configuration", "label", lambda row: row.label)
_SEEDS: Field = ("seeds", "seeds", "count", lambda row: len(row.trained))
_TRAINABLE: Field = ("trainable", "trainable", "count", lambda row: row.trainable)
_TRAINABLE_SHARE: Field = ("trainable_share", "of all", "share", lambda row: row.trainable_share)

_SELECTED = {
    "dev": "The best evaluation was chosen on dev itself, so its scores are optimistic.",
    "none": "Each run is scored after its last step: no rows selected anything, so these scores are not optimistic.",
    "train-split": "The best evaluation was chosen on a tenth of train, so its scores on dev are not optimistic.",
}


def score_sheets(analysis: Analysis) -> tuple[Sheet, ...]:
    """One table a metric, the primary one first: best and last evaluation side by side."""
    return tuple(_score_sheet(analysis, index) for index in range(len(analysis.rows[0].metrics)))


def _score_sheet(analysis: Analysis, index: int) -> Sheet:
    metric = analysis.rows[0].metrics[index].metric
    sign = metric.sign

    def scores(row: MethodRow) -> list[float]:
        return [score for _, score in row.scored(metric.name)]

    def best(row: MethodRow) -> tuple[int | None, float | None]:
        """Seed and score of the best run that trained."""
        scored = ((run.seed, score) for run, score in row.scored(metric.name))
        return max(scored, key=lambda pair: sign * pair[1], default=(None, None))

    def left_out(row: MethodRow) -> str | None:
        """The runs that are in no mean, counted: "1 collapsed, 2 pending"."""
        counts = {str(state): len(row.in_state(state)) for state in RunState if state is not RunState.FINISHED}
        counts["stalled"] = len(row.stalled)
        counts[PENDING] = sum(run.label == row.label for run in analysis.pending)
        return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or None

    means = [mean for row in analysis.rows if (mean := row.metrics[index].best.mean) is not None]
    highest = max(means, key=lambda mean: sign * mean, default=None)

    def from_best(row: MethodRow) -> float | None:
        mean = row.metrics[index].best.mean
        return None if mean is None or highest is None else mean - highest

    fields: list[Field] = [
        _CONFIGURATION,
        ("mean", "mean ± sd", "score", lambda row: row.metrics[index].best.mean),
        ("standard_deviation", "sd", "deviation", lambda row: row.metrics[index].best.deviation),
        ("from_best", "from the best", "difference", from_best),
        ("seeds", "seeds", "count", lambda row: len(scores(row))),
        ("left_out", "not in the mean", "text", left_out),
        ("trainable_share", "trainable", "share", lambda row: row.trainable_share),
        ("train_seconds", "training", "seconds", lambda row: row.train_seconds),
    ]
    more: list[Field] = [
        ("median", "median", "score", lambda row: median(scores(row)) if scores(row) else None),
        ("best", "best", "score", lambda row: best(row)[1]),
        ("best_seed", "seed", "count", lambda row: best(row)[0]),
        ("last_mean", "last: mean ± sd", "score", lambda row: row.metrics[index].last.mean),
        ("last_standard_deviation", "last: sd", "deviation", lambda row: row.metrics[index].last.deviation),
    ]
    selected = any(selection != "none" for selection in analysis.selections)
    caption = (
        "Mean and standard deviation over the seeds that trained"
        f"{', each at its best evaluation; last: at the last one' if selected else ''}. "
        f"{' '.join(_SELECTED[selection] for selection in analysis.selections if selection in _SELECTED)}"
    ).strip()
    if index > 0:
        return analysis.sheet(f"scores-{metric.name}", metric.title, caption, fields, analysis.table.by_mean, more)
    examples, rates, unknown = analysis.examples_intervals, analysis.verdict.rates, (None, None)
    failed: list[Field] = [
        ("failures", "did not train", "count", lambda row: len(row.failures)),
        (
            "failures_low",
            "of 100: low",
            "percent",
            lambda row: 1 - rates[row.label].high if row.label in rates else None,
        ),
        ("failures_high", "high", "percent", lambda row: 1 - rates[row.label].low if row.label in rates else None),
    ]
    more = [
        ("seeds_low", "seeds: low", "score", lambda row: (analysis.seed_interval(row.label) or unknown)[0]),
        ("seeds_high", "high", "score", lambda row: (analysis.seed_interval(row.label) or unknown)[1]),
        ("examples_low", "dev: low", "score", lambda row: examples.get(row.label, unknown)[0]),
        ("examples_high", "high", "score", lambda row: examples.get(row.label, unknown)[1]),
        *failed,
        *more,
    ]
    caption += (
        " seeds: 95 % interval of the mean for new seeds; dev: bootstrap interval over dev examples; of 100: interval "
        "of how many runs in a hundred do not train."
    )
    return analysis.sheet("scores", metric.title, caption, fields, analysis.table.by_mean, more)


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
        elif run in analysis.row(run.label).stalled:
            left_out.append((run, "scores little more than a constant prediction: its training did not take off"))
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
    caption = "Collapsed, stalled, failed, pruned and pending runs are counted beside the means and never averaged in."
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
        ("train_seconds", "training", "seconds", lambda run: run.cost.train_seconds),
    ]
    more: list[Field] = [
        *(
            (f"last_{name}", f"last {title}", "score", partial(last_score_of, metric=name))
            for name, title in metrics.items()
        ),
        ("steps", "steps", "count", lambda run: run.steps),
    ]
    caption = "Best scores are those of the best snapshot, read back and scored once more, alone and in fp32."
    return analysis.sheet("runs", "every run", caption, fields, analysis.records, more)


def comparison_sheet(analysis: Analysis) -> Sheet | None:
    """Every pair of methods; None where there are fewer than two with scores."""
    comparisons = analysis.verdict.comparisons
    if not comparisons:
        return None

    def tested(name: str) -> Callable[[Comparison], Cell]:
        """A field of the comparison that is shown only where the seeds are enough for a test."""
        of_spread = name in ("low", "high", "effect", "detectable", "overall_low")

        def value(pair: Comparison) -> Cell:
            shown = pair.verdict is not Verdict.TOO_FEW_SEEDS and (pair.deviation or not of_spread)
            return getattr(pair, name) if shown else None

        return value

    fields: list[Field] = [
        ("first", "first", "label", lambda pair: pair.first_label),
        ("second", "second", "label", lambda pair: pair.second_label),
        ("verdict", "verdict", "text", lambda pair: str(pair.verdict)),
        ("difference", "difference", "difference", lambda pair: pair.difference),
        ("low", "95 %: low", "difference", tested("low")),
        ("high", "high", "difference", tested("high")),
        ("p_holm", "p", "p", tested("p_holm")),
    ]
    more: list[Field] = [
        ("seeds_first", "seeds of first", "count", lambda pair: pair.seeds[0]),
        ("seeds_second", "of second", "count", lambda pair: pair.seeds[1]),
        ("ahead", "first ahead in", "count", lambda pair: pair.ahead),
        ("shared", "of seeds", "count", lambda pair: pair.shared),
        ("p", "p of this pair", "p", tested("p")),
        ("effect_size", "effect size", "effect", tested("effect")),
        ("detectable", "finds", "score", tested("detectable")),
        ("seeds_needed", "seeds for the margin", "count", lambda pair: pair.seeds_needed),
        ("examples_low", "new examples: low", "difference", tested("examples_low")),
        ("examples_high", "high", "difference", tested("examples_high")),
        ("examples_p", "p", "p", tested("examples_p")),
        ("overall_low", "all runs: low", "difference", tested("overall_low")),
        ("rates_p", "failures: p", "p", lambda pair: pair.rates_p),
        ("choices_first", "first of", "count", lambda pair: pair.choices[0]),
        ("choices_second", "second of", "count", lambda pair: pair.choices[1]),
    ]
    caption = (
        "Each method by its configuration with the best mean; positive: the first is better. The interval and p are "
        "for new seeds, pay for the choice among a method's configurations, and p is corrected over all pairs (Holm). "
        f"Below {analysis.verdict.judging.seeds.least} seeds nothing is shown but the difference."
    )
    return analysis.sheet("comparisons", "methods in pairs", caption, fields, comparisons, more)


def standing_sheet(analysis: Analysis) -> Sheet | None:
    """Which configurations may be the best, and which are as good; None where none has the seeds for a test."""
    standings, as_good = analysis.verdict.standings, analysis.verdict.as_good
    if all(each.may_be_best is None for each in standings.values()):
        return None
    best, may_be = analysis.ranked[0].mean or 0.0, {True: "yes", False: "no", None: "too few seeds"}

    def p(row: MethodRow) -> float | None:
        return None if standings[row.label].may_be_best is None else standings[row.label].p

    def good(row: MethodRow) -> str | None:
        found = as_good.get(row.label)
        return None if found is None else "yes" if found.shown else "not shown"

    margin = show(analysis.verdict.judging.margin, "margin")
    fields: list[Field] = [
        _CONFIGURATION,
        ("from_best", "from the best", "difference", lambda row: (row.mean or 0.0) - best),
        ("may_be_best", "may be the best", "text", lambda row: may_be[standings[row.label].may_be_best]),
        ("as_good", f"as good within {margin}", "text", good),
        ("as_good_low", "at least", "difference", lambda row: as_good[row.label].low if row.label in as_good else None),
        (
            "as_good_seeds",
            "seeds for that",
            "count",
            lambda row: as_good[row.label].seeds_needed if row.label in as_good else None,
        ),
        ("trainable_share", "trainable", "share", lambda row: row.trainable_share),
    ]
    more: list[Field] = [
        _SEEDS,
        ("trainable", "parameters", "count", lambda row: row.trainable),
        ("p", "p against being the best", "p", p),
        ("as_good_p", "p of as good", "p", lambda row: as_good[row.label].p if row.label in as_good else None),
    ]
    caption = (
        "The true best one is among those that may be the best in at least 95 % of studies (multiple comparisons with "
        f"the best). As good: shown to be less than {margin} worse than every other one, for new seeds; at least: the "
        "one-sided 95 % lower bound of that difference. The one that trains most parameters is not asked."
    )
    rows = [row for row in analysis.ranked if row.label in standings]
    return analysis.sheet("standings", "who may be the best, and who is as good", caption, fields, rows, more)


def cost_sheet(analysis: Analysis) -> Sheet:
    """What each configuration costs."""

    def parameters(name: str, row: MethodRow) -> int | None:
        known = (run.parameters for run in row.runs if run.parameters.total is not None)
        return getattr(next(known, None), name, None)

    fields: list[Field] = [
        _CONFIGURATION,
        _TRAINABLE,
        _TRAINABLE_SHARE,
        ("train_seconds", "training", "seconds", lambda row: row.train_seconds),
        ("samples_per_second", "samples/s", "count", lambda row: row.samples_per_second),
        ("peak_memory_bytes", "peak memory", "bytes", lambda row: row.peak_memory_bytes),
        ("snapshot_bytes", "snapshot", "bytes", lambda row: row.mean_cost("snapshot_bytes")),
    ]
    more: list[Field] = [
        ("total", "parameters", "count", partial(parameters, "total")),
        *((name, name, "count", partial(parameters, name)) for name in ("backbone", "bias", "adapter", "head")),
        ("eval_seconds", "evaluation", "seconds", lambda row: row.mean_cost("eval_seconds")),
        ("pack_size", "in a pack of", "count", lambda row: row.mean_cost("pack_size")),
    ]
    caption = (
        "backbone, bias, adapter and head add up to the trainable ones. Times are a run's share of its pack's time, "
        "mean over the runs that finished; peak memory is the whole pack's."
    )
    return analysis.sheet("cost", "cost", caption, fields, analysis.table.by_mean, more)


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
        ("seeds", "seeds", "count", lambda one: len(one[2].trained)),
        ("left_out", "left out", "count", lambda one: len(one[2].runs) - len(one[2].trained)),
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
    ]
    more: list[Field] = [("configurations", "configuration by task", "text", configurations)]
    caption = (
        "Mean over the nine tasks of GLUE; a task's score is the mean of its metrics over the seeds that finished, on "
        "dev (the leaderboard's is on test). Each method by its best configuration on each task, chosen on dev: the "
        "more configurations it had, the more its average owes to that choice."
    )
    whole.sort(key=lambda item: -(average(item) or 0.0))
    return sheet_of("glue-average", "GLUE average", caption, fields, whole, more=more)
