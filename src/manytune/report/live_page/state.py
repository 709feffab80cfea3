"""What the live page shows: a study directory as it is now, as plain data."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from rich.filesize import decimal

from manytune.config.plan import Run
from manytune.data.metrics import METRICS
from manytune.report.charts import draw_curves
from manytune.report.series import RUNNING, STOPPED, curves_of, looks_of, quantities
from manytune.report.views import status_line
from manytune.storage.directory import PENDING, RunStatus, Store
from manytune.storage.lock import Lock
from manytune.storage.record import HistoryRow
from manytune.tracking.pack_progress import PackProgress, read_live
from manytune.utils.text import counted, duration

_RUNS_SHOWN = 200
_STALE_SECONDS = 60.0


class Watched:
    """One study directory, read again and again; files that did not change are read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._histories: dict[str, tuple[int, tuple[HistoryRow, ...]]] = {}
        self._metric = cache(lambda task: METRICS[store.task(task).primary_metric])

    def state(self) -> dict[str, Any]:
        """All that the page shows; a StoreError if something in the directory is damaged."""
        status = self.store.status()
        runs = {run.id: run for run in self.store.runs()}
        live = read_live(self.store.root)
        training = {run_id for pack in live for run_id in pack.runs}
        holder = Lock.holder_of(self.store.root)
        begun = RUNNING if holder else STOPPED
        rows = [replace(r, state=begun) if r.state == PENDING and r.run_id in training else r for r in status.runs]
        first = ("failed", "collapsed", RUNNING, STOPPED)
        order = {state: at for at, state in enumerate(first)} | {PENDING: len(first) + 1}
        return {
            "title": status.study,
            "line": status_line(status),
            "complete": status.counts[PENDING] == 0,
            "driver": holder or "No process works on this directory now.",
            "working": holder is not None,
            "left": _time_left(live, status.counts[PENDING]) if holder else None,
            "packs": [self._pack(pack, working=holder is not None) for pack in live],
            "runs": [
                {
                    "task": row.task,
                    "method": row.label,
                    "seed": row.seed,
                    "state": row.state,
                    "score": None if row.best_score is None else f"{row.best_score:.4f}",
                }
                for row in sorted(rows, key=lambda row: order.get(row.state, len(first)))[:_RUNS_SHOWN]
            ],
            "more_runs": max(len(rows) - _RUNS_SHOWN, 0),
            "failures": [{"run": row.run_id, "why": row.failure} for row in rows if row.state == "failed"],
            "machine": _machine(),
            "charts": self._charts(rows, runs, live),
        }

    def _pack(self, pack: PackProgress, *, working: bool) -> dict[str, Any]:
        metric = self._metric(pack.task).title
        quiet = _quiet(pack)
        left = pack.seconds_left(quiet)
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

    def _charts(
        self, rows: Sequence[RunStatus], runs: Mapping[str, Run], live: Sequence[PackProgress]
    ) -> list[dict[str, Any]]:
        histories: dict[str, Sequence[HistoryRow]] = {run_id: h for pack in live for run_id, h in pack.rows.items()}
        ended = (row.run_id for row in rows if row.state not in (PENDING, RUNNING, STOPPED))
        histories |= {run_id: self._history(run_id) for run_id in ended}
        charts = []
        for name in dict.fromkeys(row.task for row in rows):
            metric = self._metric(name)
            by_label: dict[str, list[RunStatus]] = {}
            for row in rows:
                if row.task == name and histories.get(row.run_id):
                    by_label.setdefault(row.label, []).append(row)
            look = looks_of({label: runs[same[0].run_id].method.method for label, same in by_label.items()})
            panels = [curves_of(by_label, histories, value) for value in quantities(metric).values()]
            chart = draw_curves(name, metric, look, panels)
            if chart is not None:
                charts.append({**asdict(chart), "title": f"{name}: {chart.title.lower()}"})
        return charts

    def _history(self, run_id: str) -> tuple[HistoryRow, ...]:
        path = self.store.run_dir(run_id) / "history.csv"
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return ()
        if self._histories.get(run_id, (None,))[0] != changed:
            self._histories[run_id] = (changed, self.store.read_history(run_id))
        return self._histories[run_id][1]


def _quiet(pack: PackProgress) -> float:
    """Seconds since a pack was last heard of."""
    return max(time.time() - pack.updated, 0.0)


def _time_left(live: Sequence[PackProgress], pending: int) -> str | None:
    """How long the packs that train still take, at their speed until now; None where it is not known yet."""
    known = [left for pack in live if (left := pack.seconds_left(_quiet(pack))) is not None]
    if not known:
        return None
    waiting = pending - sum(len(pack.runs) for pack in live)
    queue = f"; {counted(waiting, 'run')} {'waits' if waiting == 1 else 'wait'} for a free worker"
    return f"The packs that train now need about {duration(max(known))} more{queue if waiting > 0 else ''}."


def _machine() -> list[str]:
    """Load of the CPU, memory and GPUs of the machine that serves the page."""
    import psutil

    memory = psutil.virtual_memory()
    busy = f"CPU {psutil.cpu_percent():.0f} % of {psutil.cpu_count()} cores"
    lines = [f"{socket.gethostname()}: {busy}, memory {decimal(memory.used)} of {decimal(memory.total)}"]
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=index,name,utilization.gpu,memory.used,memory.total"
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            number, name, busy, used, total = (part.strip() for part in line.split(","))
            lines.append(f"GPU {number} ({name}): {busy} %, memory {used} of {total} MiB")
    return lines
