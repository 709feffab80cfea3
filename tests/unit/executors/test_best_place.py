"""How many processes train a study where nobody says it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manytune.config import Study
from manytune.config.plan import plan_runs
from manytune.executors import Inline, Workers, auto, best_executor
from manytune.storage.directory import Store
from manytune.study import run_study
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware
from study_files import small_study, small_task
from tiny import make_tiny

TASK = "builtin-similarity"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Two slow threads, and memory in plenty."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(hardware, "free_memory", lambda device: 10**12)
    monkeypatch.setattr(auto, "_PRODUCTS_PER_SECOND", 1e10)
    yield monkeypatch
    # What trained with the two threads of before has left this process with them.
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def study(model: Path, method: str = "full", seeds: int = 2, steps: int = 10_000) -> Study:
    values = {"name": "s", "model": str(model), "tasks": [TASK], "seeds": list(range(seeds))}
    training = {"max_steps": steps, "precision": "fp32"}
    return Study.from_dict({**values, "training": training, "methods": [{"method": method, "learning_rate": 1e-3}]})


def chosen(what: Study, **changes: Any) -> Any:
    work: TaskWork = replace(prepare(what, TASK), **changes)
    return best_executor("auto", plan_runs(what), {TASK: work})


def test_runs_that_can_share_the_cores_do(model: Path) -> None:
    assert chosen(study(model)) == Workers(2, 1)


def test_one_pack_is_not_cut_for_them(model: Path) -> None:
    assert chosen(study(model, "bitfit", seeds=16)) == Inline("auto")


def test_one_run_gets_all_threads(model: Path) -> None:
    assert chosen(study(model, seeds=1)) == Inline("auto")


def test_a_short_study_does_not_wait_for_workers_to_start(model: Path) -> None:
    assert chosen(study(model, steps=2)) == Inline("auto")


def test_where_there_is_not_the_memory_there_is_one_process(model: Path, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(hardware, "free_memory", lambda device: 10**6)
    assert chosen(study(model)) == Inline("auto")


def test_one_thread_is_one_process(model: Path, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch, "get_num_threads", lambda: 1)
    assert chosen(study(model)) == Inline("auto")


def test_a_study_that_goes_on_does_so_as_it_was_begun(
    model: Path, tmp_path: Path, machine: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    what = small_study(model, tasks=[small_task(tmp_path)], training={"max_steps": 1, "precision": "fp32"})
    run_study(what, out, executor=Inline("cpu"), callbacks=[])
    store = Store.open(out)
    assert store.read_executor() == {"count": 0, "threads": 2}
    store.write_plan(store.read_plan() or (), {"count": 3, "threads": 1})
    store.reset_run(plan_runs(what)[0].id)
    opened: list[Workers] = []

    def instead(self: Workers, inputs: Any, callback: Any) -> Any:
        opened.append(self)
        return Inline("cpu").open(inputs, callback)

    monkeypatch.setattr(Workers, "open", instead)
    run_study(what, out, callbacks=[])
    assert opened == [Workers(3, 1)]
    assert store.read_executor() == {"count": 3, "threads": 1}
