"""Analyses → the parts of a report in their order, for the page and for Markdown alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from manytune.record import RunRecord
from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import Answer, answer
from manytune.report.average import glue_sheet
from manytune.report.charts import Chart, cost_chart, curve_chart, rank_chart, rate_chart, score_chart
from manytune.report.drawing import Drawing, draw
from manytune.report.mistakes import disagreement_sheet, mistake_sheet
from manytune.report.published import published_sheet
from manytune.report.series import looks, loss_rises
from manytune.report.sheets import Column, Sheet
from manytune.report.source import Material
from manytune.report.tables import (
    comparison_sheet,
    cost_sheet,
    left_out_sheet,
    parts_sheet,
    rank_sheet,
    rate_sheet,
    run_sheet,
    score_sheets,
    standing_sheet,
)
from manytune.report.views import counted
from manytune.stats import MINIMUM_SEEDS

__all__ = ["Content", "Part", "TaskContent", "compose"]


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a task's report."""

    key: str
    title: str
    text: tuple[str, ...]
    """Paragraphs; where something is missing, they say so."""
    charts: tuple[Chart, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    folded: tuple[Sheet, ...] = ()
    """Long tables, closed at first."""
    drawing: Drawing | None = None
    figures: tuple[str, ...] = ()
    """Stems of the paper's figures that belong here."""


@dataclass(frozen=True, eq=False)
class TaskContent:
    """All that is said of one task on one backbone."""

    analysis: Analysis
    answer: Answer
    parts: tuple[Part, ...]

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """All tables."""
        return tuple(sheet for part in self.parts for sheet in (*part.sheets, *part.folded))

    @property
    def charts(self) -> tuple[Chart, ...]:
        """All charts."""
        return tuple(chart for part in self.parts for chart in part.charts)


@dataclass(frozen=True, eq=False)
class Content:
    """A whole report."""

    title: str
    state: tuple[str, ...]
    """How far each study is."""
    complete: bool
    """Whether every planned run has ended."""
    tasks: tuple[TaskContent, ...]
    waiting: tuple[str, ...]
    """Tasks of which no run has ended."""
    provenance: tuple[Sheet, ...]
    overall: tuple[Sheet, ...] = ()
    """Tables over all tasks."""
    studies: tuple[tuple[str, str], ...] = field(default=())
    """Name and effective YAML of each study."""

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """All tables."""
        return (*self.overall, *(sheet for task in self.tasks for sheet in task.sheets), *self.provenance)


def compose(material: Material) -> Content:
    """Put a report together; a pure function of the material."""
    analyses = analyse(material)
    known = {(each.table.task, each.table.model) for each in analyses}
    planned = {(run.task, run.model): None for study in material.studies for run in study.status.runs}
    states = []
    for study in material.studies:
        counts = ", ".join(f"{count} {state}" for state, count in study.status.counts.items() if count)
        states.append(f"{study.study.name}: {counted(study.status.planned, 'run')}: {counts}")
    return Content(
        title=", ".join(dict.fromkeys(study.study.name for study in material.studies)),
        state=tuple(states),
        complete=not any(study.status.counts["pending"] for study in material.studies),
        tasks=tuple(TaskContent(each, answer(each), tuple(_parts(each))) for each in analyses),
        waiting=tuple(f"{task} on {model}" for task, model in planned if (task, model) not in known),
        provenance=_provenance(material.records),
        overall=_there(glue_sheet(analyses)),
        studies=tuple((study.study.name, study.study.to_yaml()) for study in material.studies),
    )


def _parts(analysis: Analysis) -> Iterable[Part]:
    yield Part(
        "scores",
        "Scores",
        (),
        (score_chart(analysis),),
        _there(*score_sheets(analysis), parts_sheet(analysis), left_out_sheet(analysis)),
        (run_sheet(analysis),),
        figures=("scores",),
    )
    yield _statistics(analysis)
    yield _curves(analysis)
    yield from _sweeps(analysis)
    yield Part("cost", "Cost", (), _there(cost_chart(analysis)), (cost_sheet(analysis),), figures=("cost",))
    published = published_sheet(analysis)
    text = f"No published figure of {analysis.title} with {analysis.table.model} is known to this version of manytune."
    yield Part("published", "Against published figures", () if published else (text,), sheets=_there(published))
    drawing = draw(analysis)
    missing = "The module tree was not kept with this study, so the model cannot be drawn."
    said = "From the tokens above to the prediction below. A layer's parts are drawn once where layers are alike."
    yield Part("model", "The model: what trains where", (said if drawing else missing,), drawing=drawing)
    yield _mistakes(analysis)


def _statistics(analysis: Analysis) -> Part:
    text = []
    few = sorted({each.seeds for each in analysis.comparisons if each.seeds < MINIMUM_SEEDS})
    if few:
        text.append(
            f"Some pairs share fewer than {MINIMUM_SEEDS} seeds: too few seeds for a verdict, and no test is shown for "
            "them, because a spread seen in so few says little of the next one."
        )
    text.append(
        "A method is judged by its best configuration, and pays for the choice: it must beat every configuration of "
        "the other method, and its p is multiplied by how many configurations it had to choose from. All pairs of "
        "methods of the task are then corrected together (Holm). A difference must hold over seeds and over dev "
        "examples."
    )
    if not analysis.predictions:
        text.append(
            "Dev predictions were not kept with this study, so nothing is said of uncertainty over dev examples."
        )
    return Part(
        "statistics", "Statistics", tuple(text), sheets=_there(comparison_sheet(analysis), standing_sheet(analysis))
    )


def _curves(analysis: Analysis) -> Part:
    chart = curve_chart(analysis)
    if chart is None:
        return Part("curves", "Curves", ("No histories were kept with this study.",))
    text = []
    rising = loss_rises(analysis)
    if rising:
        look = looks(analysis)
        names = ", ".join(look[label].name for label in rising)
        text.append(
            f"Evaluation loss rises while {analysis.metric.title} rises too: {names}. A model can grow surer of what "
            "it gets wrong, and the loss counts that, while the score may not."
        )
    lacking = len(analysis.records) - len(analysis.histories)
    if lacking:
        text.append(f"{counted(lacking, 'run')} without a history are not drawn.")
    return Part("curves", "Curves", tuple(text), (chart,), figures=("curves",))


def _sweeps(analysis: Analysis) -> Iterable[Part]:
    ranks, rates = rank_sheet(analysis), rate_sheet(analysis)
    if ranks:
        yield Part("rank", "LoRA rank", (), _there(rank_chart(analysis)), (ranks,), figures=("rank",))
    if rates:
        yield Part("rates", "Learning rate", (), _there(rate_chart(analysis)), (rates,), figures=("rates",))


def _mistakes(analysis: Analysis) -> Part:
    sheets = _there(mistake_sheet(analysis), disagreement_sheet(analysis))
    text = "The dev sentences or the predictions are not here, so mistakes cannot be shown."
    return Part("mistakes", "Worst mistakes", () if sheets else (text,), sheets=sheets)


def _there(*things: Any) -> tuple[Any, ...]:
    return tuple(thing for thing in things if thing is not None)


def _provenance(records: Iterable[RunRecord]) -> tuple[Sheet, ...]:
    """What the runs ran on; values that differ between runs are listed with their number of runs."""
    every = list(records)
    facts: dict[str, Counter[str]] = {}
    for run in every:
        origin = run.provenance
        values: dict[str, Any] = {
            "model revision": origin.model_revision,
            f"data fingerprint, {run.task}": origin.data_fingerprint,
            "commit of manytune": origin.git_commit,
            **{f"hardware, {name}": value for name, value in origin.hardware.items()},
            **{f"version, {name}": value for name, value in origin.versions.items()},
        }
        for name, value in values.items():
            if value is not None:
                facts.setdefault(name, Counter())[str(value)] += 1
    rows: list[tuple[str, str, int]] = [
        (name, value, count) for name, counts in facts.items() for value, count in counts.items()
    ]
    starts = [run.provenance.started for run in every if run.provenance.started]
    ends = [run.provenance.finished for run in every if run.provenance.finished]
    for name, times in (("first start", starts[:1] and [min(starts)]), ("last end", ends[:1] and [max(ends)])):
        rows += [(name, f"{time:%Y-%m-%d %H:%M:%S %Z}", len(every)) for time in times]
    columns = (Column("what", "what"), Column("value", "value"), Column("runs", "runs", "count"))
    sheet = Sheet("provenance", "Provenance", "Values that differ between runs have a line each.", columns, tuple(rows))
    return (sheet,) if rows else ()
