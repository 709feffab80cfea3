"""Tables, lines and numbers that the commands print."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from manytune.report.sheets import UNKNOWN
from manytune.stats.looks import MINIMUM_SEEDS
from manytune.storage.directory import RunStatus, StudyStatus
from manytune.storage.record import HistoryRow, RunRecord
from manytune.utils.extras import is_installed
from manytune.utils.text import counted, cut, duration, printable, shortened

MANY = 100
"""Runs, or packs, that are listed one by one; more are summarized."""

_FAILED_SHOWN = 20
_LONGEST_CELL = 4000  # characters


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table whose numbers stand to the right; a column is numeric if all its filled cells are."""
    cells = [[UNKNOWN if cell is None else cell for cell in row] for row in rows]
    table = Table(title=None if title is None else Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        filled = [row[index] for row in cells if row[index] != UNKNOWN]
        # A text such as "0.24 %" counts as a number too.
        numeric = all(isinstance(c, int | float) or (isinstance(c, str) and c[:1].isdigit()) for c in filled)
        table.add_column(Text(printable(name)), justify="right" if filled and numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(_written(cell)) for cell in row))
    return table


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Names and values, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(_written(UNKNOWN if value is None else value)))
    return table


def status_line(status: StudyStatus) -> str:
    """How many runs are in each state: "glue: 3 runs: 2 finished, 1 pending"."""
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items() if count)
    return f"{status.study}: {counted(status.planned, 'run')}: {counts}"


def status_table(status: StudyStatus) -> Table:
    """Every planned run and its state."""
    rows = [(r.task, r.label, r.seed, r.state, r.best_score, r.best_step, r.run_id) for r in status.runs]
    return plain_table(("task", "method", "seed", "state", "best score", "step", "run"), rows)


def status_summary(status: StudyStatus) -> Table:
    """How many runs of each task and method are in each state: for studies with too many runs to list each."""
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
    count, cost = record.parameters, record.cost
    parameters = None
    if count.total is not None and count.trainable is not None:
        parts = [(name, getattr(count, name)) for name in ("backbone", "bias", "adapter", "head")]
        split = ", ".join(f"{name} {value:,}" for name, value in parts if value)
        share = percent(count.trainable, count.total)
        parameters = f"{count.trainable:,} of {count.total:,} train ({share}): {split}"
    training = (
        None if cost.train_seconds is None else duration(cost.train_seconds),
        None if cost.samples_per_second is None else f"{cost.samples_per_second:.0f} samples/s",
        None if cost.pack_size is None else f"in a pack of {cost.pack_size}",
    )
    peak = cost.peak_memory_bytes

    def scores(values: Mapping[str, float | None], step: int | None) -> str | None:
        known = [f"{name} {value:.4f}" for name, value in values.items() if value is not None]
        return f"{', '.join(known)} (step {step})" if known else None

    trial = record.trial
    rungs = (
        ""
        if trial is None
        else ", ".join(
            f"step {rung.step}: {'no number' if rung.score is None else f'{rung.score:.4f}'}"
            f"{'' if rung.kept else ' (pruned)'}"
            for rung in trial.rungs
        )
    )
    searched = {} if trial is None else {"trial": f"{trial.number} of {trial.space}", "rungs": rungs or None}
    return {
        "run": record.run_id,
        "state": record.state,
        "why": record.failure,
        "task": record.task,
        "model": record.model,
        "method": record.label,
        "seed": record.seed,
        "best": scores(record.scores, record.best_step),
        "last": scores(record.last_scores, record.steps),
        "parameters": parameters,
        **searched,
        "training": ", ".join(fact for fact in training if fact) or None,
        "peak memory": None if peak is None else f"{decimal(peak)} (whole pack)",
        "notes": "; ".join(record.notes) or None,
    }


def history_table(rows: Sequence[HistoryRow]) -> Table:
    """One line an evaluation."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    rates = [None if row.learning_rate is None else f"{row.learning_rate:.2e}" for row in rows]
    cells = [
        (row.step, row.epoch, row.train_loss, rate, row.eval_loss, *(row.metrics.get(name) for name in metrics))
        for row, rate in zip(rows, rates, strict=True)
    ]
    return plain_table(("step", "epoch", "train loss", "learning rate", "eval loss", *metrics), cells)


def closing_lines(
    directory: Path,
    failed: Sequence[RunRecord],
    page: Path | None = None,
    seeds: int | None = None,
    *,
    searched: bool = False,
) -> list[str]:
    """Where the results are, what to do about runs that failed, and how to get a verdict where `seeds` are too few."""
    results = shlex.quote(str(directory))
    each = "trial" if searched else "run"
    lines = [
        f"Results: {directory}",
        *(report_lines(page) if page else []),
        f"Every {each}: manytune status {results}; one {each}: manytune show {results} RUN",
    ]
    if searched:
        lines.append(f"The best settings as a study file: manytune best {results}")
    elif seeds is not None and seeds < MINIMUM_SEEDS:
        lines.append(f"Seeds enough for a verdict: manytune extend {results} --seeds {MINIMUM_SEEDS}")
    if failed:
        lines.append(f"{counted(len(failed), 'run')} failed:")
        lines += [f"  {run.run_id}: {shortened(run.failure, 500)}" for run in failed[:_FAILED_SHOWN]]
        lines += [f"  and {len(failed) - _FAILED_SHOWN} more"] if len(failed) > _FAILED_SHOWN else []
        lines.append("To have them trained again, give the same command --retry-failed.")
    return lines


def report_lines(page: Path) -> list[str]:
    """Where the report is, and what was left out of it."""
    missing = "No figures as PNG and SVG, which need matplotlib: pip install 'manytune[figures]'"
    return [f"Report: {page}", *([] if is_installed("matplotlib") else [missing])]


def percent(part: int, whole: int) -> str:
    """A share: "0.24 %"."""
    return f"{100 * part / whole:.2f} %"


def _written(cell: Any) -> str:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return cut(printable(str(cell)), _LONGEST_CELL)  # a line feed or a tab too: a row stays a row
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4f}" if cell == 0 or 1e-4 <= abs(cell) < 1e6 else f"{cell:.3e}"
