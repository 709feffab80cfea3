"""The answer in words: which method is best, by how much, what is within noise of it, and which is cheapest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from manytune.methods import METHODS
from manytune.report.analysis import Analysis
from manytune.report.sheets import interval, show, signed
from manytune.report.task_table import MethodRow
from manytune.stats.verdict import MINIMUM_SEEDS, Comparison, Verdict
from manytune.storage.record import RunState
from manytune.utils.text import counted, listed

_LEFT_OUT = {RunState.COLLAPSED: "collapsed", RunState.FAILED: "failed", RunState.PRUNED: "were pruned"}
"""State of a run that is in no mean → how a sentence names it."""

Kind = Literal["better", "noise", "few", "cheap", "warning"]
"""What a point says: the best method is better than another; another is within noise of it; there are too few seeds to
tell; which near-best configurations are cheapest; a warning. These are the names in summary.json."""


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
    decided: bool  # whether a verdict was possible: at least 5 seeds of the leader and of another method


def method_title(method: str) -> str:
    """What sentences call a method; its name where no such method is registered."""
    return METHODS[method].title if method in METHODS else method


def configuration_title(row: MethodRow) -> str:
    """What sentences call a configuration: "LoRA r=8, lr 4e-4"."""
    if not row.label.startswith(row.method):
        return row.label
    return f"{method_title(row.method)}{row.label.removeprefix(row.method)}"


def answer(analysis: Analysis) -> Answer:
    """What the runs of one task show, and no more than the statistics allow."""
    warnings = tuple(Point("warning", text) for text in _warnings(analysis))
    what = f"{analysis.title}, {analysis.metric.title}"
    if not analysis.best_rows:
        if analysis.pending:
            return Answer(f"{what}: no run has finished with a score yet, so nothing can be said.", warnings, False)
        phrases = _LEFT_OUT | {
            RunState.FINISHED: "finished without a score",
            RunState.COLLAPSED: "collapsed (predicting one constant)",
        }
        states = Counter(run.state for run in analysis.records)
        ended = _listed(f"{count} {phrases[state]}" for state, count in states.items())
        return Answer(f"{what}: all runs have ended and none has a score to compare: {ended}.", warnings, False)
    leader, against = analysis.best_rows[0], _against_leader(analysis)
    name = configuration_title(leader)
    mean = f"{show(leader.mean, 'score')} over {counted(len(leader.finished), 'seed')}"
    lead = f"{what}: {name} has the {'highest' if analysis.metric.higher_is_better else 'lowest'} mean, {mean}"
    if not against:
        return Answer(f"{lead}. No other method has a score, so there is nothing to compare it with.", warnings, False)
    verdicts = {each.verdict for each in against}
    decided = verdicts != {Verdict.TOO_FEW_SEEDS}
    if verdicts == {Verdict.BETTER}:
        others = "the only other method" if len(against) == 1 else f"all {len(against)} other methods"
        headline = f"{what}: {name} is best, {mean}; it is better than {others}."
    elif not decided:
        headline = f"{lead}, but these are too few seeds for a verdict."
    elif Verdict.WITHIN_NOISE in verdicts:
        equals = _listed(method_title(each.second) for each in against if each.verdict is Verdict.WITHIN_NOISE)
        headline = f"{lead}; {equals} cannot be told from it."
    else:
        headline = f"{lead}."
    points = [_point(analysis, each) for each in against]
    return Answer(headline, (*points, *_cheapest_point(analysis), *warnings), decided)


def _against_leader(analysis: Analysis) -> list[Comparison]:
    """The comparisons of the best method with every other one."""
    return [each for each in analysis.comparisons if each.first == analysis.best_rows[0].method]


def near_best(analysis: Analysis) -> tuple[MethodRow, ...]:
    """Configurations that no verdict excludes from being as good as the best: what may be chosen by its cost.

    These are the best configuration, the best one of every method within noise of it, and every one that may be the
    best and whose method is not worse. Other than the best one, a configuration with a run whose training did not take
    off is left out: its spread is so wide that no test excludes anything. Empty where there is no verdict.
    """
    if not analysis.best_rows:
        return ()
    leader, against = analysis.best_rows[0].label, _against_leader(analysis)
    if all(each.verdict is Verdict.TOO_FEW_SEEDS for each in against):
        return ()
    level = {leader, *(each.second_label for each in against if each.verdict is Verdict.WITHIN_NOISE)}
    worse = {each.second for each in against if each.verdict is Verdict.BETTER}
    standings = analysis.standings
    level |= {
        row.label
        for row in analysis.ranked
        if row.method not in worse and row.label in standings and standings[row.label].may_be_best
    }
    return tuple(row for row in analysis.rows if row.label in level and (row.label == leader or not row.low_outliers))


def _point(analysis: Analysis, found: Comparison) -> Point:
    """What the comparison of the best method with another one says."""
    first, second = (analysis.row(label) for label in (found.first_label, found.second_label))
    one, other = configuration_title(first), configuration_title(second)
    facts = _facts(found.difference, found.low, found.high, found.seeds)
    if found.verdict is Verdict.TOO_FEW_SEEDS:
        if found.difference == 0:
            return Point("few", f"{_capital(one)} and {other} have the same mean. {_more_seeds(found)}")
        return Point("few", f"{_capital(one)} is ahead of {other} ({facts}). {_more_seeds(found)}")
    if found.verdict is Verdict.WITHIN_NOISE:
        share = second.trainable_share
        parameters = "" if share is None else f" with {show(share, 'share')} of the parameters"
        low, high = (None if bound is None else -bound for bound in (found.high, found.low))
        facts = _facts(-found.difference, low, high, found.seeds)  # of the second less the first
        text = f"{_capital(other)} is within noise of {one} ({facts}){parameters}."
        if found.detectable is not None:
            least = show(found.detectable, "score")
            text += f" With these seeds, four of five studies would find a true difference of {least} or more."
        if found.low is not None and found.low > 0:
            text += " By itself the interval leaves out 0; after correction for all comparisons it proves nothing."
        return Point("noise", text)
    if found.verdict is Verdict.ON_THIS_DEV_SET:
        over_examples = interval(found.examples_low, found.examples_high)
        doubt = f"but another dev set might say otherwise: over dev examples the interval is {over_examples}."
        return Point("noise", f"{_capital(one)} is better than {other} on these dev examples ({facts}), {doubt}")
    p = show(found.p_holm, "p")
    return Point("better", f"{_capital(one)} is better than {other} ({facts}, p {p if p[0] == '<' else f'= {p}'}).")


def _facts(difference: float, low: float | None, high: float | None, seeds: int) -> str:
    """The difference, its interval where there are seeds enough for one, and the number of seeds."""
    known = low is not None and high is not None and seeds >= MINIMUM_SEEDS
    between = f"95 % interval {interval(low, high)}, " if known else ""
    return f"{signed(difference)}, {between}{counted(seeds, 'seed')}"


def _more_seeds(found: Comparison) -> str:
    """How many more seeds a verdict would take."""
    least, more = f"A verdict takes at least {MINIMUM_SEEDS} seeds", MINIMUM_SEEDS - found.seeds
    if found.deviation is None:
        return f"{least} that both have: {more} more."
    if found.seeds_needed is None:
        spread = "against this spread, a difference of this size would not be found with a thousand."
        return f"{least}, {more} more; {spread}"
    return (
        f"{least}; if the difference is real and the spread as seen, {found.seeds_needed} would find it in four of "
        f"five studies: {found.seeds_needed - found.seeds} more."
    )


def _cheapest_point(analysis: Analysis) -> list[Point]:
    """Which near-best configuration is cheapest, in each kind of cost, and how far its mean is behind the best."""
    rows = near_best(analysis)
    least: dict[str, list[str]] = {}
    for what, kind, values in (
        ("fewest trainable parameters", "count", [row.trainable for row in rows]),
        ("shortest training", "seconds", [row.train_seconds for row in rows]),
        ("least memory", "bytes", [row.peak_memory_bytes for row in rows]),
    ):
        known = [(value, row) for value, row in zip(values, rows, strict=True) if value is not None]
        if len(rows) > 1 and len(known) == len(rows):
            value, row = min(known, key=lambda one: one[0])
            best, name = analysis.best_rows[0], configuration_title(row)
            if row.label != best.label and row.mean is not None and best.mean is not None:
                name += f" ({signed(row.mean - best.mean)})"
            least.setdefault(name, []).append(f"{what} ({show(value, kind)})")
    if not least:
        return []
    cheapest = "; ".join(f"{name}: {_listed(facts)}" for name, facts in least.items())
    what = f"Cheapest of the {len(rows)} configurations that no test tells from the best"
    return [Point("cheap", f"{what}: {cheapest}.")]


def _warnings(analysis: Analysis) -> list[str]:
    warnings = []
    for state, what in _LEFT_OUT.items():
        runs = [run for run in analysis.records if run.state is state]
        if runs:
            labels = _listed(dict.fromkeys(run.label for run in runs))
            warnings.append(f"{counted(len(runs), 'run')} {what} ({labels}): left out of all means, named below.")
    for row in analysis.rows:
        for run, median in row.low_outliers:
            name = _capital(configuration_title(row))
            warnings.append(
                f"{name}: seed {run.seed} scored {show(run.best_score, 'score')}, less than half of the median of its "
                f"other seeds, {show(median, 'score')}. That training did not take off: a lower learning rate or a "
                "longer warm-up may mend it. It is part of the mean and its spread."
            )
    if analysis.pending:
        planned = counted(len(analysis.pending) + len(analysis.records), "planned run")
        warnings.append(f"{len(analysis.pending)} of {planned} have not ended: this is a report so far.")
    if "dev" in analysis.selections:
        warnings.append(
            "Each run's best snapshot was chosen on the dev set that scores it, so best scores are optimistic. "
            "The last ones are not; with selection: train-split the best ones are not either."
        )
    if analysis.misfits:
        warnings.append(
            f"{counted(len(analysis.misfits), 'run')} kept a predictions.npz that does not give the recorded score and "
            f"is not used: {listed(analysis.misfits, 5, 200)}. Put back what `manytune run` wrote."
        )
    return [*warnings, *analysis.problems]


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
