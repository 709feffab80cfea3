"""The dev examples that most runs get wrong, and those on which two methods differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.report.analysis import Analysis
from manytune.report.names import method_title, short_title
from manytune.report.sheets import Field, Sheet

_SHOWN = 15


def mistake_sheet(analysis: Analysis) -> Sheet | None:
    """The examples that most runs get wrong; None without sentences, or predictions of a run that finished."""
    errors = _errors(analysis)
    if not errors or analysis.task is None:
        return None
    overall = np.mean(list(errors.values()), axis=0)  # every method counts the same, however many runs it has
    worst = np.argsort(-overall, kind="stable")[:_SHOWN]
    title = analysis.task.type.error_title
    fields = _fields(analysis, [("all", title, overall), *_by_method(errors)])
    caption = f"Of every method's runs that finished; {title} over all methods counts each method the same."
    return analysis.sheet("mistakes", "worst mistakes", caption, fields, worst[overall[worst] > 0])


def disagreement_sheet(analysis: Analysis) -> Sheet | None:
    """The examples on which the two best methods differ most; None where there are not two with predictions."""
    errors = _errors(analysis)
    names = [row.method for row in analysis.best_rows if row.method in errors][:2]
    if len(names) < 2 or analysis.task is None:
        return None
    difference = errors[names[1]] - errors[names[0]]
    order = np.argsort(-np.abs(difference), kind="stable")[:_SHOWN]
    title = analysis.task.type.error_title
    fields = _fields(analysis, _by_method({name: errors[name] for name in names}))
    fields.append(("difference", "difference", "difference", difference.item))
    caption = f"{title[:1].upper()}{title[1:]}, over each method's runs that finished; positive: the second errs more."
    heading = f"where {method_title(names[0])} and {method_title(names[1])} differ"
    return analysis.sheet("disagreements", heading, caption, fields, order[difference[order] != 0])


def _errors(analysis: Analysis) -> dict[str, NDArray[Any]]:
    """Method → [N] mean error of its runs that finished; empty without sentences or predictions."""
    examples, task = analysis.examples, analysis.task
    if examples is None or task is None or not any(examples.texts[:1]):
        return {}
    predicted: dict[str, list[NDArray[Any]]] = {}
    for row in analysis.rows:
        for _, prediction in analysis.predicted(row):
            predicted.setdefault(row.method, []).append(prediction)
    labels = np.array(examples.labels)
    return {name: task.type.errors(np.stack(runs), labels).mean(0) for name, runs in predicted.items()}


def _by_method(errors: Mapping[str, NDArray[Any]]) -> list[tuple[str, str, NDArray[Any]]]:
    return [(name, short_title(name), values) for name, values in errors.items()]


def _fields(analysis: Analysis, errors: Iterable[tuple[str, str, NDArray[Any]]]) -> list[Field]:
    """Number, text and label of a dev row, and its errors, from its index; `errors` is name, title, [N] values."""
    examples, task = analysis.examples, analysis.task
    assert examples is not None
    assert task is not None
    label_kind = "text" if task.type.value_type is str else "effect"
    error_kind = "percent" if task.type.right_or_wrong else "score"
    return [
        ("row", "dev row", "count", int),
        ("text", "text", "text", lambda at: " ⁄ ".join(examples.texts[at])),
        ("label", "label", label_kind, lambda at: task.type.value(task, examples.labels[at])),
        *((name, title, error_kind, values.item) for name, title, values in errors),
    ]
