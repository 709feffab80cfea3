"""The answer in words: which method is best, by how much, what is within noise of it, and which is cheapest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from manytune.report.analysis import Analysis
from manytune.report.names import method_title
from manytune.report.report_data import rows_used
from manytune.report.sheets import interval, show, signed
from manytune.report.task_table import MethodRow
from manytune.stats.verdict import MINIMUM_SEEDS, Comparison, Verdict
from manytune.storage.record import RunState
from manytune.utils.text import counted, listed

_LEFT_OUT = {RunState.COLLAPSED: "collapsed", RunState.FAILED: "failed", RunState.PRUNED: "were pruned"}
"""State of a run that is in no mean → how a sentence names it."""

Kind = Literal["better", "noise", "few", "cheap", "baseline", "warning"]
"""What a point says: the best method is better than another; another is within noise of it; there are too few seeds to
tell; which near-best configurations are cheapest; what baselines score; a warning. These are the names in
summary.json."""


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
    name = leader.name.title
    mean = f"{show(leader.mean, 'score')} over {counted(len(leader.finished), 'seed')}"
    lead = f"{what}: {name} has the {'highest' if analysis.metric.higher_is_better else 'lowest'} mean, {mean}"
    below, unbeaten = _baseline_point(analysis), analysis.table.verdict_on_baselines

    def first(headline: str) -> str:
        """The headline, which begins with the baseline that no method beats."""
        return headline if unbeaten is None else f"{what}: {unbeaten} {_capital(headline.removeprefix(f'{what}: '))}"

    if not against:
        alone = f"{lead}. No other method has a score, so there is nothing to compare it with."
        return Answer(first(alone), (*below, *warnings), False)
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
    few = [each for each in against if each.verdict is Verdict.TOO_FEW_SEEDS]
    points = [_point(analysis, each) for each in against if len(few) < 2 or each not in few]
    points += [_few_point(analysis, few)] if len(few) > 1 else []
    return Answer(first(headline), (*points, *_cheapest_point(analysis), *below, *warnings), decided)


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
    one, other = first.name.title, second.name.title
    facts = _facts(found.difference, found.low, found.high, found.seeds)
    if found.verdict is Verdict.TOO_FEW_SEEDS:
        if found.difference == 0:
            return Point("few", f"{_capital(one)} and {other} have the same mean. {_more_seeds(analysis, found)}")
        return Point("few", f"{_capital(one)} is ahead of {other} ({facts}). {_more_seeds(analysis, found)}")
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


def _few_point(analysis: Analysis, few: list[Comparison]) -> Point:
    """What several comparisons of the best method with too few seeds say, once for all of them."""
    others = _listed(f"{analysis.row(each.second_label).name.title} ({signed(each.difference)})" for each in few)
    seeds = sorted({each.seeds for each in few})
    shared = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return Point(
        "few",
        f"{_capital(analysis.row(few[0].first_label).name.title)} is ahead of {others} with {shared} shared "
        f"{'seed' if shared == '1' else 'seeds'}; a verdict takes at least {MINIMUM_SEEDS}. "
        "The first table of the statistics says how many each pair needs."
        f"{analysis.extending(MINIMUM_SEEDS - seeds[0])}",
    )


def _facts(difference: float, low: float | None, high: float | None, seeds: int) -> str:
    """The difference, its interval where there are seeds enough for one, and the number of seeds."""
    known = low is not None and high is not None and seeds >= MINIMUM_SEEDS
    between = f"95 % interval {interval(low, high)}, " if known else ""
    return f"{signed(difference)}, {between}{counted(seeds, 'seed')}"


def _more_seeds(analysis: Analysis, found: Comparison) -> str:
    """How many more seeds a verdict would take, and the command that adds them."""
    least, more = f"A verdict takes at least {MINIMUM_SEEDS} seeds", MINIMUM_SEEDS - found.seeds
    if found.deviation is None:
        return f"{least} that both have: {more} more.{analysis.extending(more)}"
    if found.seeds_needed is None:
        spread = "against this spread, a difference of this size would not be found with a thousand."
        return f"{least}, {more} more; {spread}{analysis.extending(more)}"
    wanted = found.seeds_needed - found.seeds
    return (
        f"{least}; if the difference is real and the spread as seen, {found.seeds_needed} would find it in four of "
        f"five studies: {wanted} more.{analysis.extending(wanted)}"
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
            best, name = analysis.best_rows[0], row.name.title
            if row.label != best.label and row.mean is not None and best.mean is not None:
                name += f" ({signed(row.mean - best.mean)})"
            least.setdefault(name, []).append(f"{what} ({show(value, kind)})")
    if not least:
        return []
    cheapest = "; ".join(f"{name}: {_listed(facts)}" for name, facts in least.items())
    what = f"Cheapest of the {len(rows)} configurations that no test tells from the best"
    return [Point("cheap", f"{what}: {cheapest}.")]


def _baseline_point(analysis: Analysis) -> list[Point]:
    """What baselines score, and which methods do not beat the best of them; nothing where none were kept."""
    table, metric = analysis.table, analysis.metric
    if table.bar is None:
        return []
    listed_scores = _listed(
        f"{each.title} {show(score, 'score')}"
        for each in table.baselines
        if (score := each.scores.get(metric.name)) is not None
    )
    text = f"Without a pretrained model, on the same training and dev rows: {listed_scores}."
    below, methods = table.below_bar, {row.method for row in analysis.ranked}
    if below and len(below) < len(methods):
        best = {row.method: row.mean for row in analysis.best_rows}
        names = _listed(f"{method_title(name)} ({show(best[name], 'score')})" for name in below)
        text += f" {_capital(names)} {'do' if len(below) > 1 else 'does'} not beat {table.bar[0]}."
    return [Point("baseline", text)]


def _warnings(analysis: Analysis) -> list[str]:
    warnings = []
    for state, what in _LEFT_OUT.items():
        runs = [run for run in analysis.records if run.state is state]
        if runs:
            labels = _listed(dict.fromkeys(analysis.table.names[run.label] for run in runs))
            warnings.append(f"{counted(len(runs), 'run')} {what} ({labels}): left out of all means, named below.")
    for row in analysis.rows:
        for run, median in row.low_outliers:
            name = _capital(row.name.title)
            warnings.append(
                f"{name}: seed {run.seed} scored {show(run.best_score, 'score')}, less than half of the median of its "
                f"other seeds, {show(median, 'score')}. That training did not take off: a lower learning rate or a "
                "longer warm-up may mend it. It is part of the mean and its spread."
            )
    if analysis.pending:
        planned = len(analysis.pending) + len(analysis.records)
        pending = counted(len(analysis.pending), "planned run", "has|have", of=planned)
        warnings.append(f"{pending} not ended: this is a report so far.")
    for rows, count in Counter(filter(None, map(rows_used, analysis.records))).items():
        warnings.append(
            f"{counted(count, 'run')} trained on {rows}, by the study's limit: with all of them scores differ."
        )
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
