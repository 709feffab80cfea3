"""Parameter counts of a model, or of a study's methods, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from manytune.config import Method, Study
from manytune.config.plan import plan_runs
from manytune.data.splits import load_task
from manytune.data.tasks import Task
from manytune.methods import ParameterCount, adapt, count_parameters
from manytune.models.loading import model_spec
from manytune.report.views import percent, plain_table

__all__ = ["ParameterRow", "count_for_model", "count_for_study", "parameter_table"]


@dataclass(frozen=True)
class ParameterRow:
    """One method's counts.

    Attributes:
        task: Name of the task; None where only the number of labels was given.
        method: Name of the method.
        rank: LoRA's rank; None for the other methods.
        head: Which part of the head trains: full, bias or frozen.
        parameters: The counts.
    """

    task: str | None
    method: str
    rank: int | None
    head: str
    parameters: ParameterCount


def count_for_model(
    model: str,
    labels: int,
    methods: Sequence[Method],
    *,
    leave_out_too_wide: bool = False,
    leave_out_without_biases: bool = False,
) -> list[ParameterRow]:
    """Count for every method.

    Args:
        model: As in a study.
        labels: Number of outputs; 1 for regression.
        methods: What to count for.
        leave_out_too_wide: Leave out LoRA ranks above the backbone's width, rather than refuse them.
        leave_out_without_biases: Leave out BitFit where the backbone has no biases, likewise.

    Raises:
        ManytuneError: The model cannot be had, or a rank does not fit.
    """
    parts = model_spec(model, labels)
    width = min(min(widths) for widths in parts.linears.values())
    return [
        _row(None, method, count_parameters(parts, adapt(method, parts)))
        for method in methods
        if not (leave_out_too_wide and method.method == "lora" and method.rank > width)
        and not (leave_out_without_biases and method.method == "bitfit" and not parts.biases)
    ]


def count_for_study(study: Study) -> list[ParameterRow]:
    """Count for every task and method of a study.

    Raises:
        ManytuneError: The study's model cannot be used.
    """
    rows: dict[tuple[Any, ...], ParameterRow] = {}
    outputs = {name: _outputs(study.task(name)) for name in study.task_names}
    for run in plan_runs(study):
        parts = model_spec(study.model, outputs[run.task])
        row = _row(run.task, run.method, count_parameters(parts, adapt(run.method, parts)))
        rows.setdefault((row.task, row.method, row.rank, row.head, row.parameters), row)
    return list(rows.values())


def _outputs(task: Task) -> int:
    """Outputs of the head; the classes of a user's own task are in its data."""
    known = task.kind == "regression" or task.labels
    return task.num_outputs if known else load_task(task)[0].num_outputs


def parameter_table(rows: Sequence[ParameterRow]) -> Table:
    """The rows as a table; without a column for the task where there is none."""
    columns = (
        "method",
        "head",
        "total",
        "trainable",
        "of all",
        "backbone",
        "bias",
        "adapter",
        "head trained",
    )
    with_task = any(row.task for row in rows)
    cells = [[row.task, *_cells(row)] if with_task else _cells(row) for row in rows]
    return plain_table(("task", *columns) if with_task else columns, cells)


def _row(task: str | None, method: Method, count: ParameterCount) -> ParameterRow:
    rank = method.rank if method.method == "lora" else None
    return ParameterRow(task, method.method, rank, method.head, count)


def _cells(row: ParameterRow) -> list[Any]:
    count = row.parameters
    method = row.method if row.rank is None else f"{row.method} r={row.rank}"
    share = percent(count.trainable, count.total)
    parts = (count.backbone, count.bias, count.adapter, count.head)
    return [method, row.head, count.total, count.trainable, share, *parts]
