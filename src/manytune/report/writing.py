"""Write a report: the page, Markdown, tables, figures and a summary for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import answer
from manytune.report.content import Content, TaskContent, compose
from manytune.report.figures import draw_figures
from manytune.report.folder import write_folder
from manytune.report.guard import attempt
from manytune.report.page import render_page
from manytune.report.report_data import read, without_examples
from manytune.report.search_part.search_summary import search_summary
from manytune.report.sections import Section
from manytune.report.sheets import to_csv, to_markdown, to_tex
from manytune.report.task_table import MethodRow
from manytune.storage.directory import Store
from manytune.storage.lookup import refuse_own_folders
from manytune.storage.record import plain
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text
from manytune.utils.text import markdown, parse_json

SUMMARY_VERSION = 3
_MOST_SUMMARY = 2**30  # bytes


def write_report(
    directories: Sequence[Path | str], out: Path | str | None = None, *, examples: bool = True
) -> tuple[Path, bool]:
    """Write the report of one study, or of several together, to `out`, by default `report` in the study directory.

    The same directories give the same bytes. Files of an earlier report are replaced, or removed where this one does
    not have them; other files in the folder stay. Without `examples` it holds no dev sentences, so that it can be
    shared where the data may not be. Returned are the page's path, and whether every planned run has ended.

    Raises ManytuneError where a directory holds no study, something in it is damaged, or the report cannot be written,
    for example because a file that no report wrote is in its way.
    """
    if out is None and len(directories) != 1:
        raise StoreError("--out is missing: several studies make one report together; give the directory for it.")
    opened = [Store.open(directory) for directory in directories]
    stores = [each for store in opened for each in (store, *store.confirm_stores())]
    target = Path(out) if out is not None else stores[0].report_dir
    if out is None and target.is_symlink():
        raise StoreError(f"{target} is a link, which a report does not follow by itself. Name the folder with --out.")
    refuse_own_folders(stores, target)
    for store in stores:
        if target.exists() and target.samefile(store.root):
            raise StoreError(f"{target} is the study directory; give a folder of its own, such as {store.report_dir}.")
    data = read(directories)
    content = compose(data if examples else without_examples(data))
    write_folder(target, files_of(content))
    return target / "index.html", content.complete


def headlines(page: Path) -> dict[tuple[str, str], str]:
    """(task, model) → the answer's headline, as the summary beside a report's page has it."""
    summary = parse_json(read_text(page.with_name("summary.json"), _MOST_SUMMARY) or '{"tasks": []}')
    return {(task["task"], task["model"]): task["answer"]["headline"] for task in summary["tasks"]}


def read_headlines(directory: Path | str) -> dict[tuple[str, str], str]:
    """The same of a study directory, without a report."""
    return {(each.table.task, each.table.model): answer(each).headline for each in analyse(read([directory]))}


def files_of(content: Content) -> dict[str, str | bytes]:
    """Every file of the report but the manifest: path inside its folder → content; the page comes last."""
    files: dict[str, str | bytes] = {}
    for sheet in content.sheets:
        files[f"tables/{sheet.name}.csv"] = to_csv(sheet)
        files[f"tables/{sheet.name}.tex"] = to_tex(sheet)
    problems = list(content.problems)
    for task in content.tasks:
        files |= {f"figures/{name}": data for name, data in draw_figures(task.analysis, problems).items()}
    summaries = [
        attempt(f"{task.analysis.title}: no summary", partial(_summary, task), None, problems) for task in content.tasks
    ]
    named = [
        (f"{each.facts.title}, the search: no summary", partial(search_summary, each)) for each in content.searches
    ]
    searches = [found for failure, make in named if (found := attempt(failure, make, None, problems)) is not None]
    content = replace(content, problems=tuple(problems))
    files["report.md"] = _markdown(content, files)
    summary = {
        "schema_version": SUMMARY_VERSION,
        "studies": [name for name, _ in content.studies],
        "complete": content.complete,
        "tasks": [each for each in summaries if each is not None],
        "search": searches,
        "waiting": list(content.waiting),
        "problems": list(content.problems),
    }
    files["summary.json"] = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return files | {"index.html": render_page(content)}


def _markdown(content: Content, files: Mapping[str, str | bytes]) -> str:
    lines = [f"# {markdown(content.title)}", *map(markdown, content.state), *map(markdown, content.problems)]
    if not content.complete:
        lines.append("This study is not complete: what follows is a report so far.")
    lines += [markdown(line) for line in content.unconfirmed]
    for sheet in content.overall:
        lines += [f"## {markdown(sheet.title)}", markdown(sheet.caption), to_markdown(sheet).rstrip()]
    for task in content.tasks:
        analysis = task.analysis
        lines.append(f"## {markdown(analysis.title)} on {markdown(analysis.table.model)}")
        if analysis.table.constants:
            lines.append(f"Settings not in the names: {markdown(analysis.table.constants)}.")
        lines.append(f"**{markdown(task.answer.headline)}**")
        lines.append(markdown(task.judged))
        if task.picture is not None and (figure := f"figures/{analysis.key}-scores.png") in files:
            lines.append(f"![{markdown(task.picture.alt)}]({figure})")
        lines.append("\n".join(f"- {markdown(point.text)}" for point in task.answer.points))
        lines.append("\n".join(f"- *{markdown(note)}*" for note in task.answer.notes))
        for part in task.parts:
            lines.append(f"### {part.title}")
            lines += [markdown(text) for text in part.text]
            if part.charts and (figure := f"figures/{analysis.key}-{part.key}.png") in files:
                alt = next((chart.alt for chart in part.charts), part.title)
                lines.append(f"![{markdown(alt)}]({figure})")
            lines += _tables(part)
    for search in content.searches:
        lines.append(f"## The search on {markdown(search.facts.title)}")
        for part in search.parts:
            lines += [f"### {part.title}", *map(markdown, part.text), *_tables(part)]
    for sheet in content.provenance:
        lines += [f"## {markdown(sheet.title)}", to_markdown(sheet).rstrip()]
    return "\n\n".join(line for line in lines if line) + "\n"


def _tables(part: Section) -> Iterable[str]:
    for sheet in (*part.sheets, *part.folded):
        yield from (f"**{markdown(sheet.title)}** {markdown(sheet.caption)}", to_markdown(sheet).rstrip())


def _summary(task: TaskContent) -> Any:
    """A task's part of summary.json; what is not finite is null."""
    analysis = task.analysis
    return plain(
        {
            "key": analysis.key,
            "task": analysis.table.task,
            "model": analysis.table.model,
            "metric": analysis.metric.name,
            "higher_is_better": analysis.metric.higher_is_better,
            "selection": list(analysis.selections),
            "judged": task.judged or None,
            "answer": {
                "headline": task.answer.headline,
                "decided": task.answer.decided,
                "points": [asdict(point) for point in task.answer.points],
                "notes": list(task.answer.notes),
            },
            "configurations": [_configuration(analysis, row) for row in analysis.rows],
            "baselines": [asdict(each) for each in analysis.table.baselines],
            "margin": analysis.verdict.judging.margin,
            "level": analysis.verdict.level,
            "leader": analysis.verdict.leader,
            "recommended": analysis.verdict.recommended,
            "comparisons": [asdict(each) for each in analysis.verdict.comparisons],
            "pending": [run.run_id for run in analysis.pending],
        }
    )


def _configuration(analysis: Analysis, row: MethodRow) -> dict[str, Any]:
    verdict = analysis.verdict
    standing, as_good, rate = (
        verdict.standings.get(row.label),
        verdict.as_good.get(row.label),
        verdict.rates.get(row.label),
    )
    return {
        "label": row.label,
        "method": row.method,
        "metrics": {each.metric.name: {"best": asdict(each.best), "last": asdict(each.last)} for each in row.metrics},
        "scores": {str(run.seed): run.best_score for run in row.trained},
        "seeds_interval": analysis.seed_interval(row.label),
        "examples_interval": analysis.examples_intervals.get(row.label),
        "may_be_best": standing.may_be_best if standing else None,
        "as_good": asdict(as_good) if as_good else None,
        "training_rate": asdict(rate) if rate else None,
        "trainable": row.trainable,
        "trainable_share": row.trainable_share,
        "runs": {run.run_id: str(run.state) for run in row.runs},
    }
