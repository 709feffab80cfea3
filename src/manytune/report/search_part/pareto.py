"""Score against what a trial costs, over all trials, with the Pareto front of those that trained to their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from manytune.report.search_part.search_facts import SearchFacts
from manytune.report.search_part.trial_dots import DOTS_CAPTION, dots
from manytune.report.series import front
from manytune.report.sheets import show
from manytune.report.traces import Chart, trace
from manytune.storage.record import RunRecord

_COSTS: Sequence[tuple[str, str, Callable[[RunRecord], float | None]]] = (
    ("trainable parameters", "count", lambda run: run.parameters.trainable),
    ("seconds of the trial", "seconds", lambda run: run.cost.seconds or None),
)


def pareto_chart(search: SearchFacts) -> Chart | None:
    """The trials by cost and score; None where no cost is known."""
    done = [run for space in search.spaces for run in space.finished]
    costs = [each for each in _COSTS if any(each[2](run) is not None for run in done)]
    if not costs:
        return None
    choices: list[dict[str, Any]] = []
    told = ""
    for title, kind, value in costs:
        known = [(float(cost), run.best_score) for run in done if (cost := value(run)) is not None]
        points = [(cost, score) for cost, score in known if score is not None]
        best = [
            points[at] for at in front(points, less_is_better=True, higher_is_better=search.metric.higher_is_better)
        ]
        line = {"color": "@muted", "width": 1.5, "dash": "dot", "shape": "hv"}
        made = [trace("lines", [x for x, _ in best], [y for _, y in best], name="Pareto front", line=line)]
        made += [one for space in search.spaces for one in dots(search, space, value)]
        choices.append(
            {
                "title": title,
                **{part: [one.get(part, []) for one in made] for part in ("x", "y", "text")},
                "log": all(x > 0 for one in made for x in one["x"]),
                "made": made,
            }
        )
        told += f" By {title}: " + ", ".join(f"{show(x, kind)} {show(y, 'score')}" for x, y in best) + "."
    data: list[dict[str, Any]] = choices[0]["made"]
    # A trial that has one cost may lack another: then only the first axis is there to choose.
    alike = [each for each in choices if len(each.pop("made")) == len(data)]
    xaxis = {"title": {"text": choices[0]["title"]}, "type": "log" if choices[0]["log"] else "linear"}
    layout = {
        "xaxis": xaxis,
        "yaxis": {"title": {"text": f"{search.metric.title} on {search.selecting_rows}"}},
        "legend": {"groupclick": "togglegroup"},
        "hovermode": "closest",
    }
    caption = f"The dotted line joins the trials that no other one is both cheaper and better than. {DOTS_CAPTION}."
    alt = f"{search.metric.title} of every trial against its cost, with the Pareto front.{told}"
    return Chart(
        f"{search.key}-chart-pareto",
        "Score against cost, every trial",
        alt,
        data,
        layout,
        440,
        choices=tuple(alike) if len(alike) > 1 else (),
        caption=caption,
    )
