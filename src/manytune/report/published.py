"""Figures that others reported, beside ours, with every setting that differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from manytune.config.plan import short_number
from manytune.report.analysis import Analysis
from manytune.report.answer import configuration_title
from manytune.report.sheets import Column, Sheet
from manytune.report.task_table import MethodRow
from manytune.storage.record import RunRecord

__all__ = ["Figure", "figures", "published_sheet"]

_NAMES = {"learning_rate": "rate", "alpha": "α", "batch_size": "batch", "weight_decay": "decay", "max_length": "length"}


class Figure(BaseModel):
    """One score that somebody reported."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: str
    link: str | None
    model: str
    """The last part of the backbone's name on the hub."""
    task: str
    method: str
    metric: str
    score: float
    spread: float | None
    """What the source gives after ±."""
    note: str | None = None
    settings: dict[str, float | int | str]
    """What the source says of its settings; what it does not say is not there."""


@cache
def figures() -> tuple[Figure, ...]:
    """All published figures that come with the package."""
    table = json.loads((resources.files("manytune.report") / "published.json").read_text(encoding="utf-8"))
    return tuple(Figure.model_validate(one) for one in table["figures"])


def published_sheet(analysis: Analysis) -> Sheet | None:
    """Reported scores of this model and task beside ours; None where nothing is known or matches."""
    name = analysis.table.model.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    rows = []
    for figure in figures():
        row = _ours(analysis, figure)
        if (figure.model, figure.task) != (name, analysis.table.task) or row is None:
            continue
        ours = next((each.best for each in row.metrics if each.metric.name == figure.metric), None)
        mean = ours.mean if ours else None
        rows.append(
            (
                figure.source,
                configuration_title(row),
                next((each.metric.title for each in row.metrics if each.metric.name == figure.metric), figure.metric),
                figure.score,
                figure.spread,
                mean,
                ours.deviation if ours else None,
                ours.count if ours else 0,
                None if mean is None else mean - figure.score,
                _differing(row, figure),
                figure.note,
            )
        )
    if not rows:
        return None
    columns = (
        Column("source", "reported by"),
        Column("configuration", "our configuration"),
        Column("metric", "metric"),
        Column("reported", "reported", "score"),
        Column("reported_spread", "±", "score"),
        Column("ours", "ours", "score"),
        Column("ours_standard_deviation", "sd", "score"),
        Column("seeds", "seeds", "count"),
        Column("difference", "difference", "difference"),
        Column("differs", "settings that differ (theirs → ours)"),
        Column("note", "note"),
    )
    caption = (
        "Ours is the mean over seeds of the configuration nearest to theirs: the same method and rank, then the rate. "
        "Settings that a source does not state are not compared."
    )
    return Sheet(f"{analysis.key}-published", f"{analysis.title}: published figures", caption, columns, tuple(rows))


def _ours(analysis: Analysis, figure: Figure) -> MethodRow | None:
    """Our configuration of the same method with the fewest settings that differ; the better one of equals."""
    rows = [row for row in analysis.ranked if row.runs[0].method == figure.method]
    if "rank" in figure.settings:
        rows = [row for row in rows if row.runs[0].hyperparameters.get("rank") == figure.settings["rank"]] or rows
    return min(rows, key=lambda row: len(_differences(row, figure)), default=None)


def _differing(row: MethodRow, figure: Figure) -> str:
    said = [f"{_NAMES.get(name, name)} {theirs} → {ours}" for name, theirs, ours in _differences(row, figure)]
    return "; ".join(said) or "none that the source states"


def _differences(row: MethodRow, figure: Figure) -> list[tuple[str, str, str]]:
    ours = _settings(row)
    return [
        (name, _shown(name, theirs), _shown(name, ours.get(name)))
        for name, theirs in figure.settings.items()
        if _shown(name, theirs) != _shown(name, ours.get(name))
    ]


def _settings(row: MethodRow) -> dict[str, Any]:
    run: RunRecord = row.runs[0]
    own = {name: value for name, value in run.hyperparameters.items() if name != "training"}
    training = run.hyperparameters.get("training")
    shared: Mapping[str, Any] = training if isinstance(training, Mapping) else {}
    targets = own.get("targets")
    return {
        **shared,
        **own,
        "targets": "+".join(map(str, targets)) if isinstance(targets, list | tuple) else targets,
        "warmup": _warmup(run, shared),
        "template": run.template,
        "selection": run.selection,
        "start": "pretrained weights",
        "seeds": len(row.finished),
    }


def _warmup(run: RunRecord, training: Mapping[str, Any]) -> str | None:
    if training.get("warmup_ratio") is not None:
        return f"{100 * training['warmup_ratio']:g} % of steps"
    if training.get("warmup_steps") is None:
        return None
    return f"{training['warmup_steps']:g} steps"


def _shown(name: str, value: object) -> str:
    if value is None:
        return "unknown"
    if name == "learning_rate" and isinstance(value, int | float):
        return short_number(value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)
