"""Parameter counts of a model, or of a study's methods, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from manytune.backbones import anatomy
from manytune.config import METHODS, Method, Study, make_method
from manytune.errors import StudyError, choices
from manytune.methods import ParameterCount, adapt, count_parameters
from manytune.plan import plan_runs
from manytune.report.views import percent, plain_table
from manytune.tasks import get_task

__all__ = ["ParameterRow", "count_for_model", "count_for_study", "parameter_table"]

_RANKS = (2, 8, 64, 256)
_HEADS = ("full", "bias", "frozen")


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
    model: str, labels: int, methods: Sequence[str], ranks: Sequence[int], heads: Sequence[str]
) -> list[ParameterRow]:
    """Count for every method, LoRA rank and part of the head; an empty choice stands for all.

    Raises:
        ManytuneError: The model, a method or a part of the head is not known, or a rank does not fit.
    """
    for name in methods:
        if name not in METHODS:
            raise StudyError(f"--method: {choices(name, METHODS)}")
    for name in heads:
        if name not in _HEADS:
            raise StudyError(f"--head: {choices(name, _HEADS)}")
    parts = anatomy(model, labels)
    width = min(min(widths) for widths in parts.linears.values())
    ranks = ranks or [rank for rank in _RANKS if rank <= width]
    rows = []
    for name in methods or METHODS:
        for rank in ranks if name == "lora" else (None,):
            for head in heads or _HEADS:
                method = _method(name, rank, head)
                if method is not None:
                    rows.append(_row(None, method, count_parameters(parts, adapt(method, parts))))
    if not rows:
        raise StudyError(
            f"--head: {', '.join(heads)} does not go with {', '.join(methods)}: full trains the whole head, "
            "and head the whole of it or its biases."
        )
    return rows


def count_for_study(path: Path) -> list[ParameterRow]:
    """Count for every task and method of a study.

    Raises:
        ManytuneError: The study or its model cannot be used.
    """
    study = Study.from_file(path)
    rows: dict[tuple[Any, ...], ParameterRow] = {}
    for run in plan_runs(study):
        parts = anatomy(study.model, get_task(run.task).num_outputs)
        row = _row(run.task, run.method, count_parameters(parts, adapt(run.method, parts)))
        rows.setdefault((row.task, row.method, row.rank, row.head, row.parameters), row)
    return list(rows.values())


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


def _method(name: str, rank: int | None, head: str) -> Method | None:
    """A method with this part of the head, if it can have it; the learning rate does not matter here."""
    allowed = {"full": ("full",), "head": ("full", "bias")}.get(name, _HEADS)
    if head not in allowed:
        return None
    chosen = {"rank": rank} if rank is not None else {}
    return make_method(name, learning_rate=1.0, head=head, **chosen)


def _row(task: str | None, method: Method, count: ParameterCount) -> ParameterRow:
    rank = method.rank if method.method == "lora" else None
    return ParameterRow(task, method.method, rank, method.head, count)


def _cells(row: ParameterRow) -> list[Any]:
    count = row.parameters
    method = row.method if row.rank is None else f"{row.method} r={row.rank}"
    share = percent(count.trainable, count.total)
    parts = (count.backbone, count.bias, count.adapter, count.head)
    return [method, row.head, count.total, count.trainable, share, *parts]
