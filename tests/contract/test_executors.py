"""What every executor promises, whatever trains the packs: the driver treats them alike."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callback_log import CallbackLog
from forked import ForkedProcess
from manytune.config import Study
from manytune.config.plan import plan_packs, plan_runs
from manytune.executors import Inline, Workers
from manytune.executors.base import ExecutorSpec
from manytune.executors.ray_executor import OnRay, Resources
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord, RunState
from manytune.study import run_study
from manytune.utils.errors import ManytuneError, StudyError
from manytune.utils.signals import Interrupted
from ray_cluster import connected_to
from study_files import results_in, small_study
from tiny import make_tiny


@pytest.fixture(params=["inline", "workers", "ray"])
def executor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> ExecutorSpec:
    if request.param == "inline":
        return Inline("cpu")
    if request.param == "workers":
        monkeypatch.setattr(subprocess, "Popen", ForkedProcess)  # tests/unit/executors/test_workers.py has fresh ones
        return Workers(2, threads=1)
    cluster = request.getfixturevalue("cluster")
    storage = f"file://{tmp_path_factory.mktemp('shared')}" if request.param == "ray with a storage" else None
    return OnRay(cluster.address, Resources(), storage)


@pytest.fixture(scope="module")
def cluster(cluster: Any) -> Iterator[Any]:
    """With this process connected to it all the time: its nodes' processes then serve one study after another."""
    with connected_to(cluster):
        yield cluster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study comes to in one process, under the plan of `planned`."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_study(planned(model, out), out, executor=Inline("cpu"), callbacks=[CallbackLog()])
    return results_in(out)


def small(model: Path, **changes: Any) -> Study:
    methods = [{"method": "lora", "rank": 2, "learning_rate": 1e-3}, {"method": "full", "learning_rate": 1e-4}]
    return small_study(model, **{"seeds": [0, 1, 2], "methods": methods, **changes})


def planned(model: Path, out: Path, **changes: Any) -> Study:
    """A study whose packs are planned: with another plan, results agree to rounding alone."""
    study = small(model, **changes)
    Store.create_or_open(out, study).write_plan(plan_packs(plan_runs(study), 2))
    return study


def test_a_cluster_that_is_not_there_is_refused_in_plain_words() -> None:
    """The first test of all on Ray: one that ran on this machine would be found."""
    pytest.importorskip("ray", reason="ray is not here: install the extra, `pip install manytune[ray]`")
    with pytest.raises(StudyError, match=r"--ray-address: auto cannot be reached"):
        OnRay("auto").profile("fp32", 32)


def test_a_study_comes_to_the_same_bits_wherever_it_is_trained(
    executor: ExecutorSpec, model: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    log = CallbackLog()
    study = planned(model, tmp_path)
    capacity, profile = executor.profile("fp32", 32)
    result = run_study(study, tmp_path, executor=executor, callbacks=[log])
    assert results_in(tmp_path) == undisturbed
    assert profile.device == "cpu"
    assert [record.run_id for record in result.records] == [run.id for run in plan_runs(study)]
    packs = [pack.id for pack in plan_packs(plan_runs(study), 2)]
    assert sorted(log.started) == sorted(packs)
    assert sorted(log.evaluations) == sorted((pack, step) for pack in packs for step in (2, 4, 6))
    assert log.ended == {run.id: "finished" for run in plan_runs(study)}
    assert log.records == {record.run_id: record for record in result.records}
    assert sorted(log.checkpoints) == sorted(log.evaluations)
    store = Store.open(tmp_path)
    assert {run_id: tuple(rows) for run_id, rows in log.rows.items()} == {
        record.run_id: store.read_history(record.run_id) for record in result.records
    }
    best = max(
        (row.metrics[record.primary_metric] or 0.0)
        for record in result.records
        for row in store.read_history(record.run_id)
    )
    assert max(score for _, score in filter(None, log.bests)) == best
    assert [(end.how, end.seconds is not None) for end in log.ends] == [("done", True)] * len(packs)
    assert log.begun == [(packs, [])]
    assert log.open == 0
    assert log.most <= capacity
    assert list((tmp_path / "packs").iterdir()) == []
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("executor", ["inline", "workers", "ray with a storage"], indirect=True)
def test_asked_to_stop_every_pack_stops_where_it_can_go_on(
    executor: ExecutorSpec, model: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    number = signal.SIGTERM

    class Asking(CallbackLog):
        def on_evaluate(self, pack_id: str, step: int, *values: Any) -> None:
            super().on_evaluate(pack_id, step, *values)
            if step == 4:
                os.kill(os.getpid(), number)

    study, log = planned(model, tmp_path), Asking()
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as interrupt:
        run_study(study, tmp_path, executor=executor, callbacks=[log])
    assert interrupt.value.number == number
    assert signal.getsignal(number) is before
    assert not (tmp_path / "lock").exists()
    assert 0 < len(log.started) < 5 or len(log.ended) < 6
    again = CallbackLog()
    run_study(study, tmp_path, executor=executor, callbacks=[again])
    assert any("goes on from step" in text for text in again.messages) or not set(again.started) & set(log.started)
    assert results_in(tmp_path) == undisturbed


def test_runs_that_fail_are_recorded_and_the_others_go_on(executor: ExecutorSpec, model: Path, tmp_path: Path) -> None:
    methods = [{"method": "lora", "rank": 2, "learning_rate": [1e-3, 1e30]}]
    study = small(model, seeds=[0], methods=methods)
    result = run_study(study, tmp_path, executor=executor, callbacks=[CallbackLog()])
    assert [record.state for record in result.records] == [RunState.FINISHED, RunState.FAILED]
    assert "learning rate that is too high" in (result.failed[0].failure or "")


def test_a_search_has_the_same_trials_wherever_they_train(
    executor: ExecutorSpec, model: Path, tmp_path: Path, searched: dict[str, RunRecord]
) -> None:
    """Who is pruned depends on when others arrive; those that never are come to the same scores, to rounding."""
    run_study(search(model), tmp_path, executor=executor, callbacks=[CallbackLog()])
    found = Store.open(tmp_path).finished_runs()
    assert found.keys() == searched.keys()
    for run_id, record in found.items():
        assert record.trial is not None
        if record.trial.unpruned:
            assert record.best_score == pytest.approx(searched[run_id].best_score, abs=1e-4)
        if record.state is RunState.PRUNED:
            assert not record.trial.rungs[-1].kept
            assert (record.steps or 0) >= record.trial.rungs[-1].step
        else:
            assert record.steps == record.trial.total_steps
            late = not isinstance(executor, Inline)  # elsewhere, a run may end before it learns that it is to leave
            assert late or all(rung.kept for rung in record.trial.rungs)
    assert RunState.FINISHED in {record.state for record in found.values()}


def search(model: Path) -> Study:
    methods = [
        {"method": "lora", "rank": 2, "learning_rate": {"low": 1e-4, "high": 1e-1}},
        {"method": "full", "learning_rate": {"low": 1e-5, "high": 1e-3}},
    ]
    return Study.from_dict(
        {
            "name": "searched",
            "model": str(model),
            "tasks": ["builtin-similarity"],
            "limit": 60,
            "training": {"epochs": 3, "batch_size": 8, "eval_every": 7, "precision": "fp32", "max_pack": 3},
            "methods": methods,
            "search": {"trials": 6},
            "confirm": "none",
        }
    )


@pytest.fixture(scope="module")
def searched(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    """The records of the search in one process."""
    out = tmp_path_factory.mktemp("searched") / "out"
    run_study(search(model), out, executor=Inline("cpu"), callbacks=[CallbackLog()])
    return Store.open(out).finished_runs()


def test_what_a_user_can_mend_ends_the_study(executor: ExecutorSpec, model: Path, tmp_path: Path) -> None:
    study = planned(model, tmp_path)
    in_the_way = Store.open(tmp_path).run_dir(plan_runs(study)[0].id)
    in_the_way.parent.mkdir()
    in_the_way.write_text("no directory")
    with pytest.raises(ManytuneError, match=in_the_way.name):
        run_study(study, tmp_path, executor=executor, callbacks=[CallbackLog()])
    assert not (tmp_path / "lock").exists()
    in_the_way.unlink()
    assert plan_runs(study)[0].id not in Store.open(tmp_path).finished_runs()


def test_what_a_users_callback_raises_ends_the_study_and_fails_no_run(
    executor: ExecutorSpec, model: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    class Broken(CallbackLog):
        def on_evaluate(self, pack_id: str, step: int, *values: Any) -> None:
            if step == 4:
                raise ValueError("no such figure")

    study, broken = planned(model, tmp_path), Broken()
    with pytest.raises(ManytuneError, match="The callback Broken failed in on_evaluate: ValueError: no such figure"):
        run_study(study, tmp_path, executor=executor, callbacks=[broken])
    assert broken.open == 0
    assert not (tmp_path / "lock").exists()
    run_study(study, tmp_path, executor=executor, callbacks=[])
    assert results_in(tmp_path) == undisturbed
