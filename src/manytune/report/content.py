"""Analyses → the sections of a report in their order, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import Answer, about_axis, answer
from manytune.report.breakdown import best_predictions, breakdown_sheets
from manytune.report.charts import (
    answer_chart,
    axis_chart,
    cost_chart,
    curve_chart,
    every_score_chart,
    scatter_chart,
)
from manytune.report.drawing import draw
from manytune.report.guard import attempt
from manytune.report.mistakes import disagreement_sheet, mistake_sheet
from manytune.report.published import published_sheet
from manytune.report.report_data import ReportData, SearchStudy, provenance_facts
from manytune.report.score_sheets import (
    axis_sheet,
    baseline_sheet,
    comparison_sheet,
    cost_sheet,
    glue_sheet,
    left_out_sheet,
    parts_sheet,
    run_sheet,
    score_sheets,
    standing_sheet,
)
from manytune.report.search_part.search_facts import SearchFacts, searches_in
from manytune.report.search_part.search_section import SearchContent, search_content
from manytune.report.search_part.search_words import judged_on, more_to_say, state_line, still_to_confirm
from manytune.report.sections import Section, make_section, writable
from manytune.report.series import looks, loss_rises, swept_axes
from manytune.report.sheets import Column, Sheet, show
from manytune.report.traces import Chart
from manytune.report.views import status_line
from manytune.stats.claims import LEVEL, Verdict
from manytune.storage.record import RunRecord
from manytune.utils.text import counted


@dataclass(frozen=True, eq=False)
class TaskContent:
    """The report of one task on one backbone."""

    analysis: Analysis
    answer: Answer
    picture: Chart | None
    """The answer, drawn."""
    judged: str
    """Which rows chose what is compared and which judge it, where a search chose it; else empty."""
    parts: tuple[Section, ...]

    @property
    def charts(self) -> tuple[Chart, ...]:
        """All charts."""
        return (*([self.picture] if self.picture else []), *(chart for part in self.parts for chart in part.charts))


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
    problems: tuple[str, ...]
    """What is missing in the whole report, and why; a section's text says what is missing in it."""
    overall: tuple[Sheet, ...]
    """Tables over all tasks."""
    studies: tuple[tuple[str, str], ...]
    """Name and effective YAML of each study."""
    searches: tuple[SearchContent, ...] = ()
    """What searched, by study and task."""
    unconfirmed: tuple[str, ...] = ()
    """What is still to be judged of searches, in sentences."""

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """All tables."""
        parts = [part for task in self.tasks for part in task.parts]
        parts += [part for search in self.searches for part in search.parts]
        return (*self.overall, *(sheet for part in parts for sheet in (*part.sheets, *part.folded)), *self.provenance)

    @property
    def charts(self) -> tuple[Chart, ...]:
        """All charts."""
        found = [chart for task in self.tasks for chart in task.charts]
        return (*found, *(chart for search in self.searches for chart in search.charts))


def compose(data: ReportData) -> Content:
    """A pure function of the data; for a part that cannot be made, the report says why, and a ReportWarning does."""
    problems = list(data.problems)
    analyses = analyse(data, problems)
    planned = {(run.task, run.model): None for study in data.studies for run in study.status.runs}
    ended = {(run.task, run.model) for run in data.records}
    overall = attempt("GLUE's average could not be made", partial(writable, glue_sheet, analyses), (), problems)
    records = (*data.records, *(run for search in data.searches for run in search.trials))
    provenance = attempt("Provenance could not be listed", partial(writable, _provenance, records), (), problems)
    searched = [
        (each, attempt("The search could not be read", partial(_facts, each, analyses), (), problems))
        for each in data.searches
    ]
    alone = [study.study for study in data.studies if study.chosen_by is None]
    named = (*(each.study for each in data.searches), *alone)
    unconfirmed = tuple(
        sentence for each in data.searches for sentence in (*still_to_confirm(each), *more_to_say(each))
    )
    pending = any(study.status.counts["pending"] for study in data.studies)
    return Content(
        title=", ".join(dict.fromkeys(study.name for study in named)),
        state=(
            *(state_line(each.study.name, facts) for each, facts in searched),
            *(status_line(study.status) for study in data.studies),
        ),
        complete=not pending and not any(each.unconfirmed for each in data.searches),
        tasks=tuple(map(_task, analyses)),
        waiting=tuple(f"{task} on {model}" for task, model in planned if (task, model) not in ended),
        provenance=provenance,
        problems=tuple(problems),
        overall=overall,
        studies=tuple((study.name, study.to_yaml()) for study in named),
        searches=tuple(search_content(facts) for _, each in searched for facts in each),
        unconfirmed=unconfirmed,
    )


def _facts(given: SearchStudy, analyses: Sequence[Analysis]) -> tuple[SearchFacts, ...]:
    """A study's searches, with what the study says of them, and what their winners score."""
    study = given.study
    found = searches_in(study, given.trials)
    rows = [
        (each.table.task, row)
        for each in analyses
        for row in each.rows
        if any(one.chosen_by is study for one in each.studies)
    ]
    scores = [{row.label: row.primary.best for task, row in rows if task == facts.task} for facts in found]
    return tuple(replace(facts, confirmed=each) for facts, each in zip(found, scores, strict=True))


def _task(analysis: Analysis) -> TaskContent:
    problems: list[str] = []
    found = attempt(f"{analysis.title}: the answer could not be made", lambda: answer(analysis), None, problems)
    failure = f"{analysis.title}: the answer could not be drawn"
    (picture,) = attempt(failure, lambda: writable(answer_chart, analysis), (), problems) or (None,)
    found = found or Answer(problems[0], (), (), False)
    found = replace(found, notes=(*found.notes, *problems))
    return TaskContent(analysis, found, picture, judged_on(analysis), tuple(_sections(analysis)))


def _sections(analysis: Analysis) -> Iterable[Section]:
    section = partial(make_section, analysis, analysis.title)
    scores = (score_sheets, baseline_sheet, parts_sheet, left_out_sheet)
    yield section("scores", "Scores", charts=(every_score_chart,), sheets=scores, folded=(run_sheet,))
    yield section("statistics", "Statistics", _about_statistics, sheets=(comparison_sheet, standing_sheet))
    yield section("curves", "Curves", _about_curves, charts=(curve_chart,))
    for axis in swept_axes():
        title = axis.title[:1].upper() + axis.title[1:]
        charts, sheets = (partial(axis_chart, axis),), (partial(axis_sheet, axis),)
        swept = section(axis.key, title, partial(about_axis, axis), charts=charts, sheets=sheets)
        if swept.sheets or swept.text:
            yield swept
    yield section("cost", "Cost", charts=(cost_chart,), sheets=(cost_sheet,))
    published = section("published", "Against published figures", sheets=(published_sheet,))
    if published.sheets or published.text:
        yield published
    yield _model(analysis)
    none = "The dev rows, or predictions of the best configuration, were not kept with this study."
    yield section(
        "predictions",
        "Predictions of the best configuration",
        _about_predictions,
        charts=(scatter_chart,),
        sheets=(breakdown_sheets,),
        without=none,
    )
    none = "Mistakes cannot be shown: the dev sentences, or predictions of a run that finished, are not here."
    yield section("mistakes", "Worst mistakes", sheets=(mistake_sheet, disagreement_sheet), without=none)


def _about_statistics(analysis: Analysis) -> Iterable[str]:
    """The paragraphs above the tables of tests."""
    verdict = analysis.verdict
    least = verdict.judging.seeds.least
    few = [min(pair.seeds) for pair in verdict.comparisons if pair.verdict is Verdict.TOO_FEW_SEEDS]
    if few:
        yield (
            f"No test is shown for pairs with fewer than {least} seeds, because a spread seen in so few says little of "
            f"the next one.{analysis.extending(least - min(few))}"
        )
    yield (
        "A method is judged by its best configuration, and pays for the choice: it must beat every configuration of "
        "the other method, and its p is multiplied by how many configurations it had to choose from. All pairs of "
        "methods of the task are then corrected together (Holm). Better means: for new seeds, for new dev examples, "
        "and, where some of its runs did not train, also with these counted."
    )
    if verdict.level < LEVEL:
        level = show(verdict.level, "p")
        yield f"This is one of several planned looks; its level is {level}, so that all keep 5 % together."
    if not analysis.predictions:
        yield "Dev predictions were not kept with this study, so nothing is said of uncertainty over dev examples."


def _about_curves(analysis: Analysis) -> Iterable[str]:
    """The paragraphs above the curves."""
    if not analysis.histories:
        yield "No histories were kept with this study."
        return
    if rising := loss_rises(analysis):
        names = ", ".join(looks(analysis)[label].name for label in rising)
        yield (
            f"Evaluation loss rises while {analysis.metric.title} rises too: {names}. A model can grow surer of what "
            "it gets wrong, and the loss counts that, while the score may not."
        )
    if lacking := len(analysis.records) - len(analysis.histories):
        yield f"{counted(lacking, 'run')} without a history are not drawn."


def _about_predictions(analysis: Analysis) -> Iterable[str]:
    """Whose predictions they are, and their scores in every metric that suits the task."""
    if (best := best_predictions(analysis)) is not None:
        over = f", mean of {counted(len(best.predictions), 'run')}" if len(best.predictions) > 1 else ""
        scores = ", ".join(f"{title} {show(score, 'score')}" for title, score in best.scores().items())
        name = best.row.name.title
        yield f"{name[:1].upper()}{name[1:]} on {counted(len(best.labels), 'dev row')}{over}: {scores}."


def _model(analysis: Analysis) -> Section:
    problems: list[str] = []
    drawing = attempt(f"{analysis.title}: the model could not be drawn", lambda: draw(analysis), None, problems)
    text = "The module tree was not kept with this study, so the model cannot be drawn."
    if drawing:
        text = "From the tokens above to the prediction below. A layer's parts are drawn once where layers are alike."
    return Section("model", "The model: what trains where", tuple(problems) or (text,), drawing=drawing)


def _provenance(records: Sequence[RunRecord]) -> Sheet | None:
    """What the runs ran on: each value with the number of runs that have it; None where nothing is known."""
    rows = [
        (name, value, count)
        for name, counts in provenance_facts(records, data="data fingerprint", commit="commit of manytune").items()
        for value, count in counts.items()
    ]
    starts = [run.provenance.started for run in records if run.provenance.started]
    ends = [run.provenance.finished for run in records if run.provenance.finished]
    for name, time in (("first start", min(starts, default=None)), ("last end", max(ends, default=None))):
        if time is not None:
            rows.append((name, f"{time:%Y-%m-%d %H:%M:%S %Z}", len(records)))
    columns = (Column("what", "what"), Column("value", "value"), Column("runs", "runs", "count"))
    caption = "Values that differ between runs have a line each."
    return Sheet("provenance", "Provenance", caption, columns, tuple(rows)) if rows else None
