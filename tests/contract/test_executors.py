"""What every executor promises, whatever trains the packs: the driver treats them alike."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from manytune.config import Study
from manytune.config.plan import plan_packs, plan_runs
from manytune.data.tasks import Task
from manytune.executors import Inline, Workers
from manytune.executors.base import ExecutorSpec
from manytune.executors.ray_executor import OnRay, Resources
from manytune.storage.directory import Store
from manytune.storage.record import RunState
from manytune.study import run_study
from manytune.utils.errors import ManytuneError
from manytune.utils.signals import Interrupted
from ray_cluster import ray_cluster
from study_files import results_in, small_study
from tiny import make_tiny


@pytest.fixture(params=["inline", "workers", "ray"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExecutorSpec:
    if request.param == "inline":
        return Inline("cpu")
    if request.param == "workers":
        return Workers(2, threads=1)
    cluster = request.getfixturevalue("cluster")
    storage = f"file://{tmp_path_factory.mktemp('shared')}" if request.param == "ray with a storage" else None
    return OnRay(cluster.address, Resources(), storage)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield from ray_cluster(connected=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study comes to in one process, under the plan of `planned`."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_study(planned(model, out), out, executor=Inline("cpu"), progress=Listener())
    return results_in(out)


class Listener:
    """A progress that keeps what it is told, and checks that it is told in order."""

    def __init__(self) -> None:
        self.training: dict[str, int] = {}
        self.most = 0
        self.started: list[str] = []
        self.evaluations: list[tuple[str, int]] = []
        self.ended: dict[str, str] = {}
        self.messages: list[str] = []

    def pack_started(self, pack_id: str, task: Task, runs: Sequence[str], total_steps: int) -> None:
        assert pack_id not in self.training
        self.training[pack_id] = 0
        self.started.append(pack_id)
        self.most = max(self.most, len(self.training))

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        assert step > self.training[pack_id]
        self.training[pack_id] = step

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
        assert step >= self.training[pack_id]
        self.evaluations.append((pack_id, step))

    def run_ended(self, pack_id: str, run_id: str, state: str, note: str | None = None) -> None:
        assert run_id not in self.ended
        self.ended[run_id] = state

    def pack_finished(self, pack_id: str, seconds: float | None) -> None:
        self.training.pop(pack_id, None)

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None: ...


def small(model: Path, **changes: Any) -> Study:
    methods = [{"method": "lora", "rank": 2, "learning_rate": 1e-3}, {"method": "full", "learning_rate": 1e-4}]
    return small_study(model, **{"seeds": [0, 1, 2], "methods": methods, **changes})


def planned(model: Path, out: Path, **changes: Any) -> Study:
    """A study whose packs are planned: with another plan, results agree to rounding alone."""
    study = small(model, **changes)
    Store.create_or_open(out, study).write_plan(plan_packs(plan_runs(study), 2))
    return study


def test_a_study_comes_to_the_same_bits_wherever_it_is_trained(
    place: ExecutorSpec, model: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    told = Listener()
    study = planned(model, tmp_path)
    capacity, site = place.site("fp32", 32)
    result = run_study(study, tmp_path, executor=place, progress=told)
    assert results_in(tmp_path) == undisturbed
    assert site.device == "cpu"
    assert [record.run_id for record in result.records] == [run.id for run in plan_runs(study)]
    packs = [pack.id for pack in plan_packs(plan_runs(study), 2)]
    assert sorted(told.started) == sorted(packs)
    assert sorted(told.evaluations) == sorted((pack, step) for pack in packs for step in (2, 4, 6))
    assert told.ended == {run.id: "finished" for run in plan_runs(study)}
    assert told.most <= capacity
    assert list((tmp_path / "packs").iterdir()) == []
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("place", ["inline", "workers", "ray with a storage"], indirect=True)
def test_asked_to_stop_every_pack_stops_where_it_can_go_on(
    place: ExecutorSpec, model: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    number = signal.SIGTERM

    class Asking(Listener):
        def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
            super().evaluated(pack_id, step, best)
            if step == 4:
                os.kill(os.getpid(), number)

    study, told = planned(model, tmp_path), Asking()
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as interrupt:
        run_study(study, tmp_path, executor=place, progress=told)
    assert interrupt.value.number == number
    assert signal.getsignal(number) is before
    assert not (tmp_path / "lock").exists()
    assert 0 < len(told.started) < 5 or len(told.ended) < 6
    again = Listener()
    run_study(study, tmp_path, executor=place, progress=again)
    assert any("goes on from step" in text for text in again.messages) or not set(again.started) & set(told.started)
    assert results_in(tmp_path) == undisturbed


def test_runs_that_fail_are_recorded_and_the_others_go_on(place: ExecutorSpec, model: Path, tmp_path: Path) -> None:
    methods = [{"method": "lora", "rank": 2, "learning_rate": [1e-3, 1e30]}]
    study = small(model, seeds=[0], methods=methods)
    result = run_study(study, tmp_path, executor=place, progress=Listener())
    assert [record.state for record in result.records] == [RunState.FINISHED, RunState.FAILED]
    assert "learning rate that is too high" in (result.failed[0].failure or "")


def test_what_a_user_can_mend_ends_the_study(place: ExecutorSpec, model: Path, tmp_path: Path) -> None:
    study = planned(model, tmp_path)
    in_the_way = Store.open(tmp_path).run_dir(plan_runs(study)[0].id)
    in_the_way.parent.mkdir()
    in_the_way.write_text("no directory")
    with pytest.raises(ManytuneError, match=in_the_way.name):
        run_study(study, tmp_path, executor=place, progress=Listener())
    assert not (tmp_path / "lock").exists()
    in_the_way.unlink()
    assert plan_runs(study)[0].id not in Store.open(tmp_path).finished_runs()
