"""What the commands print besides the comparison: plan, parameters, status, one run, tasks and methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.filesize import decimal
from rich.table import Table

from manytune.record import HistoryRow, RunRecord
from manytune.store import StudyStatus

__all__ = ["duration", "facts_table", "history_table", "plain_table", "record_facts", "status_table"]


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table whose numbers stand to the right; a column is numeric if all its filled cells are."""
    cells = [["–" if cell is None else cell for cell in row] for row in rows]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        filled = [row[index] for row in cells if row[index] != "–"]
        numeric = bool(filled) and all(_is_numeric(cell) for cell in filled)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(_text(cell) for cell in row))
    return table


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Names and values, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, _text("–" if value is None else value))
    return table


def status_table(status: StudyStatus) -> Table:
    """Every planned run and where it stands."""
    rows = [
        (run.task, run.label, run.seed, run.state, run.best_score, run.best_step, run.run_id)
        for run in status.runs
    ]
    return plain_table(("task", "method", "seed", "state", "best score", "step", "run"), rows)


def record_facts(record: RunRecord) -> dict[str, Any]:
    """The facts of a run that a reader asks for first."""
    return {
        "run": record.run_id,
        "state": record.state,
        "why": record.failure,
        "task": record.task,
        "model": record.model,
        "method": record.label,
        "seed": record.seed,
        "best": _scores(record.scores, record.best_step),
        "last": _scores(record.last_scores, record.steps),
        "parameters": _parameters(record),
        "training": None
        if record.cost.train_seconds is None
        else f"{duration(record.cost.train_seconds)}, {record.cost.samples_per_second or 0:.0f} samples/s, "
        f"in a pack of {record.cost.pack_size}",
        "peak memory": None
        if record.cost.peak_memory_bytes is None
        else f"{decimal(record.cost.peak_memory_bytes)} (whole pack)",
        "notes": "; ".join(record.notes) or None,
    }


def history_table(rows: Sequence[HistoryRow]) -> Table:
    """One line an evaluation."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = ("step", "epoch", "train loss", "learning rate", "eval loss", *metrics)
    return plain_table(
        columns,
        [
            (
                row.step,
                row.epoch,
                row.train_loss,
                None if row.learning_rate is None else f"{row.learning_rate:.2e}",
                row.eval_loss,
                *(row.metrics.get(name) for name in metrics),
            )
            for row in rows
        ],
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3:20 min, 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _scores(scores: Mapping[str, float | None], step: int | None) -> str | None:
    known = [f"{name} {value:.4f}" for name, value in scores.items() if value is not None]
    return f"{', '.join(known)} (step {step})" if known else None


def _parameters(record: RunRecord) -> str | None:
    count = record.parameters
    if count.total is None or count.trainable is None:
        return None
    parts = [(name, getattr(count, name)) for name in ("backbone", "bias", "adapter", "head")]
    split = ", ".join(f"{name} {value:,}" for name, value in parts if value)
    return f"{count.trainable:,} of {count.total:,} train ({count.trainable / count.total:.2%}): {split}"


def _is_numeric(cell: Any) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and cell[:1].isdigit())


def _text(cell: Any) -> str:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}"
