"""Trackers, for real: the values that were written are read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from callback_log import CallbackLog
from forked import ForkedProcess
from manytune.config import Study
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.study import run_study
from manytune.tracking import trackers
from manytune.training.callbacks import Callback
from manytune.utils.errors import DependencyError, StudyError
from manytune.utils.signals import Interrupted
from study_files import small_study
from tiny import make_tiny

# Of a package of MLflow's, when its store is opened.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

METRIC = "pearson"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trackers' processes find accelerate imported; those of the first test are fresh."""
    monkeypatch.setattr(subprocess, "Popen", ForkedProcess)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def small(model: Path, *tracking: str, **changes: Any) -> Study:
    training = {"max_steps": 4, "eval_every": 2, "precision": "fp32"}
    methods = [{"method": "lora", "rank": 2, "learning_rate": [1e-3, 1e30]}]
    tracked = {"name": "tracked", "training": training, "methods": methods, "tracking": list(tracking)}
    return small_study(model, **{**tracked, **changes})


def run(study: Study, out: Path) -> tuple[Sequence[RunRecord], list[str]]:
    log = CallbackLog()
    return run_study(study, out, device="cpu", callbacks=[log]).records, log.messages


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads in a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_both_trackers_hold_a_run_for_each_of_ours_also_inside_a_pack(model: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    records, messages = run(small(model, "tensorboard", "mlflow"), tmp_path)
    assert messages == []
    store = Store.open(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tracked")
    assert experiment is not None
    by_name = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    assert set(by_name) == {record.run_id for record in records}
    assert {record.state for record in records} == {"finished", "failed"}
    for record in records:
        history = store.read_history(record.run_id)
        curve = [(row.step, row.metrics[METRIC]) for row in history]
        board = scalars(tmp_path / "tracking" / "tensorboard" / record.run_id)
        assert [(s, pytest.approx(v)) for s, v in board.get(f"eval/{METRIC}", [])] == curve
        kept = client.get_metric_history(by_name[record.run_id].info.run_id, f"eval/{METRIC}")
        assert [(metric.step, metric.value) for metric in kept] == curve
        data, info = by_name[record.run_id].data, by_name[record.run_id].info
        assert data.params["learning_rate"] == str(record.hyperparameters["learning_rate"])
        assert data.params["training/max_steps"] == "4"
        assert data.params["seed"] == str(record.seed)
        assert data.tags["state"] == record.state
        assert info.status == ("FAILED" if record.state == "failed" else "FINISHED")
        if record.state == "finished":
            assert [row.step for row in history] == [2, 4]
            assert data.metrics[f"best/{METRIC}"] == record.best_score
            assert board[f"best/{METRIC}"] == [(record.best_step, pytest.approx(record.best_score))]
            assert Path(data.tags["snapshot"]) == store.snapshot_dir(record.run_id)
            assert board["train/loss"][0][1] == pytest.approx(history[0].train_loss)


@pytest.mark.usefixtures("forked")
def test_a_study_that_goes_on_goes_on_in_its_trackers_too(model: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    class Asking(Callback):
        def on_evaluate(self, pack_id: str, step: int, *values: Any) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    methods = [{"method": "lora", "rank": 2, "learning_rate": 1e-3}]
    study = small(model, "mlflow", methods=methods, training={"max_steps": 6, "eval_every": 2, "precision": "fp32"})
    with pytest.raises(Interrupted):
        run_study(study, tmp_path, device="cpu", callbacks=[Asking()])
    client = MlflowClient(f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tracked"]

    def steps() -> list[list[int]]:
        found = client.search_runs([experiment.experiment_id])
        return [[m.step for m in client.get_metric_history(f.info.run_id, f"eval/{METRIC}")] for f in found]

    assert steps() == [[2, 4], [2, 4]]  # live: before any run has ended
    run(study, tmp_path)
    assert steps() == [[2, 4, 6], [2, 4, 6]]


@pytest.mark.usefixtures("forked")
def test_runs_that_ended_before_a_tracker_was_named_are_told_of_later(model: Path, tmp_path: Path) -> None:
    methods = [{"method": "lora", "rank": 2, "learning_rate": 1e-3}]
    first, _ = run(small(model, methods=methods), tmp_path)
    Store.open(tmp_path).reset_run(first[0].run_id)
    records, messages = run(small(model, "tensorboard", methods=methods), tmp_path)  # it is no other study for that
    assert messages == ["1 of 2 runs has ended before."]
    for record in records:
        board = scalars(tmp_path / "tracking" / "tensorboard" / record.run_id)
        assert [step for step, _ in board[f"eval/{METRIC}"]] == [2, 4]


STAND_IN = """
import json, os, pathlib
config = {}
class _Config:
    def update(self, values, **_): config.update(values)
class _Run:
    def __init__(self, project, name):
        self.rows, self.project, self.name = [], project, name
    def log(self, values, step=None, **_): self.rows.append([step, values])
    def finish(self):
        path = pathlib.Path(os.environ["STAND_IN"]) / f"{self.name}.json"
        path.write_text(json.dumps({"project": self.project, "rows": self.rows, "config": dict(config)}))
def init(project, name):
    global run
    config.clear()
    run = _Run(project, name)
    return run
config_ = config
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that keeps what accelerate's tracker for Weights & Biases gives it."""
    package = tmp_path / "packages" / "wandb"
    package.mkdir(parents=True)
    text = STAND_IN.replace("config_ = config", "").replace("config = {}", "_values = {}")
    text = text.replace("config.update", "_values.update").replace("dict(config)", "dict(_values)")
    text = text.replace("config.clear", "_values.clear") + "\nconfig = _Config()\n"
    (package / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    return package


@pytest.mark.usefixtures("forked")
def test_a_tracker_with_one_active_run_is_told_of_each_run_by_itself(model: Path, tmp_path: Path, wandb: Path) -> None:
    records, messages = run(small(model, "wandb"), tmp_path / "out")
    assert messages == []
    for record in records:
        kept = json.loads((tmp_path / f"{record.run_id}.json").read_text())
        assert kept["project"] == "tracked"
        assert kept["config"]["seed"] == record.seed
        assert kept["config"]["state"] == record.state
        curve = [(step, values[f"eval/{METRIC}"]) for step, values in kept["rows"] if step is not None]
        history = Store.open(tmp_path / "out").read_history(record.run_id)
        assert curve == [(row.step, row.metrics[METRIC]) for row in history]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("breakage", "reason"),
    [("raise RuntimeError('no network')", "RuntimeError: no network."), ("import os; os._exit(3)", "exit code 3.")],
)
def test_a_tracker_that_fails_is_told_of_and_stops_nothing(
    model: Path, tmp_path: Path, wandb: Path, breakage: str, reason: str
) -> None:
    (wandb / "__init__.py").write_text(breakage)
    records, (message,) = run(small(model, "wandb"), tmp_path / "out")
    assert len(records) == 4
    assert message.startswith(f"tracking: wandb failed: {reason}")


@pytest.mark.usefixtures("forked")
def test_a_tracker_that_hangs_holds_nothing_up(
    model: Path, tmp_path: Path, wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_PATIENCE_SECONDS", 1.0)
    (wandb / "__init__.py").write_text("import time\ntime.sleep(3600)")
    records, (message,) = run(small(model, "wandb"), tmp_path / "out")
    assert len(records) == 4
    assert "it was not done 1 s after the study" in message


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"tracking: aim needs the package aim: pip install accelerate aim"):
        run_study(small(model, "aim"), tmp_path / "out", callbacks=[])
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker_is_refused_with_the_known_ones(model: Path) -> None:
    with pytest.raises(StudyError, match=r"'tensorbord' is not one of: tensorboard, .*Did you mean 'tensorboard'"):
        small(model, "tensorbord")


def test_tracking_changes_neither_the_study_nor_its_runs(model: Path) -> None:
    assert small(model, "mlflow").hash == small(model).hash
