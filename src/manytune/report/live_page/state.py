"""What the live page shows: a study directory as it is now, as plain data."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.filesize import decimal

from manytune.config.plan import Run
from manytune.data.metrics import METRICS, Metric
from manytune.report.charts import draw_curves
from manytune.report.series import RUNNING, STOPPED, Traced, curves_of, looks_of, quantities
from manytune.report.views import status_line
from manytune.storage.directory import PENDING, RunStatus, Store
from manytune.storage.lock import Lock
from manytune.storage.record import HistoryRow
from manytune.tracking.pack_progress import PackProgress, read_live
from manytune.utils.text import counted, duration

_RUNS_SHOWN = 200
_STALE_SECONDS = 60.0


class Watched:
    """One study directory, looked at again and again: what cannot change any more is read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._histories: dict[str, tuple[int, tuple[HistoryRow, ...]]] = {}
        self._metrics: dict[str, Metric] = {}

    def state(self) -> dict[str, Any]:
        """All that the page shows.

        Raises:
            StoreError: Something in the directory is damaged.
        """
        status = self.store.status()
        runs = {run.id: run for run in self.store.runs()}
        live = read_live(self.store.root)
        training = {run_id for pack in live for run_id in pack.runs}
        holder = Lock.holder_of(self.store.root)
        begun = RUNNING if holder else STOPPED
        rows = [replace(r, state=begun) if r.state == PENDING and r.run_id in training else r for r in status.runs]
        failed = [row for row in rows if row.state == "failed"]
        return {
            "title": status.study,
            "line": status_line(status),
            "complete": status.counts[PENDING] == 0,
            "driver": holder or "No process works on this directory now.",
            "working": holder is not None,
            "left": self._left(live, status.counts[PENDING]) if holder else None,
            "packs": [self._pack(pack, working=holder is not None) for pack in live],
            "runs": [_run(row) for row in sorted(rows, key=_running_first)[:_RUNS_SHOWN]],
            "more_runs": max(len(rows) - _RUNS_SHOWN, 0),
            "failures": [{"run": row.run_id, "why": row.failure} for row in failed],
            "machine": _machine(),
            "charts": self._charts(rows, runs, live),
        }

    def _pack(self, pack: PackProgress, *, working: bool) -> dict[str, Any]:
        metric = self._metric(pack.task).title
        quiet = max(time.time() - pack.updated, 0.0)
        left = pack.seconds_left
        return {
            "id": pack.pack_id,
            "runs": len(pack.runs),
            "step": pack.step,
            "total_steps": pack.total_steps,
            "loss": None if pack.loss is None else f"{pack.loss:.4f}",
            "best": None if pack.best is None else f"{metric} {pack.best[1]:.4f} ({pack.best[0]})",
            "left": None if left is None or not working else duration(left),
            "quiet": f"nothing heard for {duration(quiet)}" if not working or quiet > _STALE_SECONDS else None,
        }

    def _left(self, live: Sequence[PackProgress], pending: int) -> str | None:
        """Time left for the packs that train, as they went until now."""
        known = [pack.seconds_left for pack in live if pack.seconds_left is not None]
        if not known:
            return None
        waiting = pending - sum(len(pack.runs) for pack in live)
        said = f"The packs that train now need about {duration(max(known))} more"
        if waiting <= 0:
            return f"{said}."
        return f"{said}; {counted(waiting, 'run')} {'waits' if waiting == 1 else 'wait'} for a free worker."

    def _charts(
        self, rows: Sequence[RunStatus], runs: Mapping[str, Run], live: Sequence[PackProgress]
    ) -> list[dict[str, Any]]:
        histories: dict[str, Sequence[HistoryRow]] = {}
        for pack in live:
            histories |= {run_id: own for run_id, own in pack.rows.items() if own}
        for row in rows:
            if row.state not in (PENDING, RUNNING, STOPPED):
                histories[row.run_id] = self._history(row.run_id)
        charts = []
        for name in dict.fromkeys(row.task for row in rows):
            metric = self._metric(name)
            own = [row for row in rows if row.task == name and histories.get(row.run_id)]
            traced: dict[str, list[Traced]] = {}
            for row in own:
                traced.setdefault(row.label, []).append(Traced(row.run_id, row.seed, row.state))
            look = looks_of({row.label: runs[row.run_id].method.method for row in own})
            found = [curves_of(traced, histories, value) for _, _, value in quantities(metric)]
            chart = draw_curves(name, metric, look, found)
            if chart is not None:
                charts.append({**asdict(chart), "title": f"{name}: {chart.title.lower()}"})
        return charts

    def _metric(self, task: str) -> Metric:
        if task not in self._metrics:
            self._metrics[task] = METRICS[self.store.task(task).primary_metric]
        return self._metrics[task]

    def _history(self, run_id: str) -> tuple[HistoryRow, ...]:
        path = self.store.run_dir(run_id) / "history.csv"
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return ()
        known = self._histories.get(run_id)
        if known is None or known[0] != changed:
            known = self._histories[run_id] = (changed, self.store.read_history(run_id))
        return known[1]


def _running_first(row: RunStatus) -> int:
    order = ("failed", "collapsed", RUNNING, STOPPED)
    return order.index(row.state) if row.state in order else len(order) + (row.state == PENDING)


def _run(row: RunStatus) -> dict[str, Any]:
    score = None if row.best_score is None else f"{row.best_score:.4f}"
    return {"task": row.task, "method": row.label, "seed": row.seed, "state": row.state, "score": score}


def _machine() -> list[str]:
    """What the machine that the page is served from is busy with."""
    import psutil

    memory = psutil.virtual_memory()
    busy = f"CPU {psutil.cpu_percent():.0f} % of {psutil.cpu_count()} cores"
    lines = [f"{socket.gethostname()}: {busy}, memory {decimal(memory.used)} of {decimal(memory.total)}"]
    asked = "--query-gpu=index,name,utilization.gpu,memory.used,memory.total"
    if shutil.which("nvidia-smi"):
        done = subprocess.run(
            ["nvidia-smi", asked, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            number, name, busy, used, total = (part.strip() for part in line.split(","))
            lines.append(f"GPU {number} ({name}): {busy} %, memory {used} of {total} MiB")
    return lines
