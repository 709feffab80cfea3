"""Analyses → the parts of a report in their order, for the page and for Markdown alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import Answer, answer
from manytune.report.average import glue_sheet
from manytune.report.charts import Chart, cost_chart, curve_chart, rank_chart, rate_chart, score_chart
from manytune.report.drawing import Drawing, draw
from manytune.report.guard import attempt
from manytune.report.mistakes import disagreement_sheet, mistake_sheet
from manytune.report.published import published_sheet
from manytune.report.report_data import ReportData
from manytune.report.score_sheets import (
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
from manytune.report.series import looks, loss_rises
from manytune.report.sheets import Column, Sheet, to_csv, to_markdown, to_tex
from manytune.report.views import counted
from manytune.stats import MINIMUM_SEEDS
from manytune.storage.record import RunRecord

__all__ = ["Content", "Section", "TaskContent", "compose"]


@dataclass(frozen=True, eq=False)
class Section:
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
    parts: tuple[Section, ...]

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
    problems: tuple[str, ...] = ()
    """What is missing in the whole report, and why; what is missing in a part stands there."""
    overall: tuple[Sheet, ...] = ()
    """Tables over all tasks."""
    studies: tuple[tuple[str, str], ...] = field(default=())
    """Name and effective YAML of each study."""

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """All tables."""
        return (*self.overall, *(sheet for task in self.tasks for sheet in task.sheets), *self.provenance)


def compose(data: ReportData) -> Content:
    """Put a report together; a pure function of the data.

    Warns:
        ReportWarning: A part could not be made; it says so where it would stand.
    """
    problems = list(data.problems)
    analyses = analyse(data, problems)
    planned = {(run.task, run.model): None for study in data.studies for run in study.status.runs}
    ended = {(run.task, run.model) for run in data.records}
    states = []
    for study in data.studies:
        counts = ", ".join(f"{count} {state}" for state, count in study.status.counts.items() if count)
        states.append(f"{study.study.name}: {counted(study.status.planned, 'run')}: {counts}")
    overall = attempt("GLUE's average could not be made", lambda: _writable(glue_sheet(analyses)), (), problems)
    provenance = attempt("Provenance could not be listed", lambda: _writable(_provenance(data.records)), (), problems)
    return Content(
        title=", ".join(dict.fromkeys(study.study.name for study in data.studies)),
        state=tuple(states),
        complete=not any(study.status.counts["pending"] for study in data.studies),
        tasks=tuple(TaskContent(each, _answer(each), tuple(_parts(each))) for each in analyses),
        waiting=tuple(f"{task} on {model}" for task, model in planned if (task, model) not in ended),
        provenance=provenance,
        problems=tuple(problems),
        overall=overall,
        studies=tuple((study.study.name, study.study.to_yaml()) for study in data.studies),
    )


def _answer(analysis: Analysis) -> Answer:
    problems: list[str] = []
    said = attempt(f"{analysis.title}: the answer could not be made", lambda: answer(analysis), None, problems)
    return said or Answer(problems[0], (), False)


def _parts(analysis: Analysis) -> Iterable[Section]:
    yield _part(
        analysis,
        "scores",
        "Scores",
        charts=(score_chart,),
        sheets=(score_sheets, parts_sheet, left_out_sheet),
        folded=(run_sheet,),
    )
    yield _part(analysis, "statistics", "Statistics", _about_statistics, sheets=(comparison_sheet, standing_sheet))
    yield _part(analysis, "curves", "Curves", _about_curves, charts=(curve_chart,))
    rank = _part(analysis, "rank", "LoRA rank", charts=(rank_chart,), sheets=(rank_sheet,))
    rates = _part(analysis, "rates", "Learning rate", charts=(rate_chart,), sheets=(rate_sheet,))
    yield from (part for part in (rank, rates) if part.sheets or part.text)
    yield _part(analysis, "cost", "Cost", charts=(cost_chart,), sheets=(cost_sheet,))
    published = _part(analysis, "published", "Against published figures", sheets=(published_sheet,))
    text = f"No published figure of {analysis.title} with {analysis.table.model} is known to this version of manytune."
    yield published if published.sheets or published.text else replace(published, text=(text,))
    yield _model(analysis)
    mistakes = _part(analysis, "mistakes", "Worst mistakes", sheets=(mistake_sheet, disagreement_sheet))
    text = "Mistakes cannot be shown: the dev sentences, or predictions of a run that finished, are not here."
    yield mistakes if mistakes.sheets or mistakes.text else replace(mistakes, text=(text,))


def _part(
    analysis: Analysis,
    key: str,
    title: str,
    text: Callable[[Analysis], Iterable[str]] = lambda analysis: (),
    *,
    charts: Sequence[Callable[[Analysis], Any]] = (),
    sheets: Sequence[Callable[[Analysis], Any]] = (),
    folded: Sequence[Callable[[Analysis], Any]] = (),
) -> Section:
    """A part, with a sentence in place of each chart and table that could not be made."""
    problems: list[str] = []
    said = _made(analysis, f"{title}: the text", text, problems)
    drawn = [chart for make in charts for chart in _made(analysis, f"{title}: a chart", make, problems)]
    tables = [sheet for make in sheets for sheet in _made(analysis, f"{title}: a table", make, problems)]
    closed = [sheet for make in folded for sheet in _made(analysis, f"{title}: a table", make, problems)]
    return Section(key, title, (*said, *problems), tuple(drawn), tuple(tables), tuple(closed), figures=(key,))


def _made(analysis: Analysis, what: str, make: Callable[[Analysis], Any], problems: list[str]) -> tuple[Any, ...]:
    """What `make` makes, one thing or several, if there are some and they can be written."""
    said = f"{analysis.title}, {what} could not be made"
    return attempt(said, lambda: _writable(make(analysis)), (), problems)


def _writable(made: Any) -> tuple[Any, ...]:
    """Things that can be written in every form: what cannot fails here, where its part alone is lost."""
    things = () if made is None else (made,) if isinstance(made, Sheet | Chart) else tuple(made)
    for thing in things:
        if isinstance(thing, Sheet):
            for form in (to_csv, to_tex, to_markdown):
                form(thing).encode()
        elif isinstance(thing, Chart):
            json.dumps(asdict(thing), ensure_ascii=False, allow_nan=False).encode()
    return things


def _about_statistics(analysis: Analysis) -> Iterable[str]:
    few = sorted({each.seeds for each in analysis.comparisons if each.seeds < MINIMUM_SEEDS})
    if few:
        yield (
            f"Some pairs share fewer than {MINIMUM_SEEDS} seeds: too few seeds for a verdict, and no test is shown for "
            "them, because a spread seen in so few says little of the next one."
        )
    yield (
        "A method is judged by its best configuration, and pays for the choice: it must beat every configuration of "
        "the other method, and its p is multiplied by how many configurations it had to choose from. All pairs of "
        "methods of the task are then corrected together (Holm). A difference must hold over seeds and over dev "
        "examples."
    )
    if not analysis.predictions:
        yield "Dev predictions were not kept with this study, so nothing is said of uncertainty over dev examples."


def _about_curves(analysis: Analysis) -> Iterable[str]:
    if not analysis.histories:
        yield "No histories were kept with this study."
        return
    rising = loss_rises(analysis)
    if rising:
        look = looks(analysis)
        names = ", ".join(look[label].name for label in rising)
        yield (
            f"Evaluation loss rises while {analysis.metric.title} rises too: {names}. A model can grow surer of what "
            "it gets wrong, and the loss counts that, while the score may not."
        )
    lacking = len(analysis.records) - len(analysis.histories)
    if lacking:
        yield f"{counted(lacking, 'run')} without a history are not drawn."


def _model(analysis: Analysis) -> Section:
    problems: list[str] = []
    drawing = attempt(f"{analysis.title}: the model could not be drawn", lambda: draw(analysis), None, problems)
    text = "The module tree was not kept with this study, so the model cannot be drawn."
    if drawing:
        text = "From the tokens above to the prediction below. A layer's parts are drawn once where layers are alike."
    return Section("model", "The model: what trains where", tuple(problems) or (text,), drawing=drawing)


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
