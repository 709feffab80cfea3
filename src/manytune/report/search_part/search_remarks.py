"""What the trials say of three questions: is a method harder to tune, does a choice matter, what does a rate do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from manytune.report.names import joined
from manytune.report.search_part.search_facts import Dimension, SearchFacts, SpaceFacts
from manytune.report.search_part.search_sheets import good_octaves, in_order, rate_range, search_sheet
from manytune.report.sheets import Field, Sheet, show
from manytune.stats.budget import LEVEL, Share
from manytune.stats.contrasts import FEWEST, RateBin, chance_of_spread, near_best_alike, rate_bins
from manytune.stats.tuning import RATE, Octaves, ValueEffect, effect_of
from manytune.utils.text import counted


def about_ease(search: SearchFacts) -> Iterable[str]:
    """A sentence for each two spaces: whether one is easier to tune."""
    for one, other in combinations([space for space in search.spaces if space.dimensions and space.finished], 2):
        shares = near_best_alike(one.facts, other.facts, search.margin)
        if shares is None:
            continue
        names = one.look.name, other.look.name
        near = " and ".join(counted(each.count, "trial", of=each.of) for each in shares)
        intervals = " and ".join(map(_percent, shares))
        text = (
            f"{names[0]} beside {names[1]}: {near} come within {show(search.margin, 'margin')} of their own best "
            f"({intervals} at 95 %)"
        )
        widths = good_octaves(search, one), good_octaves(search, other)
        yield f"{text}. {_easier(names, shares)}{_wider(names, widths)}"


def _percent(of: Share) -> str:
    return f"{100 * of.low:.0f} to {100 * of.high:.0f} %"


def _easier(names: Sequence[str], parts: Sequence[Share]) -> str:
    first = _apart(parts)
    if first is None:
        return "These intervals overlap: which of them is easier to tune is not known."
    return f"These intervals lie apart: {names[first]} is easier to tune over the ranges that were searched."


def _wider(names: Sequence[str], widths: Sequence[Octaves | None]) -> str:
    known = [width for width in widths if width is not None]
    if len(known) < 2:
        return ""
    low_high = " and ".join(f"{show(each.low, 'effect')} to {show(each.high, 'effect')}" for each in known)
    shown = f" Good learning rates span {low_high} octaves (95 %), "
    first = _apart(known)
    return f"{shown}which overlap." if first is None else f"{shown}which lie apart: {names[first]}'s rate matters less."


def _apart(intervals: Sequence[Share] | Sequence[Octaves]) -> int | None:
    """Which of two intervals lies above the other one; None where they overlap."""
    one, other = intervals
    return 0 if one.low > other.high else 1 if other.low > one.high else None


def about_choices(search: SearchFacts) -> Iterable[str]:
    """A sentence for each setting with a choice: whether its values differ by more than chance gives."""
    asked = [(space, each) for space in search.spaces for each in space.dimensions if each.values and each.name != RATE]
    for space, dimension in asked:
        values = in_order(dimension, effect_of(space.facts, dimension.name))
        known = [value for value in values if value.best is not None]
        if len(values) < 2 or not known:
            continue
        listed = "; ".join(f"{dimension.prefix}{dimension.shown(each.value)}: {_best(search, each)}" for each in values)
        what = f"{space.look.name}, best score of each {dimension.title}, whatever rate it came at: {listed}."
        yield f"{what} {_matters(search, space, dimension, LEVEL / len(asked))}"


def _best(search: SearchFacts, value: ValueEffect) -> str:
    trials = counted(value.trials, "trial")
    return (
        f"none of {trials} finished" if value.best is None else f"{show(search.sign * value.best, 'score')} of {trials}"
    )


def _matters(search: SearchFacts, space: SpaceFacts, dimension: Dimension, level: float) -> str:
    if _adaptive(search):
        return f"Whether the {dimension.title} matters is not known: TPE chose values by the scores so far."
    chance = chance_of_spread(space.facts, dimension.name)
    if chance is None:
        return f"Whether the {dimension.title} matters is not known: fewer than two values had three trials."
    shuffled = f"with values shuffled among the same trials, they differ as much in {show(chance, 'percent')} of cases"
    if chance > level:
        return f"Whether the {dimension.title} matters is not known: {shuffled}."
    return f"The {dimension.title} matters: {shuffled}. Which value is best, a study with seeds of each says."


def about_rates(search: SearchFacts) -> Iterable[str]:
    """A sentence a space: at which learning rates scores are below those at the best ones."""
    for space, bins in _bins(search):
        if not space.finished:
            ends = f"{show(bins[0].low, 'drawn')} to {show(bins[-1].high, 'drawn')}"
            yield f"{space.look.name}: no trial at rates of {ends} learned anything, so no rate is better than another."
            continue
        told = [each for each in bins if each.below is not None]
        best = max((each for each in bins if each.trials >= FEWEST), key=lambda each: each.mean or 0.0, default=None)
        if best is None or not told:
            yield f"{space.look.name}: too few trials at similar rates to say what the rate does."
            continue
        low = [each for each in told if each.below]
        text = f"{space.look.name}: scores are best at rates of {_octave(search, best)}"
        if _adaptive(search):
            yield f"{text}; whether other rates are worse is not known, as TPE chose rates by the scores so far."
        elif not low:
            yield f"{text}; that other rates do worse is not beyond chance among so few trials."
        else:
            rest = " Of the other rates it is not known." if len(low) < len(bins) - 1 else ""
            yield f"{text}; worse, beyond chance, at {joined(_octave(search, each) for each in low)}.{rest}"


def _octave(search: SearchFacts, one: RateBin) -> str:
    mean = None if one.mean is None else search.sign * one.mean
    trials = counted(one.trials, "trial")
    return f"{show(one.low, 'drawn')} to {show(one.high, 'drawn')} (mean {show(mean, 'score')}, {trials})"


def _adaptive(search: SearchFacts) -> bool:
    return search.search is not None and search.search.sampler == "tpe"


def _bins(search: SearchFacts) -> list[tuple[SpaceFacts, tuple[RateBin, ...]]]:
    """The spaces whose rates were searched, with their octaves."""
    ranges = [(space, ends) for space in search.spaces if (ends := rate_range(space))]
    found = [(space, rate_bins(space.facts, *ends, LEVEL / len(ranges))) for space, ends in ranges]
    return [(space, bins) for space, bins in found if bins]


def rate_sheet(search: SearchFacts) -> Sheet | None:
    """By octave of the learning rate: trials, their mean score, how many learned anything."""
    rows = [(space, each) for space, bins in _bins(search) for each in bins]

    def mean(row: tuple[Any, RateBin]) -> float | None:
        return None if row[1].mean is None else search.sign * row[1].mean

    fields: list[Field] = [
        ("space", "space", "text", lambda row: row[0].look.name),
        ("low", "rate from", "drawn", lambda row: row[1].low),
        ("high", "to", "drawn", lambda row: row[1].high),
        ("trials", "trials", "count", lambda row: row[1].trials),
        ("mean", "mean score", "score", mean),
        ("trained", "learned", "count", lambda row: row[1].trained.count if row[1].trained else None),
        ("known", "of", "count", lambda row: row[1].trained.of if row[1].trained else None),
    ]
    caption = (
        "Octaves of the learning rate. The mean is over all trials, pruned ones at the score with which they left, "
        "usually less than they would have ended with; learned: of the trials of which it is known."
    )
    return search_sheet(search, "rates", "scores by learning rate", caption, fields, rows)
