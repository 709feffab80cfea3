"""What is said of a search: which rows chose and which judge, how easy methods are to tune, what it took."""

from __future__ import annotations

import math
from collections.abc import Iterable

from manytune.report.analysis import Analysis
from manytune.report.names import joined
from manytune.report.report_data import SearchStudy
from manytune.report.search_part.search_facts import SELECTING_ROWS, SearchFacts, SpaceFacts
from manytune.report.search_part.search_sheets import good_octaves, near_the_best, saved_share
from manytune.report.sheets import show
from manytune.search.trials import stopped_pruning
from manytune.stats.budget import budget_curve, spent
from manytune.storage.record import RunState
from manytune.utils.text import counted, duration

_DRAWN = {
    "random": "drawn at random",
    "sobol": "drawn from a Sobol sequence",
    "tpe": "drawn by TPE, which looks at the scores so far",
    "grid": "taken from a grid",
}


def about_search(search: SearchFacts) -> Iterable[str]:
    """What was searched, and on which rows."""
    drawn = f", {_DRAWN[search.search.sampler]}," if search.search else ""
    yield (
        f"{counted(len(search.trials), 'trial')} of {counted(len(search.spaces), 'search space')}{drawn} compared on "
        f"{search.selecting_rows}. Trials choose settings and show what a search costs; they are in no verdict, "
        "because a best score among many is too good by chance."
    )
    if search.search and search.search.sampler == "tpe":
        yield (
            "With TPE a trial depends on those before it, so what is said below of n trials, and of shares of trials, "
            "describes this search and no shorter or other one."
        )
    if len({len(space.trials) for space in search.spaces if space.dimensions}) > 1:
        counts = joined(f"{space.look.name} {len(space.trials)}" for space in search.spaces)
        yield f"Spaces have different numbers of trials ({counts}): compare them at equal numbers, or equal seconds."


def about_budget(search: SearchFacts) -> Iterable[str]:
    """Who is ahead with few trials and who with many."""
    curves = {space: budget_curve(space.facts) for space in search.spaces if space.dimensions}
    known = {space: curve for space, curve in curves.items() if curve is not None}
    fewest = min((len(curve.best.trials) for curve in known.values()), default=0)
    if len(known) < 2 or fewest < 2:
        return
    said = []
    for n in dict.fromkeys((1, min(fewest, 4), fewest)):
        scores = {space: search.sign * float(curve.best.expected[n - 1]) for space, curve in known.items()}
        order = sorted(scores, key=lambda space: -search.sign * scores[space])
        shown = ", ".join(f"{space.look.name} {show(scores[space], 'score')}" for space in order)
        said.append(f"{'of one trial' if n == 1 else f'of the best of {n}'}: {shown}")
    yield f"Mean {search.metric.title} {'; '.join(said)}."


def about_tuning(search: SearchFacts) -> Iterable[str]:
    """A sentence a space: how many of its trials come near its best."""
    within = show(search.margin, "margin")
    sentences = [_ease(search, space, within) for space in search.spaces if space.dimensions]
    yield from (sentence for sentence in sentences if sentence)
    searched = [space for space in search.spaces if space.dimensions and space.finished]
    few = [space.look.name for space in searched if near_the_best(search, space) is None]
    if few:
        yield f"{joined(few)}: fewer than 4 trials were chosen to train to their end, too few to say how easy to tune."


def _ease(search: SearchFacts, space: SpaceFacts, within: str) -> str | None:
    if not space.finished and space.trials:
        return f"{space.look.name}: none of {counted(len(space.trials), 'trial')} learned anything."
    near = near_the_best(search, space)
    if near is None:
        return None
    low, high = (f"{100 * end:.0f}" for end in (near.low, near.high))
    verb = "comes" if near.count == 1 else "come"
    text = f"{space.look.name}: {counted(near.count, 'trial', of=near.of)} {verb} within {within} of its best"
    text += f" (95 % interval {low} to {high} %)"
    width = good_octaves(search, space)
    if width is not None and not math.isclose(width.value, 0.0):
        text += f", {show(width.value, 'effect')} of {show(width.of, 'effect')} octaves of learning rate"
        ends_open = [name for name, open_end in (("lower", width.open_below), ("higher", width.open_above)) if open_end]
        text += f", and {joined(ends_open)} rates than were searched may do as well" if ends_open else ""
    return f"{text}."


def about_cost(search: SearchFacts) -> Iterable[str]:
    """What the search took and saved, and where pruning ended by itself."""
    costs = [spent(space.facts) for space in search.spaces]
    steps, saved = sum(cost.steps for cost in costs), sum(cost.steps_saved for cost in costs)
    seconds, spared = sum(cost.seconds for cost in costs), sum(cost.seconds_saved for cost in costs)
    yield f"The trials took {duration(seconds)} of training and evaluation, {counted(steps, 'optimizer step')}."
    pruned = sum(cost.pruned for cost in costs)
    if pruned:
        by = [
            (space.look.name, share)
            for space, cost in zip(search.spaces, costs, strict=True)
            if (share := saved_share(cost))
        ]
        listed = joined(f"{name} {show(share, 'percent')}" for name, share in by)
        yield (
            f"Pruning ended {counted(pruned, 'trial', of=len(search.trials))} early and saved "
            f"{show(saved / (steps + saved), 'percent')} of the steps, about {duration(spared)} ({listed})."
        )
    elif search.search is not None and search.search.halving is None:
        yield "Nothing was pruned: the study says `pruning: none`."
    for space in search.spaces:
        halving = search.search.halving if search.search else None
        if halving is not None and (why := stopped_pruning(space.facts, halving)):
            yield (
                f"{space.look.name} stopped pruning while the search went on: {why} by then, below the least of "
                f"{show(halving.least_correlation, 'margin')}."
            )


def judged_on(analysis: Analysis) -> str:
    """Which rows chose the configurations of a task and which judge them; empty where no search chose them."""
    study = next((one.chosen_by for one in analysis.studies if one.chosen_by is not None), None)
    if study is None or study.search is None:
        return ""
    seeds = len({run.seed for run in analysis.records} | {run.seed for run in analysis.pending})
    chose = SELECTING_ROWS[study.search.select]
    dev = study.confirm is None or study.confirm.on == "dev"
    judges = "dev, which serves as a test set here" if dev else "the test file"
    return (
        f"Compared are the winners of the search, each trained again with {counted(seeds, 'new seed')} on all of train "
        f"and scored after its last step. Settings were chosen on {chose}; judged they are on {judges}, rows "
        "that no choice has seen."
    )


def still_to_confirm(search: SearchStudy) -> Iterable[str]:
    """What of a search no rows have judged yet."""
    name, confirm = search.study.name, search.study.confirm
    if confirm is None:
        yield (
            f"{name}: its winners are not confirmed (`confirm: none`). The best scores of the search are those of the "
            "rows that chose them, and too good by chance."
        )
    elif search.unconfirmed:
        yield (
            f"{name}: the winners of {joined(search.unconfirmed)} have not been trained again yet, so nothing is said "
            "of which method is best. Until then, the search alone is shown: its best scores are those of the rows "
            "that chose them, and too good by chance."
        )


def more_to_say(search: SearchStudy) -> Iterable[str]:
    """What a reader should know of what winners there are, and of the rows that judge them."""
    name = search.study.name
    if search.without_winner:
        yield f"{name}: no trial on {joined(search.without_winner)} learned anything, so there is nothing to confirm."
    for task, looks in search.test_looks.items():
        if looks > 1:
            yield (
                f"{name}: scores on the test file of {task} could be seen {counted(looks, 'time')} in this search; "
                "each that led to another choice makes it less of a test."
            )


def state_line(name: str, searches: Iterable[SearchFacts]) -> str:
    """How far the search of a study is: "searched: 72 trials: 38 finished, 31 pruned, 2 failed, 1 collapsed"."""
    trials = [run for search in searches for run in search.trials]
    counts = {state: sum(run.state is state for run in trials) for state in RunState}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{name}: {counted(len(trials), 'trial')}: {shown}" if trials else f"{name}: no trial has ended yet"
