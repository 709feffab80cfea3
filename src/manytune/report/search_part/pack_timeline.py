"""When which trial was in which pack: a bar a trial, a line for each place in a pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manytune.report.search_part.search_facts import SearchFacts, trial_of
from manytune.report.search_part.trial_dots import words
from manytune.report.series import plotly_text
from manytune.report.sheets import show
from manytune.report.traces import Chart, trace
from manytune.storage.record import RunRecord, RunState
from manytune.utils.text import counted, cut

_LONGEST_PACK = 22  # characters of a pack's name beside its lines
_GAP = 0.7  # lines between two packs
_LINE, _MOST_HEIGHT, _LEAST_HEIGHT = 17, 900, 220  # pixels


@dataclass(frozen=True)
class Lane:
    """One place of a pack, which one trial after the other has."""

    group: str
    """The pack, or what packs of one trial of a space are called together."""
    trials: tuple[RunRecord, ...]


def lanes(search: SearchFacts) -> tuple[Lane, ...]:
    """The places of all packs, in the order in which packs began; a trial takes the first place that is free.

    Packs of one trial, such as those of full fine-tuning, follow one another on the same line where they can.
    """
    size = Counter(trial_of(run).pack for run in search.trials)
    groups: dict[str, list[list[RunRecord]]] = {}
    names = {trial_of(run).pack: _group(search, run, size) for run in search.trials}
    for run in sorted(search.trials, key=lambda run: (trial_of(run).began, trial_of(run).number)):
        trial = trial_of(run)
        places = groups.setdefault(names[trial.pack], [])
        free = next((place for place in places if trial_of(place[-1]).ended <= trial.began), None)
        if free is None:
            places.append([run])
        else:
            free.append(run)
    return tuple(Lane(name, tuple(place)) for name, places in groups.items() for place in places)


def _group(search: SearchFacts, run: RunRecord, size: Counter[str]) -> str:
    pack = trial_of(run).pack
    if size[pack] > 1:
        return f"pack {pack.removeprefix(f'{search.task}-')}"
    return next(space.look.name for space in search.spaces if space.name == trial_of(run).space)


def timeline_chart(search: SearchFacts) -> Chart | None:
    """The trials as bars from their beginning to their end; None where no times are known."""
    found = lanes(search)
    if not any(trial_of(run).ended > trial_of(run).began for run in search.trials):
        return None
    groups = [*dict.fromkeys(lane.group for lane in found)]
    rows = [at + _GAP * groups.index(lane.group) for at, lane in enumerate(found)]
    row = {run.run_id: at for at, lane in zip(rows, found, strict=True) for run in lane.trials}
    data: list[dict[str, Any]] = []
    for space in search.spaces:
        trials = [trial_of(run) for run in space.trials]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "base": [round(trial.began, 2) for trial in trials],
                "x": [round(trial.ended - trial.began, 2) for trial in trials],
                "y": [row[run.run_id] for run in space.trials],
                "text": [words(space, run) for run in space.trials],
                "textposition": "none",
                "hovertemplate": f"{space.look.markup}, %{{text}}<br>from %{{base:.0f}} s<extra></extra>",
                "name": space.look.markup,
                "marker": {"color": f"{space.look.paint}/0.8", "line": {"color": "@card", "width": 1}},
                "width": 0.86,
            }
        )
    data += [*_ends(search, row, RunState.PRUNED), *_ends(search, row, RunState.COLLAPSED, RunState.FAILED)]
    layout = {
        "xaxis": {"title": {"text": "seconds of the search's work"}, "rangemode": "tozero"},
        "yaxis": {**_names(found, rows), "autorange": "reversed", "showgrid": False, "zeroline": False},
        "barmode": "overlay",
    }
    height = min(_MOST_HEIGHT, max(_LEAST_HEIGHT, 110 + _LINE * len(found)))
    pruned = sum(run.state is RunState.PRUNED for run in search.trials)
    caption = (
        "Each bar is a trial, each line a place in a pack. ‹ marks where a trial was pruned, × where it failed or "
        "collapsed. Trials that train together share the time; where a bar ends, the next trial takes the place. Gaps "
        "are places that nobody took."
    )
    last = max(trial_of(run).ended for run in search.trials)
    alt = (
        f"Timeline of {counted(len(search.trials), 'trial')} in {counted(len(found), 'place')} of packs over "
        f"{show(last, 'seconds')}; {pruned} were pruned."
    )
    return Chart(
        f"{search.key}-chart-packs", "Which trial was in which pack when", alt, data, layout, height, caption=caption
    )


def _ends(search: SearchFacts, row: Mapping[str, float], *states: RunState) -> list[dict[str, Any]]:
    """Marks where trials ended early."""
    runs = [run for run in search.trials if run.state in states]
    if not runs:
        return []
    name, symbol = ("pruned", "triangle-left") if RunState.PRUNED in states else ("did not train", "x-thin-open")
    marker = {"symbol": symbol, "size": 8, "color": "@ink", "line": {"width": 1.5}}
    return [
        trace(
            "markers",
            [trial_of(run).ended for run in runs],
            [row[run.run_id] for run in runs],
            name=name,
            marker=marker,
        )
    ]


def _names(found: Sequence[Lane], rows: Sequence[float]) -> dict[str, Any]:
    """A group's name beside the middle of its lines."""
    places: dict[str, list[float]] = {}
    for at, lane in zip(rows, found, strict=True):
        places.setdefault(lane.group, []).append(at)
    middles = [(each[0] + each[-1]) / 2 for each in places.values()]
    return {"tickvals": middles, "ticktext": [plotly_text(cut(name, _LONGEST_PACK)) for name in places]}
