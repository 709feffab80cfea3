"""Write a report: the page, Markdown, tables, figures and a summary for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from manytune.errors import StoreError
from manytune.files import write_file
from manytune.record import plain
from manytune.report.content import Content, TaskContent, compose
from manytune.report.figures import draw_figures
from manytune.report.guard import attempt
from manytune.report.page import render_page
from manytune.report.sheets import to_csv, to_markdown, to_tex
from manytune.report.source import read, without_examples
from manytune.report.table import MethodRow
from manytune.store import Store

__all__ = ["files_of", "write_report"]

SUMMARY_VERSION = 1


def write_report(
    directories: Sequence[Path | str], out: Path | str | None = None, *, examples: bool = True
) -> tuple[Path, bool]:
    """Write the report of one study, or of several together.

    What it says is a pure function of what the directories hold: the same input gives the same bytes. A file of
    an earlier report that this one has no more is removed.

    Args:
        directories: Study directories.
        out: Where to; `report` in the study directory by default.
        examples: Whether dev sentences are shown; without them a report can be handed on where the data may not.

    Returns:
        The page's path, and whether every planned run has ended.

    Raises:
        ManytuneError: A directory holds no study, something in it is damaged, or the report cannot be written.
    """
    if out is None and len(directories) != 1:
        raise StoreError("--out is missing: several studies make one report together; give the directory for it.")
    material = read(directories)
    target = Path(out) if out is not None else Store.open(directories[0]).report_dir
    content = compose(material if examples else without_examples(material))
    files = files_of(content)
    for name, data in files.items():
        write_file(target / name, data)
    for folder in ("tables", "figures"):
        for path in sorted((target / folder).glob("*")):
            if f"{folder}/{path.name}" not in files and path.suffix in {".csv", ".tex", ".png", ".svg"}:
                path.unlink()
    return target / "index.html", content.complete


def files_of(content: Content) -> dict[str, str | bytes]:
    """Every file of the report: path inside its directory → content; the page comes last."""
    files: dict[str, str | bytes] = {}
    for sheet in content.sheets:
        files[f"tables/{sheet.name}.csv"] = to_csv(sheet)
        files[f"tables/{sheet.name}.tex"] = to_tex(sheet)
    problems = list(content.problems)
    for task in content.tasks:
        files |= {f"figures/{name}": data for name, data in draw_figures(task.analysis, problems).items()}
    tasks = [
        attempt(f"{task.analysis.title}: no summary", partial(_plain_summary, task), None, problems)
        for task in content.tasks
    ]
    content = replace(content, problems=tuple(problems))
    files["report.md"] = _markdown(content, files)
    files["summary.json"] = json.dumps(_summary(content, tasks), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files["index.html"] = render_page(content)
    return files


def _markdown(content: Content, files: dict[str, str | bytes]) -> str:
    lines = [f"# {content.title}", *content.state, *(_plain(text) for text in content.problems)]
    if not content.complete:
        lines.append("This study is not complete: what follows is a report so far.")
    for sheet in content.overall:
        lines += [f"## {sheet.title}", _plain(sheet.caption), to_markdown(sheet).rstrip()]
    for task in content.tasks:
        analysis = task.analysis
        lines.append(f"## {analysis.title} on {_plain(analysis.table.model)}")
        lines.append(f"**{_plain(task.answer.headline)}**")
        lines.append("\n".join(f"- {_plain(point.text)}" for point in task.answer.points))
        for part in task.parts:
            lines.append(f"### {part.title}")
            lines += [_plain(text) for text in part.text]
            for stem in part.figures:
                name = f"figures/{analysis.key}-{stem}.png"
                if name in files:
                    alt = next((chart.alt for chart in part.charts), part.title)
                    lines.append(f"![{_plain(alt)}]({name})")
            for sheet in (*part.sheets, *part.folded):
                lines += [f"**{_plain(sheet.title)}** {_plain(sheet.caption)}", to_markdown(sheet).rstrip()]
    for sheet in content.provenance:
        lines += [f"## {sheet.title}", to_markdown(sheet).rstrip()]
    return "\n\n".join(line for line in lines if line) + "\n"


def _plain(text: str) -> str:
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _summary(content: Content, tasks: Sequence[Any]) -> dict[str, Any]:
    """The report for programs."""
    return {
        "schema_version": SUMMARY_VERSION,
        "studies": [name for name, _ in content.studies],
        "complete": content.complete,
        "tasks": [task for task in tasks if task is not None],
        "waiting": list(content.waiting),
        "problems": list(content.problems),
    }


def _plain_summary(task: TaskContent) -> Any:
    """A task's summary, without what JSON has no word for."""
    return plain(_task_summary(task))


def _task_summary(task: TaskContent) -> dict[str, Any]:
    analysis = task.analysis
    comparisons = [asdict(each) for each in analysis.comparisons]
    return {
        "key": analysis.key,
        "task": analysis.table.task,
        "model": analysis.table.model,
        "metric": analysis.metric.name,
        "higher_is_better": analysis.metric.higher_is_better,
        "selection": list(analysis.selections),
        "answer": {
            "headline": task.answer.headline,
            "decided": task.answer.decided,
            "points": [asdict(point) for point in task.answer.points],
        },
        "configurations": [_configuration(task, row) for row in analysis.rows],
        "comparisons": comparisons,
        "pending": [run.run_id for run in analysis.pending],
    }


def _configuration(task: TaskContent, row: MethodRow) -> dict[str, Any]:
    standing = task.analysis.standings.get(row.label)
    low, high = task.analysis.intervals.get(row.label, (None, None))
    return {
        "label": row.label,
        "method": row.runs[0].method,
        "metrics": {each.metric.name: {"best": asdict(each.best), "last": asdict(each.last)} for each in row.metrics},
        "scores": {str(run.seed): run.best_score for run in row.finished},
        "examples_interval": None if low is None else [low, high],
        "may_be_best": standing.in_reach if standing else None,
        "trainable": row.trainable,
        "trainable_share": row.trainable_share,
        "runs": {run.run_id: str(run.state) for run in row.runs},
    }
