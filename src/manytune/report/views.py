"""What the commands print besides the comparison: plan, parameters, status, one run, tasks and methods."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from manytune.storage.directory import RunStatus, StudyStatus
from manytune.storage.record import Cost, HistoryRow, RunRecord
from manytune.utils.text import cut, printable, shortened

__all__ = [
    "MANY",
    "closing_lines",
    "counted",
    "duration",
    "facts_table",
    "history_table",
    "percent",
    "plain_table",
    "record_facts",
    "status_line",
    "status_summary",
    "status_table",
    "watched",
]

MANY = 100
"""Runs, or packs, that are listed one by one; more are put together."""

_FAILED_SHOWN = 20
_LONGEST_CELL = 4000  # characters


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table whose numbers stand to the right; a column is numeric if all its filled cells are."""
    cells = [["–" if cell is None else cell for cell in row] for row in rows]
    table = Table(title=None if title is None else Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        filled = [row[index] for row in cells if row[index] != "–"]
        numeric = bool(filled) and all(_is_numeric(cell) for cell in filled)
        table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(_written(cell)) for cell in row))
    return table


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Names and values, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(_written("–" if value is None else value)))
    return table


def status_line(status: StudyStatus) -> str:
    """How many runs stand where: "glue: 3 runs: 2 finished, 1 pending"."""
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items() if count)
    return f"{status.study}: {counted(status.planned, 'run')}: {counts}"


def status_table(status: StudyStatus) -> Table:
    """Every planned run and where it stands."""
    rows = [
        (run.task, run.label, run.seed, run.state, run.best_score, run.best_step, run.run_id) for run in status.runs
    ]
    return plain_table(("task", "method", "seed", "state", "best score", "step", "run"), rows)


def status_summary(status: StudyStatus) -> Table:
    """Every task and method, and how many of its runs stand where: for studies of which a line a run is too much."""
    groups: dict[tuple[str, str], list[RunStatus]] = {}
    for run in status.runs:
        groups.setdefault((run.task, run.label), []).append(run)
    states = [state for state, count in status.counts.items() if count]
    rows = []
    for (task, label), runs in groups.items():
        counts = Counter(run.state for run in runs)
        scores = [run.best_score for run in runs if run.best_score is not None and run.state == "finished"]
        mean = sum(scores) / len(scores) if scores else None
        rows.append((task, label, len(runs), *(counts[state] for state in states), mean))
    return plain_table(("task", "method", "runs", *states, "mean best score"), rows)


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
        "training": _training(record.cost),
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


def watched(
    write: Callable[[], tuple[Path, bool]], every: float | None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[tuple[Path, bool]]:
    """Write a report once, or again and again until the study is complete.

    Args:
        write: Writes it; gives the page's path and whether every planned run has ended.
        every: Seconds between two times; None: only once.
        sleep: Waits so many seconds.

    Yields:
        After each time: the page's path, and whether it was the first time.
    """
    page, complete = write()
    yield page, True
    while every is not None and not complete:
        sleep(every)
        page, complete = write()
        yield page, False


def closing_lines(directory: Path, failed: Sequence[RunRecord], page: Path | None = None) -> list[str]:
    """Where the results are, and what to do about runs that failed."""
    lines = [
        f"Results: {directory}",
        *([f"Report: {page}"] if page else []),
        f"Every run: manytune status {directory}; one run: manytune show {directory} RUN",
    ]
    if failed:
        lines += [
            f"{counted(len(failed), 'run')} failed:",
            *(f"  {run.run_id}: {shortened(run.failure, 500)}" for run in failed[:_FAILED_SHOWN]),
        ]
        if len(failed) > _FAILED_SHOWN:
            lines.append(f"  and {len(failed) - _FAILED_SHOWN} more")
        lines.append("To have them trained again, give the same command --retry-failed.")
    return lines


def counted(number: int, noun: str) -> str:
    """A number of things: "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: int, whole: int) -> str:
    """A share, as in the comparison: "0.24 %"."""
    return f"{100 * part / whole:.2f} %"


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
    share = percent(count.trainable, count.total)
    return f"{count.trainable:,} of {count.total:,} train ({share}): {split}"


def _training(cost: Cost) -> str | None:
    known = (
        None if cost.train_seconds is None else duration(cost.train_seconds),
        None if cost.samples_per_second is None else f"{cost.samples_per_second:.0f} samples/s",
        None if cost.pack_size is None else f"in a pack of {cost.pack_size}",
    )
    return ", ".join(fact for fact in known if fact) or None


def _is_numeric(cell: Any) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and cell[:1].isdigit())


def _written(cell: Any) -> str:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return cut(printable(str(cell)), _LONGEST_CELL)  # a line feed or a tab too: a row stays a row
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4f}" if cell == 0 or 1e-4 <= abs(cell) < 1e6 else f"{cell:.3e}"
