"""Parameter counts of a model, or of a study's methods, as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from manytune.config import Study
from manytune.config.plan import plan_runs
from manytune.config.spaces import search_spaces
from manytune.data.splits import load_task
from manytune.data.tasks import Task
from manytune.methods import METHODS, Method, ParameterCount, count_parameters
from manytune.models.loading import model_spec
from manytune.report.views import percent, plain_table


@dataclass(frozen=True)
class ParameterRow:
    """One method's counts."""

    task: str | None  # name of the task; None where only the number of labels was given
    method: Method
    parameters: ParameterCount

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with each field of the methods' `grid`: None where the method has no such field."""
        method = self.method
        fields = dict.fromkeys(field for kind in METHODS.values() for field in kind.grid)
        sizes = {field: getattr(method, field) if field in method.grid else None for field in fields}
        return {
            "task": self.task,
            "method": method.method,
            **sizes,
            "head": method.head,
            "parameters": asdict(self.parameters),
        }


def count_for_model(model: str, labels: int, methods: Mapping[Method, bool]) -> list[ParameterRow]:
    """Count for every method, with `labels` outputs (1 for regression).

    `methods` maps method → whether it is refused, rather than left out, where it does not suit the model. Raises
    ManytuneError where the model cannot be had, or a method does not fit.
    """
    spec = model_spec(model, labels)
    return [
        ParameterRow(None, method, count_parameters(spec, method.adapt(spec)))
        for method, asked in methods.items()
        if asked or method.suits(spec)
    ]


def count_for_study(study: Study) -> list[ParameterRow]:
    """Count for every task and method of a study; what differs in no size and no part of the head is one row.

    Of a search these are the ends of ranges and the values of choices.

    Raises ManytuneError where the study's model cannot be used.
    """
    rows: dict[str, ParameterRow] = {}
    specs = {name: model_spec(study.model, _outputs(study.task(name))) for name in study.task_names}
    methods = [(run.task, run.method) for run in plan_runs(study)]
    for space in (each for name in study.task_names if study.search for each in search_spaces(study, name)):
        methods += [(space.task, space.at(values)[0]) for values in space.edges]
    for task, method in methods:
        row = ParameterRow(task, method, count_parameters(specs[task], method.adapt(specs[task])))
        rows.setdefault(repr(row.to_dict()), row)
    return list(rows.values())


def _outputs(task: Task) -> int:
    try:
        return task.num_outputs
    except ValueError:  # the classes of a user's own task are in its data
        return load_task(task)[0].num_outputs


def parameter_table(rows: Sequence[ParameterRow]) -> Table:
    """The rows as a table; without a column for the task where there is none."""
    columns = ("task", "method", "head", "total", "trainable", "of all", "backbone", "bias", "adapter", "head trained")
    cells = []
    for row in rows:
        method, count = row.method, row.parameters
        name = f"{method.method} {method.adapter_label}" if method.grid else method.method
        share = percent(count.trainable, count.total)
        parts = (count.backbone, count.bias, count.adapter, count.head)
        cells.append([row.task, name, method.head, count.total, count.trainable, share, *parts])
    first = 0 if any(row.task for row in rows) else 1
    return plain_table(columns[first:], [row[first:] for row in cells])
