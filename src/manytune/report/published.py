"""Figures that others reported, beside ours, with every setting that differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from manytune.data.metrics import METRICS
from manytune.methods import METHODS
from manytune.report.analysis import Analysis
from manytune.report.report_data import rows_used
from manytune.report.sheets import Field, Sheet
from manytune.report.task_table import MethodRow
from manytune.stats.describe import Summary, summarize
from manytune.utils.text import short_number

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
    """The settings that the source states, and no others."""


class _Pair(NamedTuple):
    """A published figure, the configuration of ours that is nearest to it, and that one's scores."""

    figure: Figure
    row: MethodRow | None  # None of a method that manytune has not
    ours: Summary


@cache
def figures() -> tuple[Figure, ...]:
    """All published figures that come with the package."""
    table = json.loads((resources.files("manytune.report") / "published.json").read_text(encoding="utf-8"))
    return tuple(Figure.model_validate(one) for one in table["figures"])


_SENTENCE_ENCODER = "all-minilm-l6-v2"
_ITS_DATA = {"mnli": "AllNLI, which holds MNLI", "qqp": "Quora's question pairs"}
"""Task → the part of its rows that the sentence encoder of the offline default was trained on, by its model card."""


def seen_before(model: str, task: str) -> str | None:
    """What a backbone was trained on of a task's rows, labels included; None where nothing is known of that."""
    name = model.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    return _ITS_DATA.get(task) if name in ("minilm", _SENTENCE_ENCODER) else None


def published_sheet(analysis: Analysis) -> Sheet | None:
    """Reported scores of this model and task beside ours; None where nothing is known or matches."""
    name = analysis.table.model.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    here = [figure for figure in figures() if (figure.model, figure.task) == (name, analysis.table.task)]
    pairs = []
    for figure in here:
        row = _nearest(analysis, figure)
        if row is not None or figure.method not in METHODS:
            scores = [] if row is None else [score for _, score in row.scored(figure.metric)]
            pairs.append(_Pair(figure, row, summarize(scores)))
    if all(pair.row is None for pair in pairs):
        return None
    fields: list[Field] = [
        ("source", "reported by", "text", lambda pair: pair.figure.source),
        (
            "configuration",
            "our configuration",
            "label",
            lambda pair: pair.row.label if pair.row else f"none: manytune has no {pair.figure.method}",
        ),
        ("metric", "metric", "text", lambda pair: METRICS[pair.figure.metric].title),
        ("reported", "reported", "score", lambda pair: pair.figure.score),
        ("reported_spread", "±", "deviation", lambda pair: pair.figure.spread),
        ("ours", "ours", "score", lambda pair: pair.ours.mean),
        ("ours_standard_deviation", "sd", "deviation", lambda pair: pair.ours.deviation),
        ("seeds", "seeds", "count", lambda pair: pair.ours.count),
        ("difference", "difference", "difference", _difference),
        (
            "differs",
            "settings that differ (theirs → ours)",
            "text",
            lambda pair: _differing(pair.row, pair.figure) if pair.row else None,
        ),
        ("note", "note", "text", lambda pair: pair.figure.note),
    ]
    caption = (
        "Ours is the mean over seeds of the configuration nearest to theirs: the same method and rank, then the rate. "
        "Settings that a source does not state are not compared."
    )
    return analysis.sheet("published", "published figures", caption, fields, pairs)


def _difference(pair: _Pair) -> float | None:
    return None if pair.ours.mean is None else pair.ours.mean - pair.figure.score


def _nearest(analysis: Analysis, figure: Figure) -> MethodRow | None:
    """Our configuration of the same method with the fewest settings that differ; the better one of equals."""
    rows = [row for row in analysis.ranked if row.method == figure.method]
    if "rank" in figure.settings:
        rows = [row for row in rows if row.runs[0].hyperparameters.get("rank") == figure.settings["rank"]] or rows
    return min(rows, key=lambda row: len(_differences(row, figure)), default=None)


def _differing(row: MethodRow, figure: Figure) -> str:
    differing = [f"{_NAMES.get(name, name)} {theirs} → {ours}" for name, theirs, ours in _differences(row, figure)]
    return "; ".join(differing) or "none that the source states"


def _differences(row: MethodRow, figure: Figure) -> list[tuple[str, str, str]]:
    """Name, their value and ours of each stated setting that differs."""
    run = row.runs[0]
    training = run.hyperparameters.get("training")
    shared: Mapping[str, Any] = training if isinstance(training, Mapping) else {}
    targets, ratio, steps = run.hyperparameters.get("targets"), shared.get("warmup_ratio"), shared.get("warmup_steps")
    settings = {
        **shared,
        **run.hyperparameters,
        "targets": "+".join(map(str, targets)) if isinstance(targets, list | tuple) else targets,
        "warmup": f"{100 * ratio:g} % of steps" if ratio is not None else None if steps is None else f"{steps:g} steps",
        "template": run.template,
        "selection": run.selection,
        "start": "pretrained weights",
        "seeds": len(row.finished),
    }
    pairs = ((name, _shown(name, value), _shown(name, settings.get(name))) for name, value in figure.settings.items())
    limited = [("training rows", "all", rows)] if (rows := rows_used(run)) else []
    return [*limited, *((name, theirs, ours) for name, theirs, ours in pairs if theirs != ours)]


def _shown(name: str, value: object) -> str:
    if value is None:
        return "unknown"
    if not isinstance(value, int | float):
        return str(value)
    return short_number(value) if name == "learning_rate" else f"{value:g}"
