"""The command `plan`: how many seeds a difference takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manytune.cli.common import Json, app, directory, print_result
from manytune.utils.text import counted, duration, quoted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from manytune.report.pilot import Pilot
    from manytune.stats.design import Design, Needed

_SEEDS = (5, 10, 20, 50)  # of the table, where no looks are planned
_MARGIN = 0.01


@app.command()
def plan(
    difference: Annotated[
        float, typer.Option(help="The difference between two methods to find, in the metric's unit.")
    ],
    margin: Annotated[
        float | None,
        typer.Option(help="How much worse counts as as good: 0.01, or that of DIR.", show_default=False),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--from", help="A study whose runs say how far scores scatter.", metavar="DIR", parser=directory),
    ] = None,
    sd: Annotated[
        float | None, typer.Option(help="The standard deviation of scores over seeds, instead of --from.")
    ] = None,
    sd_seeds: Annotated[
        int | None, typer.Option(min=2, help="In how many seeds --sd was seen; it counts as exact otherwise.")
    ] = None,
    methods: Annotated[
        int | None, typer.Option(min=2, help="How many methods are compared: 2, or as in DIR.", show_default=False)
    ] = None,
    configurations: Annotated[
        int | None,
        typer.Option(min=1, help="Configurations of each method: 1, or the most in DIR.", show_default=False),
    ] = None,
    looks: Annotated[str | None, typer.Option(help="Numbers of seeds at which to look, such as 5,10,20.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of DIR; all of them by default.")] = None,
    as_json: Json = False,
) -> None:
    """Say how many seeds it takes to find a difference, or to show that methods are as good.

    Scores scatter over seeds, and a difference that is small beside that takes many seeds to be told from chance. The
    numbers are such that four of five studies find what is there.
    """
    from manytune.report.pilot import pilots
    from manytune.stats.design import Design
    from manytune.stats.planning import upper_deviation

    if (results is None) == (sd is None):
        raise typer.BadParameter("give --from DIR or --sd, one of the two: how far scores scatter over seeds")
    if results is not None and sd_seeds is not None:
        raise typer.BadParameter("--sd-seeds goes with --sd")
    if sd is not None and task is not None:
        raise typer.BadParameter("--task goes with --from")
    for name, value in (("--difference", difference), ("--margin", margin), ("--sd", sd)):
        if value is not None and not 0 < value < float("inf"):
            raise typer.BadParameter(f"{name}: {value} is not above 0")
    planned = _looks(looks)
    found: list[Any] = []
    lines: list[RenderableType] = []
    for pilot in (None,) if results is None else pilots(results, task):
        if pilot is None:
            spread = sd if sd_seeds is None else upper_deviation(sd or 0.0, sd_seeds - 1)
            design = Design(spread or 0.0, methods or 2, configurations or 1, planned)
            wanted = _MARGIN if margin is None else margin
        else:
            most = max(each.configurations for each in pilot.spreads)
            count = methods or max(2, len(pilot.spreads))
            design = Design(pilot.upper, count, configurations or most, planned or pilot.looks)
            wanted = pilot.margin if margin is None else margin
        found.append(_facts(design, difference, wanted, pilot))
        lines += _render(design, difference, wanted, pilot, sd)
    print_result(found if results is not None else found[0], *lines, as_json=as_json)


def _looks(given: str | None) -> tuple[int, ...]:
    from manytune.config.values import read_looks

    if given is None:
        return ()
    if not re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*)*", given):
        raise typer.BadParameter(f"--looks: {quoted(given)} is no list of numbers of seeds, such as 5,10,20")
    try:
        return read_looks([int(number) for number in given.split(",")])
    except ValueError as error:
        raise typer.BadParameter(f"--looks: {error}") from None


def _facts(design: Design, difference: float, margin: float, pilot: Pilot | None) -> dict[str, Any]:
    """The plan as plain data."""
    seen = None if pilot is None else pilot.seen
    return {
        "task": None if pilot is None else pilot.task,
        "metric": None if pilot is None else pilot.metric,
        "spreads": [] if pilot is None else [asdict(each) for each in pilot.spreads],
        **asdict(design),
        "difference": difference,
        "margin": margin,
        "seeds_for_better": asdict(design.for_better(difference)),
        "seeds_for_as_good": asdict(design.for_as_good(margin)),
        "seen_without_a_plan": seen,
        "extended_for_better": None if seen is None else asdict(design.for_better(difference, anytime=True)),
        "extended_for_as_good": None if seen is None else asdict(design.for_as_good(margin, anytime=True)),
        "table": [
            {**asdict(design.reach(seeds)), "runs": _runs(design, pilot, seeds), "seconds": _seconds(pilot, seeds)}
            for seeds in design.looks or _SEEDS
        ],
    }


def _render(
    design: Design, difference: float, margin: float, pilot: Pilot | None, sd: float | None
) -> Iterator[RenderableType]:
    from manytune.report.views import plain_table

    if pilot is not None:
        columns = ("method", "configurations", "runs", "spread over seeds", "a run takes")
        rows = [
            (each.method, each.configurations, each.seeds, each.deviation, each.seconds and duration(each.seconds))
            for each in pilot.spreads
        ]
        yield plain_table(columns, rows, title=f"{pilot.task}, {pilot.metric}")
    yield "  " + " ".join(_basis(design, pilot, sd)) + "\n"
    once = replace(design, looks=())
    better = _needed(design, design.for_better(difference), once.for_better(difference))
    as_good = _needed(design, design.for_as_good(margin), once.for_as_good(margin))
    yield f"  To find that a method is better by {difference:g}: {better}."
    yield f"  To show that one is as good, at most {margin:.3g} worse, if it equals the best: {as_good}."
    if pilot is not None and pilot.seen is not None:
        found, shown = once.for_better(difference, anytime=True), once.for_as_good(margin, anytime=True)
        yield (
            f"  That is for a new study. Scores of this one could be seen at {pilot.seen} seeds, a look that was not "
            f"planned and costs: to extend this study, {_needed(once, found)}, and {_needed(once, shown)}."
        )
    yield _table(design, pilot)
    yield "  Four of five studies find what the numbers say, if it is there. " + (
        "A study may stop at the first look that finds what it looks for."
        if design.looks
        else "Seeds are all run before the scores are looked at; --looks 5,10,20 plans to look in between."
    )


def _table(design: Design, pilot: Pilot | None) -> RenderableType:
    from manytune.report.views import plain_table

    rows = []
    for seeds in design.looks or _SEEDS:
        reach, seconds = design.reach(seeds), _seconds(pilot, seeds)
        sizes = (f"{size:.3g}" if size is not None else None for size in (reach.difference, reach.margin))
        time = None if seconds is None else duration(seconds)
        rows.append((seeds, *sizes, f"{100 * reach.level:.3g} %", _runs(design, pilot, seeds), time))
    columns = ["seeds", "finds a difference of", "shows as good within", "level", "runs", "time"]
    return plain_table(columns, rows)


def _runs(design: Design, pilot: Pilot | None, seeds: int) -> int:
    """Runs of so many seeds, of the study's own configurations where there is one."""
    if pilot is not None:
        return seeds * sum(each.configurations for each in pilot.spreads)
    return seeds * design.methods * design.configurations


def _seconds(pilot: Pilot | None, seeds: int) -> float | None:
    each = None if pilot is None else pilot.seconds_a_seed
    return None if each is None else seeds * each


def _basis(design: Design, pilot: Pilot | None, sd: float | None) -> Iterator[str]:
    """What is reckoned with."""
    pairs = design.methods * (design.methods - 1) // 2
    choice = f", each the best of {design.configurations} configurations" if design.configurations > 1 else ""
    what = f"{counted(design.methods, 'method')} in {counted(pairs, 'pair')}{choice}"
    if pilot is not None:
        widest = " and ".join(each.method for each in pilot.widest)
        yield (
            f"Reckoned with {what}, and with a spread of {design.deviation:.3g}: that of {widest} is "
            f"{pilot.deviation[0]:.3g}, and over so few seeds it may look smaller than it is (upper 80 % bound)."
        )
    elif sd == design.deviation:
        yield f"Reckoned with {what}, and with a spread of {design.deviation:.3g}, as given."
    else:
        yield f"Reckoned with {what}, and with a spread of {design.deviation:.3g}, the upper 80 % bound of {sd:g}."


def _needed(design: Design, needed: Needed, once: Needed | None = None) -> str:
    """How many seeds; `once`: with a single look, which is said where the planned ones do not suffice."""
    if needed.seeds is None and design.looks and once is not None:
        return f"more than the planned {design.looks[-1]} seeds; with one look at the end {_needed(design, once)}"
    if needed.seeds is None:
        return "more than 1,000 seeds"
    ties = "" if needed.with_ties == needed.seeds else f" ({_or_more(needed.with_ties)} if all others are equally good)"
    return f"{needed.seeds} seeds{ties}"


def _or_more(seeds: int | None) -> str:
    return "more" if seeds is None else str(seeds)
