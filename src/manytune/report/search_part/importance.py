"""How much of the scatter of scores each setting explains: optuna's fANOVA over the trials of a space."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from manytune.report.search_part.search_facts import Dimension, SearchFacts, SpaceFacts, trial_of
from manytune.report.series import plotly_text
from manytune.report.sheets import show
from manytune.report.traces import Chart
from manytune.utils.extras import is_installed
from manytune.utils.text import counted

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FEWEST = 8
"""Finished trials of a space below which nothing is said."""


def about_importance(search: SearchFacts) -> Iterable[str]:
    """Why there is no chart of importance, or of which spaces it says nothing."""
    several = [space for space in search.spaces if len(space.dimensions) > 1]
    if not several:
        return
    if not is_installed("optuna"):
        yield (
            "How much each setting matters is computed by optuna, which is not installed: "
            "`pip install 'manytune[search]'`, then make the report again."
        )
        return
    for space in several:
        if not _known(space):
            done = counted(len(space.finished), "trial")
            yield (
                f"{space.look.name}: {done} trained to the end, too few to say how much each setting matters (it takes "
                f"{FEWEST} with different values and scores)."
            )


def _known(space: SpaceFacts) -> bool:
    scores = {run.best_score for run in space.finished}
    return len(space.finished) >= FEWEST and len(scores) > 1 and len(_varied(space)) > 1


def _varied(space: SpaceFacts) -> list[Dimension]:
    """The settings of which finished trials have several values."""
    return [each for each in space.dimensions if len({_key(run.trial, each) for run in space.finished}) > 1]


def _key(trial: Any, dimension: Dimension) -> str:
    return json.dumps(trial.settings.get(dimension.name), sort_keys=True)


@lru_cache(maxsize=32)
def importances(space: SpaceFacts) -> dict[str, float]:
    """Title of each setting → its share of the variance of scores over finished trials, most first.

    fANOVA (Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html): a random forest learns scores from
    settings, and a setting's share is that of the forest's variance which comes from it alone, whatever the others
    are. Empty where optuna is not installed, or trials are too few or all alike.
    """
    if not is_installed("optuna") or not _known(space):
        return {}
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize" if space.sign > 0 else "minimize")
        columns = [(each, *_column(space, each)) for each in _varied(space)]
        distributions = {each.name: distribution for each, distribution, _ in columns}
        for at, run in enumerate(space.finished):
            values = {each.name: column[at] for each, _, column in columns}
            create = optuna.trial.create_trial
            study.add_trial(create(params=values, distributions=distributions, value=run.best_score))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(before)
    titles = {each.name: each.title for each in space.dimensions}
    return {titles[name]: float(share) for name, share in shares.items()}


def _column(space: SpaceFacts, dimension: Dimension) -> tuple[BaseDistribution, list[Any]]:
    """What optuna is told of a setting, and its value in each finished trial."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found = [trial_of(run).settings.get(dimension.name) for run in space.finished]
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    if dimension.values is None and len(numbers) == len(found):
        return FloatDistribution(min(numbers), max(numbers), log=dimension.log), numbers
    keys = [json.dumps(value, sort_keys=True) for value in found]  # optuna takes plain values alone
    order = sorted(set(keys))
    return CategoricalDistribution(tuple(range(len(order)))), [order.index(key) for key in keys]


def importance_chart(search: SearchFacts) -> Chart | None:
    """Bars of each space's settings; None where nothing is known."""
    known = [(space, importances(space)) for space in search.spaces]
    known = [(space, shares) for space, shares in known if shares]
    if not known:
        return None
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [round(share, 4) for share in reversed(shares.values())],
            "y": [plotly_text(f"{title}  ") for title in reversed(shares)],
            "text": [show(share, "percent") for share in reversed(shares.values())],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": f"{space.look.markup}, %{{y}}: %{{text}}<extra></extra>",
            "name": space.look.markup,
            "marker": {"color": space.look.paint},
        }
        for space, shares in known
    ]
    bars = max(len({title for _, shares in known for title in shares}), sum(len(shares) for _, shares in known))
    layout = {
        "xaxis": {"title": {"text": "share of the scores' variance"}, "range": [0, 1.08], "tickformat": ".0%"},
        "yaxis": {},
        "showlegend": True,
        "bargap": 0.3,
    }
    caption = (
        "How much of the scatter of scores comes from each setting alone (fANOVA, over the trials that trained to the "
        "end). What is missing to 100 % is shared by several settings. A setting with a small share needs no search."
    )
    words = {space: [f"{title} {show(share, 'percent')}" for title, share in shares.items()] for space, shares in known}
    listed = "; ".join(f"{space.look.name}: {', '.join(each)}" for space, each in words.items())
    alt = f"Share of the variance of {search.metric.title} that each setting explains. {listed}."
    return Chart(
        f"{search.key}-chart-importance", "Which settings matter", alt, data, layout, 130 + 38 * bars, caption=caption
    )
