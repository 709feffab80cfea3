"""The answer in words: who is best, who is as good within the margin, who fails, and what would decide the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from manytune.methods.base import Axis
from manytune.report.analysis import Analysis
from manytune.report.judgement import configurations_of
from manytune.report.names import capital, joined, method_title
from manytune.report.notes import LEFT_OUT, notes_of
from manytune.report.sheets import UNKNOWN, measured, show
from manytune.report.task_table import MethodRow
from manytune.stats.claims import LEVEL, Comparison, TrainingRate, Verdict
from manytune.stats.verdict import judge
from manytune.storage.record import RunState
from manytune.utils.text import counted

_MOST_NAMED = 3  # methods or configurations in one sentence, each with its figures

Kind = Literal["best", "as good", "fails", "open"]
"""What a point says: what the best method is better than; which cheaper configuration is as good within the margin; how
often runs do not train; what is open, and what would decide it. These are the names in summary.json."""


@dataclass(frozen=True)
class Point:
    """One finding, in a sentence or two."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Answer:
    """What the runs of a task show."""

    headline: str
    points: tuple[Point, ...]
    """At most four."""
    notes: tuple[str, ...]
    """What to know of the figures: baselines, runs that are left out, how snapshots were chosen."""
    decided: bool
    """Whether a verdict was possible: at least 5 runs that trained, of the best method and of another."""


def answer(analysis: Analysis) -> Answer:
    """What the runs of one task show, and no more than the statistics allow."""
    notes = notes_of(analysis)
    what = f"{analysis.title}, {analysis.metric.title}"
    leader = analysis.leader
    if leader is None:
        return Answer(f"{what}: {_without_scores(analysis)}", (), notes, False)
    headline = f"{_lead(analysis, leader)}{_against(analysis)}"
    unbeaten = analysis.table.verdict_on_baselines
    points = [point for make in _POINTS if (point := make(analysis, leader)) is not None]
    start = f"{what}: " if unbeaten is None else f"{what}: {unbeaten} "
    headline = headline if unbeaten is None else capital(headline)
    return Answer(f"{start}{headline}", tuple(points), notes, analysis.verdict.decided)


def _without_scores(analysis: Analysis) -> str:
    if analysis.pending:
        return "no run has finished with a score yet, so nothing can be said."
    phrases = LEFT_OUT | {
        RunState.FINISHED: "finished without a score",
        RunState.COLLAPSED: "collapsed (predicting one constant)",
    }
    states = Counter(run.state for run in analysis.records)
    ended = joined(f"{count} {phrases[state]}" for state, count in states.items())
    return f"all runs have ended and none has a score to compare: {ended}."


def _lead(analysis: Analysis, leader: MethodRow) -> str:
    """Who has the best mean, which is what the rest of the headline goes on from."""
    verdicts = {each.verdict for each in analysis.verdict.against_leader}
    runs = counted(leader.primary.best.count, "seed")
    if leader.failures:
        runs = f"the {leader.primary.best.count} of {len(leader.trained) + len(leader.failures)} runs that trained"
    mean = f"{_mean(leader)}, {runs})"
    if verdicts == {Verdict.BETTER}:
        return f"{leader.name.title} is best, {mean}"
    side = "highest" if analysis.metric.higher_is_better else "lowest"
    return f"{leader.name.title} has the {side} mean, {mean}"


def _mean(row: MethodRow) -> str:
    """A mean and the beginning of the bracket behind it: "0.597 (sd 0.012"."""
    mean, _, deviation = measured(row.mean, row.primary.best.deviation).partition(" ± ")
    return f"{mean} (sd {deviation or UNKNOWN}"


def _against(analysis: Analysis) -> str:
    """The headline's second half: the verdict on every other method."""
    against = analysis.verdict.against_leader
    if not against:
        return ". No other method has a score, so there is nothing to compare it with."
    if not analysis.verdict.decided:
        return f", but these are too few seeds for a verdict, which takes {analysis.verdict.judging.seeds.least}."
    phrases = {
        Verdict.BETTER: "it is better than {}",
        Verdict.WHEN_IT_TRAINS: "among runs that train, it is better than {}",
        Verdict.ON_THIS_DEV_SET: "on this dev set it is better than {}",
        Verdict.WITHIN_NOISE: "{} cannot be told from it",
        Verdict.TOO_FEW_SEEDS: "there are too few seeds for a verdict on {}",
    }
    said = []
    for verdict, phrase in phrases.items():
        found = [each for each in against if each.verdict is verdict]
        if found:
            tell = _sided if verdict is Verdict.WITHIN_NOISE else lambda each: method_title(each.second)
            said.append(phrase.format(joined(map(tell, found), most=4)))
    return f"; {'; '.join(said)}."


def _sided(found: Comparison) -> str:
    """A method that cannot be told from the best, and that all seeds may point one way."""
    name = method_title(found.second)
    whole = found.shared > 1 and found.ahead == found.shared
    return f"{name} (though behind in {found.ahead} of {found.shared} seeds)" if whole else name


def _best_point(analysis: Analysis, leader: MethodRow) -> Point | None:
    """How far the best method is ahead of those that it is better than."""
    texts = []
    for verdict, beginning in (
        (Verdict.BETTER, ""),
        (Verdict.WHEN_IT_TRAINS, "among runs that train, "),
        (Verdict.ON_THIS_DEV_SET, "with these dev examples, "),
    ):
        found = [each for each in analysis.verdict.against_leader if each.verdict is verdict]
        if found:
            behind = joined((_figures(analysis, each) for each in found), most=_MOST_NAMED)
            texts.append(f"{beginning}{leader.name.title} is ahead of {behind}")
    parts = [f"{capital('; '.join(texts))}."] if texts else []
    if texts and len(analysis.best_rows) < len(analysis.ranked):
        parts.append("Each method is judged by its best configuration, and pays for that choice.")
    if below := _below_baseline(analysis):
        parts.append(below)
    return Point("best", " ".join(parts)) if parts else None


def _figures(analysis: Analysis, found: Comparison) -> str:
    """Another method and how far it is behind: "LoRA r=8 by 0.049 (95 % interval 0.010 to 0.090, p = 0.003)"."""
    facts = [f"95 % interval {_span(found.low, found.high)}" if found.deviation else "no spread over seeds"]
    if found.verdict is Verdict.ON_THIS_DEV_SET and found.examples_low is not None:
        facts.append(f"with other examples {_span(found.examples_low, found.examples_high)}")
    facts.append(f"p {_p(found.p_holm)}")
    return f"{analysis.row(found.second_label).name.title} by {_amount(found.difference)} ({', '.join(facts)})"


def _p(value: float) -> str:
    text = show(value, "p")
    return text if text[0] == "<" else f"= {text}"


def _amount(value: float | None) -> str:
    """A difference without a plus sign: 0.012, −0.004."""
    return UNKNOWN if value is None else show(round(value, 3) + 0.0, "score")


def _span(low: float | None, high: float | None) -> str:
    return f"{_amount(low)} to {_amount(high)}"


def _as_good_point(analysis: Analysis, leader: MethodRow) -> Point | None:
    """Whether a cheaper configuration is shown to be as good."""
    verdict, cost = analysis.verdict, leader.trainable
    if cost is None or not verdict.as_good or not verdict.decided:
        return None
    margin = f"the margin of {show(verdict.judging.margin, 'margin')}"
    cheaper = [row for row in analysis.ranked if row.trainable is not None and row.trainable < cost]
    cheaper = [row for row in cheaper if row.label in verdict.as_good]
    if not cheaper:
        return Point("as good", f"No configuration trains fewer parameters than {leader.name.title}.")
    shown = [row for row in cheaper if verdict.as_good[row.label].shown]
    chosen = next((row for row in shown if row.label == verdict.recommended), None)
    if chosen is not None:
        at_most = _amount(max(0.0, -(verdict.as_good[chosen.label].low or 0.0)))
        share = show(chosen.trainable_share, "share")
        text = (
            f"Yes, within {margin}: {chosen.name.title}, which trains {share} of the parameters, is at most {at_most} "
            "behind (95 %)."
        )
        others = [row.name.title for row in shown if row is not chosen]
        return Point("as good", text + (f" So is {joined(others, most=_MOST_NAMED)}." if others else ""))
    if shown:
        names = joined((row.name.title for row in shown), most=_MOST_NAMED)
        return Point("as good", f"When it trains, within {margin}: {names}. But some of these runs did not train.")
    nearest = cheaper[0]
    behind = _amount(
        None if nearest.mean is None or leader.mean is None else analysis.sign * (leader.mean - nearest.mean)
    )
    low = verdict.as_good[nearest.label].low
    could = "" if low is None else f" and could be {_amount(-low)} behind"
    beyond = low is not None and -low > verdict.judging.margin
    why = f"beyond {margin}" if beyond else "with too few seeds to say more"
    share = show(nearest.trainable_share, "share")
    return Point(
        "as good",
        f"Not shown. The nearest is {nearest.name.title}, with {share} of the parameters: {behind} behind{could}, "
        f"{why}.",
    )


def _fails_point(analysis: Analysis, leader: MethodRow) -> Point | None:
    """How often runs do not train, and what the means are if they count."""
    rates = analysis.verdict.rates
    failing = [row for row in analysis.table.by_mean if row.label in rates and rates[row.label].failed]
    if not failing:
        return None
    failing.sort(key=lambda row: (row.label != leader.label, -rates[row.label].failed / rates[row.label].runs))
    text = f"{joined((_rate(row, rates[row.label]) for row in failing), most=_MOST_NAMED)} did not train."
    steady = [row.name.title for row in analysis.best_rows if row not in failing]
    if steady:
        text += f" {capital(joined(steady, most=_MOST_NAMED))} always did."
    against = analysis.verdict.against_leader
    told = [
        f"{method_title(each.second)}'s (p = {show(each.rates_p, 'p')})" for each in against if each.rates_p < LEVEL
    ]
    if told:
        text += f" The rate of {method_title(leader.method)} differs from {joined(told, most=_MOST_NAMED)}."
    if leader in failing:
        means = ((row, _mean_of_all(analysis, row)) for row in analysis.best_rows)
        known = [f"{row.name.title} {show(mean, 'score')}" for row, mean in means if mean is not None]
        return Point("fails", f"{text} Counted at their scores, means are: {joined(known, most=_MOST_NAMED)}.")
    return Point("fails", f"{text} No mean counts such runs.")


def _rate(row: MethodRow, rate: TrainingRate) -> str:
    low, high = (f"{100 * (1 - bound):.0f}" for bound in (rate.high, rate.low))
    return f"{rate.failed} of {rate.runs} runs of {row.name.title} (95 % interval {low} to {high} %)"


def _mean_of_all(analysis: Analysis, row: MethodRow) -> float | None:
    """Mean over the runs that trained and those that did not, these at their score or that of a constant prediction."""
    floor = analysis.verdict.judging.floor
    scores = [score for _, score in row.scored(analysis.metric.name)]
    for run in row.failures:
        score = run.best_score if run.best_score is not None or floor is None else analysis.sign * floor
        if score is None:
            return None
        scores.append(score)
    return fmean(scores) if scores else None


def _open_point(analysis: Analysis, leader: MethodRow) -> Point | None:
    """What is undecided, and how many seeds would decide it."""
    against, plan = analysis.verdict.against_leader, analysis.verdict.judging.seeds
    few = [each for each in against if each.verdict is Verdict.TOO_FEW_SEEDS]
    if few:
        names = (f"{analysis.row(each.second_label).name.title} ({_amount(each.difference)} behind)" for each in few)
        least = min(min(each.seeds) for each in few)
        return Point(
            "open",
            f"{capital(joined(names, most=_MOST_NAMED))}. A verdict takes at least {plan.least} seeds that trained; "
            f"the fewest here are {least}.{analysis.extending(plan.least - least)}",
        )
    noise = [each for each in against if each.verdict is Verdict.WITHIN_NOISE]
    if not noise:
        return None
    text = " ".join(_undecided(analysis, leader, each) for each in noise[:_MOST_NAMED])
    known = [each.detectable for each in noise if each.detectable is not None]
    if known:
        text += f" A true difference of {show(max(known), 'score')} would be found in 80 % of such studies."
    return Point("open", f"{text} {_what_would_decide(analysis, noise)}".strip())


def _what_would_decide(analysis: Analysis, noise: Sequence[Comparison]) -> str:
    """How many seeds, in all, show a difference of the margin."""
    plan, margin = analysis.verdict.judging.seeds, show(analysis.verdict.judging.margin, "margin")
    there = max(max(each.seeds) for each in noise)
    if (look := next((each for each in plan.looks if each > there), None)) is not None:
        return f"The next planned look is at {look} seeds.{analysis.extending_to(look)}"
    needed = [each.seeds_needed for each in noise]
    needed += [good.seeds_needed for each in noise if (good := analysis.verdict.as_good.get(each.second_label))]
    if all(each.deviation is None for each in noise):
        return ""
    if None in needed:
        return f"For one of {margin} a thousand seeds would not be enough with these dev examples."
    seeds = _rounded_up(max(filter(None, needed)))
    if seeds <= there:
        return f"For one of {margin} these seeds are enough."
    return (
        f"For one of {margin} it takes {seeds} seeds in all, with the price of a look that was not planned."
        f"{analysis.extending_to(seeds)}"
    )


def _rounded_up(seeds: int) -> int:
    """To two digits: the number is an estimate.

    >>> _rounded_up(43), _rounded_up(132)
    (43, 140)
    """
    unit = int(10 ** max(0, len(str(seeds)) - 2))
    return -(-seeds // unit) * unit


def _undecided(analysis: Analysis, leader: MethodRow, found: Comparison) -> str:
    name = analysis.row(found.second_label).name.title
    behind = f"is {_amount(found.difference)} behind" if found.difference else "has the same mean as"
    text = f"{capital(name)} {behind} {leader.name.title}"
    if found.low is not None and found.high is not None:
        text += f", 95 % interval {_span(found.low, found.high)}"
        text += ", which leaves out 0, but is no proof after all corrections" if found.low > 0 else ""
    return f"{text}; behind in {found.ahead} of {found.shared} seeds." if found.shared else f"{text}."


_POINTS: Sequence[Callable[[Analysis, MethodRow], Point | None]] = (
    _best_point,
    _as_good_point,
    _fails_point,
    _open_point,
)


def about_axis(axis: Axis, analysis: Analysis) -> Iterable[str]:
    """For each method with several values of a hyper-parameter, which of them are told apart.

    Each value is represented by its configuration with the best mean, as methods are in the verdict.
    """
    for method in dict.fromkeys(row.method for row in analysis.ranked):
        rows = [row for row in analysis.ranked if row.method == method]
        values = {row.label: value for row in rows if (value := row.along(axis)) is not None}
        if len(set(values.values())) < 2:
            continue
        names = {label: f"{axis.prefix}{show(value, axis.kind)}" for label, value in values.items()}
        known = configurations_of([row for row in rows if row.label in values], analysis.draws)
        found = judge([replace(one, method=names[one.label]) for one in known], analysis.verdict.judging)
        against = found.against_leader
        said = []
        for verdict in Verdict:
            others = [
                f"{each.second} ({_amount(each.difference)} behind)" for each in against if each.verdict is verdict
            ]
            if others:
                said.append(f"{_OF_VALUES[verdict]} {joined(others)}")
        side, whose = "highest" if analysis.metric.higher_is_better else "lowest", method_title(method)
        yield (
            f"By {axis.title}{'' if whose in axis.title else f' of {whose}'}, each value at its best other settings: "
            f"{against[0].first} has the {side} mean; {'; '.join(said)}."
        )


_OF_VALUES = {
    Verdict.BETTER: "it is better than",
    Verdict.WHEN_IT_TRAINS: "better, when it trains, than",
    Verdict.ON_THIS_DEV_SET: "better on this dev set than",
    Verdict.WITHIN_NOISE: "not told from",
    Verdict.TOO_FEW_SEEDS: "too few seeds for a verdict on",
}


def _below_baseline(analysis: Analysis) -> str:
    """The methods that do not beat the best baseline, where others do."""
    table = analysis.table
    below, methods = table.below_bar, {row.method for row in analysis.ranked}
    if table.bar is None or not below or len(below) == len(methods):
        return ""
    best = {row.method: row.mean for row in analysis.best_rows}
    names = joined(f"{method_title(name)} ({show(best[name], 'score')})" for name in below)
    score = show(table.bar[1], "score")
    return f"{capital(names)} {'do' if len(below) > 1 else 'does'} not beat {table.bar[0]} ({score})."
