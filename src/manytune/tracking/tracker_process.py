"""The process of one tracker, which logs through accelerate's class for it.

    python -m manytune.tracking.tracker_process TRACKER FOLDER PROJECT < messages

TensorBoard and MLflow get figures as they come, of many runs at once: TensorBoard's tracker has a writer for each run,
and MLflow's client names the run in every call. The other trackers have one active run in a process, so each run is
logged there when it has ended, with its whole curve.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manytune.utils.files import read_text, write_file
from manytune.utils.text import parse_json

__all__: list[str] = []

_RUN_NAME = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name", "clearml": "task_name"}
"""Tracker → the argument of its own start that names a run."""

Row = Mapping[str, Any]  # step, and figures: name → value


# Each class logs runs in one kind of tracker: `open` begins a run, or goes on with the one that the tracker knows as
# `known`, and returns the tracker's id for it; `log` logs rows of figures; `end` logs how the run ended and closes it.
# A class is `live` if it logs figures before their run has ended.


class _TensorBoard:
    live = True

    def __init__(self, folder: Path, project: str) -> None:
        self._folder = folder / "tensorboard"
        self._open: dict[str, Any] = {}

    def open(self, run_id: str, known: str | None, config: Mapping[str, Any]) -> str:
        from accelerate.tracking import TensorBoardTracker

        tracker = self._open[run_id] = TensorBoardTracker(run_id, logging_dir=str(self._folder))
        tracker.start()
        if known is None:
            tracker.store_init_configuration(dict(config))
        return run_id

    def log(self, run_id: str, rows: Sequence[Row]) -> None:
        for row in rows:
            self._open[run_id].log(row["figures"], step=row["step"])

    def end(self, run_id: str, end: Mapping[str, Any]) -> None:
        tracker = self._open.pop(run_id)
        tracker.log({**end["figures"], **_texts(end["facts"])}, step=end["step"])
        tracker.finish()


class _MLflow:
    live = True

    def __init__(self, folder: Path, project: str) -> None:
        from mlflow import MlflowClient

        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", project)
        found = self._client.get_experiment_by_name(name)
        artifacts = (folder / "mlflow-artifacts").resolve().as_uri()
        self._experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        self._ids: dict[str, str] = {}

    def open(self, run_id: str, known: str | None, config: Mapping[str, Any]) -> str:
        if known is None:
            from mlflow.entities import Param

            known = self._client.create_run(self._experiment, run_name=run_id).info.run_id
            self._client.log_batch(known, params=[Param(name, str(value)) for name, value in config.items()])
        else:
            self._client.update_run(known, status="RUNNING")
        self._ids[run_id] = known
        return known

    def log(self, run_id: str, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        for row in rows:
            metrics = [Metric(name, value, now, row["step"]) for name, value in row["figures"].items()]
            self._client.log_batch(self._ids[run_id], metrics=metrics)

    def end(self, run_id: str, end: Mapping[str, Any]) -> None:
        self.log(run_id, [end])
        known = self._ids.pop(run_id)
        for name, value in _texts(end["facts"]).items():
            self._client.set_tag(known, name, value)
        self._client.set_terminated(known, "FAILED" if end["facts"]["state"] == "failed" else "FINISHED")


_LIVE: Mapping[str, type[_TensorBoard | _MLflow]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}


class _OneByOne:
    """A tracker that can hold one run open at a time: each run is logged when it has ended."""

    live = False

    def __init__(self, name: str, folder: Path, project: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._class = LOGGER_TYPE_TO_CLASS[name]
        self._name = name
        self._folder = folder / name
        self._project = project
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._rows: dict[str, Sequence[Row]] = {}

    def open(self, run_id: str, known: str | None, config: Mapping[str, Any]) -> str:
        self._configs[run_id] = config
        return run_id

    def log(self, run_id: str, rows: Sequence[Row]) -> None:
        self._rows[run_id] = rows

    def end(self, run_id: str, end: Mapping[str, Any]) -> None:
        options: dict[str, Any] = {}
        if self._name in _RUN_NAME:
            options[_RUN_NAME[self._name]] = run_id
        if self._class.requires_logging_directory:
            options["logging_dir"] = str(self._folder)
        # Where a run cannot be named apart from its project, the project's name holds it.
        project = self._project if self._name in _RUN_NAME else f"{self._project}-{run_id}"
        tracker = self._class(project, **options)
        tracker.start()
        tracker.store_init_configuration({**self._configs.pop(run_id), **_texts(end["facts"])})
        for row in self._rows.pop(run_id):
            tracker.log(row["figures"], step=row["step"])
        tracker.log(end["figures"])
        tracker.finish()


def main(name: str, folder: Path, project: str) -> None:
    """Log what comes on standard input, until it ends."""
    from accelerate import PartialState

    PartialState(cpu=True)
    log = _LIVE[name](folder, project) if name in _LIVE else _OneByOne(name, folder, project)
    configs: dict[str, Mapping[str, Any]] = {}
    states: dict[str, dict[str, Any]] = {}
    opened: set[str] = set()
    for line in sys.stdin:
        message = parse_json(line)
        run_id = message["run"]
        if "config" in message:
            configs[run_id] = message["config"]
            continue
        path = folder / name / f"{run_id}.json"
        if run_id not in states:
            text = read_text(path)
            states[run_id] = {"id": None, "step": -1, "ended": False} if text is None else parse_json(text)
        # Of the run: its id in the tracker, the last step that was logged, whether it has ended there.
        state, end = states[run_id], message.get("end")
        if state["ended"] or (end is None and not log.live):
            continue
        if run_id not in opened:
            state["id"] = log.open(run_id, state["id"], configs[run_id])
            opened.add(run_id)
        rows = [row for row in message["rows"] if row["step"] > state["step"]]
        log.log(run_id, rows)
        state["step"] = max([state["step"], *(row["step"] for row in rows)])
        if end is not None:
            log.end(run_id, end)
            state["ended"] = True
        write_file(path, json.dumps(state) + "\n")


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items() if value is not None}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
