"""A search → its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manytune.report.search_part.search_facts import (
    Dimension,
    SearchFacts,
    SpaceFacts,
    score_then,
    trial_of,
)
from manytune.report.sheets import Cell, Field, Sheet, sheet_of, show
from manytune.search.trials import RungFacts, rung_facts
from manytune.stats.budget import CostToReach, Share, Spent, cost_to_reach, share, spent
from manytune.stats.describe import Summary
from manytune.stats.tuning import RATE, Octaves, TakeOff, ValueEffect, effect_of, near_best, octaves, take_off
from manytune.storage.record import RunRecord, RunState

_SPACE: Field = ("space", "space", "text", lambda row: row[0].look.name)


def search_sheet(
    search: SearchFacts,
    stem: str,
    title: str,
    caption: str,
    fields: Sequence[Field],
    rows: Sequence[Any],
    more: Sequence[Field] = (),
) -> Sheet | None:
    """A table of this search; None without rows."""
    title = f"{search.title}: {title}"
    return sheet_of(f"{search.key}-{stem}", title, caption, fields, rows, more=more) if rows else None


def space_sheet(search: SearchFacts) -> Sheet | None:
    """A row a space: its trials and the best of them."""
    rows = [(space, space.winner) for space in search.ranked]
    fields: list[Field] = [
        _SPACE,
        ("trials", "trials", "count", lambda row: len(row[0].trials)),
        ("pruned", "pruned", "count", lambda row: len(row[0].in_state(RunState.PRUNED))),
        ("did_not_train", "did not train", "count", lambda row: len(_without_success(row[0]))),
        ("best_score", "best score", "score", lambda row: row[1].best_score if row[1] else None),
        ("settings", "settings of the best", "text", lambda row: row[0].settings(row[1]) or None if row[1] else None),
        *(_confirmed(search) if search.confirmed else []),
        ("seconds", "seconds", "seconds", lambda row: row[0].seconds),
    ]
    more: list[Field] = [
        ("best_trial", "trial", "count", lambda row: trial_of(row[1]).number if row[1] else None),
        ("best_run", "run", "text", lambda row: row[1].run_id if row[1] else None),
    ]
    caption = (
        f"{search.metric.title} on {search.selecting_rows}, of the best trial that trained to its end; seconds of "
        "training and evaluation of all trials of the space, pruned ones included."
    )
    if search.confirmed:
        caption += " Confirmed: its settings, trained again with new seeds, on the rows that judge."
    return search_sheet(search, "spaces", "the search", caption, fields, rows, more)


def _confirmed(search: SearchFacts) -> list[Field]:
    """The scores of the winners on the rows that judge."""
    none = Summary(0, None, None)

    def summary(row: tuple[SpaceFacts, RunRecord | None]) -> Summary:
        return search.confirmed.get(row[1].label, none) if row[1] else none

    return [
        ("confirmed", "confirmed", "score", lambda row: summary(row).mean),
        ("confirmed_deviation", "sd", "deviation", lambda row: summary(row).deviation),
    ]


def _without_success(space: SpaceFacts) -> tuple[RunRecord, ...]:
    return space.in_state(RunState.COLLAPSED, RunState.FAILED)


def reach_sheet(search: SearchFacts) -> Sheet | None:
    """What it took each space to come within the margin of each space's best trial."""
    best = {space.winner.best_score for space in search.spaces if space.winner}
    targets = sorted((search.sign * score for score in best if score is not None), reverse=True)
    rows = [
        (space, cost_to_reach(space.facts, target - search.margin)) for target in targets for space in search.spaces
    ]

    def cost(row: tuple[SpaceFacts, CostToReach]) -> CostToReach:
        return row[1]

    fields: list[Field] = [
        ("score", "score", "score", lambda row: search.sign * cost(row).target),
        _SPACE,
        ("trials", "trials", "count", lambda row: cost(row).trials),
        ("seconds", "as they came", "seconds", lambda row: cost(row).seconds),
        ("expected_seconds", "in any order", "seconds", lambda row: cost(row).expected_seconds),
        (
            "spent",
            "not reached in",
            "seconds",
            lambda row: cost(row).spent if cost(row).trials is None else None,
        ),
        ("most_likely", "chance a trial, at most", "percent", lambda row: cost(row).most_likely),
    ]
    caption = (
        f"Scores are those of each space's best trial less the margin of {show(search.margin, 'margin')}. In any "
        "order: the mean over all orders in which the same trials could have come. Where a space did not reach it, the "
        "chance that one of its trials does is at most this (95 %)."
    )
    return search_sheet(search, "reach", "cost to reach a score", caption, fields, rows)


def tuning_sheet(search: SearchFacts) -> Sheet | None:
    """A row a space: how much of it is good, how wide the good rates are, and how often trials learn."""
    rows = [
        (space, near_the_best(search, space), good_octaves(search, space), _took_off(space))
        for space in search.spaces
        if space.dimensions
    ]
    fields: list[Field] = [
        _SPACE,
        ("near_best", "near the best", "count", lambda row: row[1].count if row[1] else None),
        ("of", "of", "count", lambda row: row[1].of if row[1] else None),
        ("near_low", "95 %: low", "percent", lambda row: row[1].low if row[1] else None),
        ("near_high", "high", "percent", lambda row: row[1].high if row[1] else None),
        ("octaves", "octaves of rate", "effect", lambda row: row[2].value if row[2] else None),
        ("octaves_low", "low", "effect", lambda row: row[2].low if row[2] else None),
        ("octaves_high", "high", "effect", lambda row: row[2].high if row[2] else None),
        ("octaves_of", "of", "effect", lambda row: row[2].of if row[2] else None),
        ("takes_off", "takes off", "percent", lambda row: row[3].value if row[3] else None),
    ]
    more: list[Field] = [
        ("takes_off_low", "takes off: low", "percent", lambda row: row[3].low if row[3] else None),
        ("takes_off_high", "takes off: high", "percent", lambda row: row[3].high if row[3] else None),
    ]
    caption = (
        f"Trials within {show(search.margin, 'margin')} of the best one that the other half of the trials found, with "
        "the interval of their share; as many octaves (doublings) of the learning rate are good; takes off: trials "
        "that learn anything. Only trials that were chosen beforehand to train to their end count."
    )
    return search_sheet(search, "tuning", "how easy to tune", caption, fields, rows, more)


def near_the_best(search: SearchFacts, space: SpaceFacts) -> Share | None:
    """Trials within the margin of the space's best; None where too few are known, or none learned anything."""
    return near_best(space.facts, search.margin) if space.finished else None


def rate_range(space: SpaceFacts) -> tuple[float, float] | None:
    """The learning rates that were searched: of the study, or those that were tried; None where none were."""
    dimension = next((each for each in space.dimensions if each.name == RATE and each.values is None), None)
    if dimension is None:
        return None
    tried = [trial_of(run).settings.get(RATE) for run in space.trials]
    rates = [float(value) for value in tried if isinstance(value, int | float)]
    return dimension.bounds or ((min(rates), max(rates)) if rates else None)


def good_octaves(search: SearchFacts, space: SpaceFacts) -> Octaves | None:
    """How many octaves of the learning rate are good; None where `near_the_best` is, or rates were not searched."""
    ends = rate_range(space)
    return octaves(space.facts, search.margin, *ends) if ends is not None and space.finished else None


def _took_off(space: SpaceFacts) -> Share | None:
    """Trials chosen to train to their end that learned anything, of those of which it is known."""
    told = [fact.trained for fact in space.facts if fact.unpruned and fact.trained is not None]
    return share(sum(told), len(told)) if told else None


def effect_sheet(search: SearchFacts) -> Sheet | None:
    """Each value of a setting with a choice, at the best rate that was tried with it."""
    rows = [
        (space, dimension, effect)
        for space in search.spaces
        for dimension in space.dimensions
        if dimension.values is not None
        for effect in in_order(dimension, effect_of(space.facts, dimension.name))
    ]

    def effect(row: tuple[SpaceFacts, Dimension, ValueEffect]) -> ValueEffect:
        return row[2]

    fields: list[Field] = [
        _SPACE,
        ("setting", "setting", "text", lambda row: row[1].title),
        ("value", "value", "text", lambda row: row[1].shown(effect(row).value)),
        ("trials", "trials", "count", lambda row: effect(row).trials),
        ("best", "best score", "score", lambda row: _signed(search, effect(row).best)),
        ("rate", "at rate", "drawn", lambda row: effect(row).rate),
        ("expected", "mean best of n", "score", lambda row: _signed(search, effect(row).expected)),
        ("fewest", "n", "count", lambda row: effect(row).fewest or None),
    ]
    caption = (
        "Each value of a setting at the best learning rate that was tried with it. The mean best of as many trials as "
        "every value had at least is fair where values had more or fewer trials. It describes these trials: whether "
        "one value is better than another takes a study with seeds of each."
    )
    return search_sheet(search, "values", "values at their best rate", caption, fields, rows)


def in_order(dimension: Dimension, effects: Sequence[ValueEffect]) -> list[ValueEffect]:
    """Effects of a setting's values in the order of the study's choice."""
    order = list(dimension.values or ())
    return sorted(effects, key=lambda each: order.index(each.value) if each.value in order else len(order))


def _signed(search: SearchFacts, score: float | None) -> float | None:
    return None if score is None else search.sign * score


def take_off_sheet(search: SearchFacts) -> Sheet | None:
    """By learning rate, how many trials learn anything."""
    rows = [(space, each) for space in search.spaces for each in take_off(space.facts)]

    def part(row: tuple[SpaceFacts, TakeOff]) -> Share | None:
        return row[1].trained

    fields: list[Field] = [
        _SPACE,
        ("low", "rate from", "drawn", lambda row: row[1].low),
        ("high", "to", "drawn", lambda row: row[1].high),
        ("trained", "learned", "count", lambda row: found.count if (found := part(row)) else None),
        ("of", "of", "count", lambda row: found.of if (found := part(row)) else None),
        ("share_low", "95 %: low", "percent", lambda row: found.low if (found := part(row)) else None),
        ("share_high", "high", "percent", lambda row: found.high if (found := part(row)) else None),
    ]
    caption = "Trials chosen beforehand to train to their end, that neither collapsed nor lost their numbers."
    return search_sheet(search, "take-off", "trials that learn, by learning rate", caption, fields, rows)


def spent_sheet(search: SearchFacts) -> Sheet | None:
    """What the trials of each space took, and what pruning saved."""
    rows = [(space, spent(space.facts)) for space in search.spaces]

    def cost(row: tuple[SpaceFacts, Spent]) -> Spent:
        return row[1]

    fields: list[Field] = [
        _SPACE,
        ("trials", "trials", "count", lambda row: cost(row).trials),
        ("pruned", "pruned", "count", lambda row: cost(row).pruned),
        ("steps", "steps", "count", lambda row: cost(row).steps),
        ("seconds", "seconds", "seconds", lambda row: cost(row).seconds),
        ("steps_saved", "steps saved", "count", lambda row: cost(row).steps_saved),
        ("share_saved", "of all", "percent", lambda row: saved_share(cost(row))),
        ("seconds_saved", "seconds saved", "seconds", lambda row: cost(row).seconds_saved),
    ]
    caption = (
        "Optimizer steps, and seconds of training and evaluation, of all trials, pruned ones included; of a trial in a "
        "pack, its share of the pack's time. Saved: what pruned trials did not take, at their own seconds a step."
    )
    return search_sheet(search, "spent", "what the trials took", caption, fields, rows)


def saved_share(cost: Spent) -> float | None:
    """Of the steps that all trials would take without pruning, the share that was saved."""
    whole = cost.steps + cost.steps_saved
    return cost.steps_saved / whole if whole else None


def rung_sheet(search: SearchFacts) -> Sheet | None:
    """What each rung did, and how well it foretold the end."""
    rows = [(space, each) for space in search.spaces for each in rung_facts(space.facts)]

    def rung(row: tuple[SpaceFacts, RungFacts]) -> RungFacts:
        return row[1]

    fields: list[Field] = [
        _SPACE,
        ("step", "rung at step", "count", lambda row: rung(row).step),
        ("total_steps", "of", "count", lambda row: rung(row).total_steps),
        ("reached", "trials there", "count", lambda row: rung(row).reached),
        ("left", "pruned there", "count", lambda row: rung(row).left),
        ("correlation", "rank correlation with the end", "score", lambda row: rung(row).correlation),
        ("pairs", "over trials", "count", lambda row: rung(row).pairs),
    ]
    caption = (
        "Spearman's rank correlation between the scores at a rung and at the end, over the trials that were chosen "
        "beforehand to train to their end; unknown below 5 of them. Near 1, pruning costs little; near 0, it is chance."
    )
    return search_sheet(search, "rungs", "what rungs foretell", caption, fields, rows)


def trial_sheet(search: SearchFacts) -> Sheet | None:
    """Every trial: its settings, how it ended, and what it took."""
    rows = [(space, run) for space in search.spaces for run in space.trials]

    def run(row: tuple[SpaceFacts, RunRecord]) -> RunRecord:
        return row[1]

    fields: list[Field] = [
        _SPACE,
        ("trial", "trial", "count", lambda row: trial_of(run(row)).number),
        ("settings", "settings", "text", lambda row: row[0].settings(run(row)) or None),
        ("state", "state", "text", lambda row: str(run(row).state)),
        ("score", "score", "score", lambda row: score_then(run(row))),
        ("steps", "steps", "count", lambda row: run(row).steps),
        ("seconds", "seconds", "seconds", lambda row: run(row).cost.seconds or None),
        ("rungs", "rungs", "text", lambda row: _rungs(run(row))),
    ]
    searched: dict[str, Dimension] = {}
    for space in search.spaces:
        for each in space.dimensions:
            searched.setdefault(each.name, each)
    more: list[Field] = [_setting(each) for each in searched.values()]
    more += [
        ("total_steps", "of steps", "count", lambda row: trial_of(run(row)).total_steps),
        ("unpruned", "never pruned", "text", lambda row: "yes" if trial_of(run(row)).unpruned else "no"),
        ("seed", "seed", "text", lambda row: run(row).seed),
        ("pack", "pack", "text", lambda row: trial_of(run(row)).pack),
        ("began", "began", "seconds", lambda row: trial_of(run(row)).began),
        ("ended", "ended", "seconds", lambda row: trial_of(run(row)).ended),
        ("run", "run", "text", lambda row: run(row).run_id),
        ("failure", "failure", "text", lambda row: run(row).failure),
    ]
    caption = (
        f"{search.metric.title} on {search.selecting_rows}; of a pruned trial, at its last rung. Rungs: the score at a "
        "step, → where the trial went on, ✕ where it was pruned. All columns hold each setting by itself."
    )
    return search_sheet(search, "trials", "all trials", caption, fields, rows, more)


def _setting(dimension: Dimension) -> Field:
    def value(row: tuple[SpaceFacts, RunRecord]) -> Cell:
        found = trial_of(row[1]).settings.get(dimension.name)
        plain = found is None or (isinstance(found, str | int | float) and not isinstance(found, bool))
        return found if plain else dimension.shown(found)  # type: ignore[return-value]

    return dimension.name, dimension.title, "text" if dimension.values is not None else "drawn", value


def _rungs(run: RunRecord) -> str | None:
    """The scores at the rungs: "803: 0.412 →, 1605: 0.431 ✕"."""
    rungs = trial_of(run).rungs
    shown = [f"{rung.step}: {show(rung.score, 'score')} {'→' if rung.kept else '✕'}" for rung in rungs]
    return ", ".join(shown) or None
