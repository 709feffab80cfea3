"""Trackers: each run of a study is a run there, with its configuration, curves and final scores.

Trackers keep a process-wide active run, wait for networks and fail. So each runs in a separate process
(`tracker_process`), which a thread feeds through a pipe: if it fails, the study goes on.

OUT/tracking/<tracker>/<run-id>.json   what it has logged of a run, so that a study that goes on continues there
OUT/tracking/<tracker>.log             what its process printed
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from manytune.config import TRACKERS, Study
from manytune.config.plan import Pack, Run
from manytune.storage.directory import Store
from manytune.storage.record import HistoryRow, RunRecord
from manytune.training.callbacks import Best, Callback
from manytune.utils.errors import DependencyError

_PATIENCE_SECONDS = 60.0  # that a tracker has to send the last figures when the study has ended


class Trackers(Callback):
    """The trackers that a study names."""

    def __init__(self, study: Study, store: Store, warn: Callable[[str], None]) -> None:
        """Raise DependencyError where a tracker's package is missing; `warn` gets a sentence where one fails later."""
        self._study, self._store, self._warn = study, store, warn
        self._processes: list[_TrackerProcess] = []
        for name in study.tracking:
            package, extra = TRACKERS[name]
            for needed in ("accelerate", package):
                if importlib.util.find_spec(needed) is None:
                    install = f"pip install 'manytune[{extra}]'" if extra else f"pip install accelerate {package}"
                    raise DependencyError(f"tracking: {name} needs the package {needed}: {install}")

    def on_study_begin(self, packs: Sequence[Pack], ended: Mapping[str, RunRecord]) -> None:
        """Start the processes, and send all runs; those that ended before too, unless a tracker knows of them."""
        folder, project = self._store.root / "tracking", self._study.name
        self._processes = [_TrackerProcess(name, folder, project) for name in self._study.tracking]
        for pack in packs if self._processes else ():
            for run in pack.runs:
                self._send({"run": run.id, "config": self._config(run)})
                if run.id in ended:
                    self.on_run_end(pack.id, ended[run.id])

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: Best) -> None:
        for run_id, row in rows.items():
            self._send({"run": run_id, "rows": [_figures(row)]})

    def on_run_end(self, pack_id: str, record: RunRecord) -> None:
        """Send the end of a run, and whatever of its history was not sent."""
        if not self._processes:
            return
        final = {f"best/{name}": score for name, score in record.scores.items()}
        final |= {f"last/{name}": score for name, score in record.last_scores.items()}
        final |= {f"cost/{name}": value for name, value in record.cost.model_dump().items()}
        self._send(
            {
                "run": record.run_id,
                "rows": [_figures(row) for row in self._store.read_history(record.run_id)],
                "end": {
                    "step": record.best_step or record.steps or 0,
                    "figures": {name: value for name, value in final.items() if value is not None},
                    "facts": {
                        "state": str(record.state),
                        "failure": record.failure,
                        "notes": "\n".join(record.notes) or None,
                        "snapshot": str(self._store.snapshot_dir(record.run_id).resolve()),
                    },
                },
            }
        )

    def on_study_end(self) -> None:
        for process in self._processes:
            process.close()
        for process in self._processes:
            if failure := process.end(_PATIENCE_SECONDS):
                self._warn(
                    f"tracking: {process.name} failed: {failure} All results are in {self._store.root} as ever; "
                    f"what {process.name} printed is in {process.log}."
                )

    def _send(self, message: Mapping[str, Any]) -> None:
        for process in self._processes:
            process.send(message)

    def _config(self, run: Run) -> dict[str, Any]:
        study = self._study
        config = {
            "study": study.name,
            "model": run.model,
            "task": run.task,
            "method": run.method.method,
            **run.method.hyperparameters(),
            "seed": run.seed,
            "template": study.template,
            "selection": study.selection,
            **{f"training/{name}": value for name, value in study.training.model_dump(mode="json").items()},
        }
        # All trackers take texts and numbers; some refuse lists and null.
        return {key: v if isinstance(v, str | int | float) else str(v) for key, v in config.items() if v is not None}


class _TrackerProcess:
    """The process of one tracker, and the thread that feeds it."""

    def __init__(self, name: str, folder: Path, project: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "manytune.tracking.tracker_process", name, str(folder), project],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Have it log something; this never waits."""
        if self._process.poll() is None:
            self._messages.put(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """There is nothing more to log."""
        self._messages.put(None)

    def end(self, patience: float) -> str | None:
        """Wait for it, so many seconds at most; returns why it failed, if it did."""
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"it was not done {patience:.0f} s after the study."
        finally:
            self._thread.join(patience)
        if code == 0:
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else f'exit code {code}'}."

    def _feed(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(OSError):  # it has died, which `end` reports
            while (message := self._messages.get()) is not None:
                stdin.write(message)
                stdin.flush()
        with suppress(OSError):
            stdin.close()


def _figures(row: HistoryRow) -> dict[str, Any]:
    """A row of a history: its step, and figure name → value."""
    figures = {
        "epoch": row.epoch,
        "train/loss": row.train_loss,
        "train/learning_rate": row.learning_rate,
        "eval/loss": row.eval_loss,
        **{f"eval/{name}": score for name, score in row.metrics.items()},
    }
    return {"step": row.step, "figures": {name: value for name, value in figures.items() if value is not None}}
