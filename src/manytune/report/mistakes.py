"""The dev examples that most runs get wrong, and those on which two methods differ most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manytune.report.analysis import Analysis
from manytune.report.answer import method_title
from manytune.report.sheets import Field, Sheet

_SHOWN = 15


def mistake_sheet(analysis: Analysis) -> Sheet | None:
    """The examples that most runs get wrong; None without sentences, or predictions of a run that finished."""
    errors = _errors(analysis)
    if not errors:
        return None
    overall = np.mean(list(errors.values()), axis=0)  # every method counts the same, however many runs it has
    worst = np.argsort(-overall, kind="stable")[:_SHOWN]
    kind, title = _measure(analysis)
    fields: list[Field] = [
        *_example_fields(analysis),
        ("all", title, kind, _at(overall)),
        *_method_fields(errors, kind),
    ]
    caption = f"Of every method's runs that finished; {title} over all methods counts each method the same."
    return analysis.sheet("mistakes", "worst mistakes", caption, fields, worst[overall[worst] > 0])


def disagreement_sheet(analysis: Analysis) -> Sheet | None:
    """The examples on which the two best methods differ most; None where there are not two with predictions."""
    errors = _errors(analysis)
    names = [row.method for row in analysis.best_rows if row.method in errors][:2]
    if len(names) < 2:
        return None
    difference = errors[names[1]] - errors[names[0]]
    order = np.argsort(-np.abs(difference), kind="stable")[:_SHOWN]
    kind, title = _measure(analysis)
    fields: list[Field] = [
        *_example_fields(analysis),
        *_method_fields({name: errors[name] for name in names}, kind),
        ("difference", "difference", "difference", _at(difference)),
    ]
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
    return {name: task.type.errors(np.stack(own), labels).mean(0) for name, own in predicted.items()}


def _measure(analysis: Analysis) -> tuple[str, str]:
    """The kind of a column of errors, and what they are called."""
    assert analysis.task is not None
    return "percent" if analysis.task.type.right_or_wrong else "score", analysis.task.type.error_title


def _example_fields(analysis: Analysis) -> list[Field]:
    """Row number, text and label of a dev example, from its index."""
    examples, task = analysis.examples, analysis.task
    assert examples is not None
    assert task is not None
    return [
        ("row", "dev row", "count", int),
        ("text", "text", "text", lambda at: " ⁄ ".join(examples.texts[at])),
        (
            "label",
            "label",
            "text" if task.type.value_type is str else "effect",
            lambda at: task.type.value(task, examples.labels[at]),
        ),
    ]


def _method_fields(errors: dict[str, NDArray[Any]], kind: str) -> list[Field]:
    return [(name, method_title(name), kind, _at(own)) for name, own in errors.items()]


def _at(values: NDArray[Any]) -> Callable[[int], float]:
    return lambda index: float(values[index])
