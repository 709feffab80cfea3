"""The dev examples that most runs get wrong, and those on which two methods differ most."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.report.analysis import Analysis
from manytune.report.answer import method_title
from manytune.report.sheets import Cell, Column, Sheet

__all__ = ["disagreement_sheet", "mistake_sheet"]

Array = NDArray[Any]

_SHOWN = 15


def mistake_sheet(analysis: Analysis) -> Sheet | None:
    """The examples that most runs get wrong; None without sentences, or predictions of a run that finished."""
    if not _can_be_shown(analysis):
        return None
    assert analysis.examples is not None
    errors = _errors(analysis)
    overall = np.mean(list(errors.values()), axis=0)  # every method counts the same, however many runs it has
    worst = np.argsort(-overall, kind="stable")[:_SHOWN]
    worst = worst[overall[worst] > 0]
    kind, title = _kind(analysis)
    rows = tuple(
        (int(at), *_example(analysis, int(at)), float(overall[at]), *(float(own[at]) for own in errors.values()))
        for at in worst
    )
    columns = (
        Column("row", "dev row", "count"),
        *_example_columns(analysis),
        Column("all", title, kind),
        *(Column(method, method_title(method), kind) for method in errors),
    )
    caption = f"Of every method's runs that finished; {title} over all methods counts each method the same."
    return Sheet(f"{analysis.key}-mistakes", f"{analysis.title}: worst mistakes", caption, columns, rows)


def disagreement_sheet(analysis: Analysis) -> Sheet | None:
    """The examples on which the two best methods differ most; None where there are not two with predictions."""
    if not _can_be_shown(analysis):
        return None
    errors = _errors(analysis)
    names = [row.runs[0].method for row in analysis.best_rows if row.runs[0].method in errors][:2]
    if len(names) < 2:
        return None
    first, second = (errors[name] for name in names)
    order = np.argsort(-np.abs(first - second), kind="stable")[:_SHOWN]
    order = order[np.abs(first - second)[order] > 0]
    kind, title = _kind(analysis)
    rows = tuple(
        (int(at), *_example(analysis, int(at)), float(first[at]), float(second[at]), float(second[at] - first[at]))
        for at in order
    )
    columns = (
        Column("row", "dev row", "count"),
        *_example_columns(analysis),
        *(Column(name, method_title(name), kind) for name in names),
        Column("difference", "difference", "difference"),
    )
    caption = f"{title[:1].upper()}{title[1:]}, over each method's runs that finished; positive: the second errs more."
    heading = f"{analysis.title}: where {method_title(names[0])} and {method_title(names[1])} differ"
    return Sheet(f"{analysis.key}-disagreements", heading, caption, columns, rows)


def _can_be_shown(analysis: Analysis) -> bool:
    texts = analysis.examples.texts if analysis.examples else ()
    finished = any(run.run_id in analysis.predictions for row in analysis.rows for run in row.finished)
    return finished and bool(texts) and bool(texts[0])


def _errors(analysis: Analysis) -> dict[str, Array]:
    """Method → [N] share of its runs that are wrong, or mean absolute error of a regression."""
    assert analysis.examples is not None
    labels = np.array(analysis.examples.labels)
    by_method: dict[str, list[Array]] = {}
    for row in analysis.rows:
        for run in row.finished:
            if run.run_id in analysis.predictions:
                by_method.setdefault(run.method, []).append(analysis.predictions[run.run_id])
    if _is_classification(analysis):
        return {name: (np.stack(said) != labels).mean(0) for name, said in by_method.items()}
    return {name: np.abs(np.stack(said) - labels).mean(0) for name, said in by_method.items()}


def _is_classification(analysis: Analysis) -> bool:
    return analysis.task is not None and analysis.task.kind == "classification"


def _kind(analysis: Analysis) -> tuple[str, str]:
    return ("percent", "share of runs wrong") if _is_classification(analysis) else ("score", "mean absolute error")


def _example(analysis: Analysis, at: int) -> tuple[Cell, ...]:
    assert analysis.examples is not None
    label = analysis.examples.labels[at]
    names = analysis.task.labels if analysis.task else ()
    return (" ⁄ ".join(analysis.examples.texts[at]), names[int(label)] if names else label)


def _example_columns(analysis: Analysis) -> tuple[Column, ...]:
    return (Column("text", "text"), Column("label", "label", "text" if _is_classification(analysis) else "effect"))
