"""Packs that have more runs than room: their runs join one after the other, wherever they train."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manytune import Callback, ManytuneError
from manytune.config import Study
from manytune.config.plan import Pack, packs_from_json, packs_to_json, plan_packs, plan_runs, smaller_packs
from manytune.executors import Inline, Workers
from manytune.executors.base import ExecutorSpec
from manytune.executors.driver import Driver
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord, RunState
from manytune.training.loop import train_pack
from manytune.training.workload import TaskWork, prepare
from study_files import results_in, small_study, small_task
from tiny import make_tiny

STEPS = (4, 2, 6, 3, 5)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("joined")
    training = {"max_steps": 4, "eval_every": 2, "batch_size": 8, "precision": "fp32"}
    seeds = list(range(len(STEPS)))
    return small_study(make_tiny(folder / "tiny"), tasks=[small_task(folder)], seeds=seeds, training=training)


@pytest.fixture(scope="module")
def work(study: Study) -> TaskWork:
    return prepare(study, "small")


def queue(study: Study, room: int | None = 2) -> Pack:
    """A pack of five runs, each with its own number of steps."""
    runs = [
        replace(run, training=study.training.model_copy(update={"max_steps": steps}))
        for run, steps in zip(plan_runs(study), STEPS, strict=True)
    ]
    return Pack("queue", "small", "adapters", tuple(runs), room=room)


class Seen(Callback):
    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.begun: list[tuple[int, int, int]] = []
        self.sizes: list[int] = []
        self.messages: list[str] = []

    def on_train_begin(self, pack_id: str, task: str, metric: str, runs: Any, total: int, first: int = 0) -> None:
        self.begun.append((len(runs), total, first))

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.sizes.append(len(losses))
        if step == self.stop_after:
            raise ManytuneError("stopped on purpose")

    def on_message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


def train(
    work: TaskWork, out: Path, pack: Pack, executor: ExecutorSpec | None = None, stop_after: int | None = None
) -> tuple[dict[str, RunRecord], Seen]:
    """Train what has no record yet; returns the records."""
    seen = Seen(stop_after)
    store = Store.create_or_open(out, work.study)
    if not store.read_plan():
        store.write_plan([pack])
    packs = store.read_plan()
    assert packs is not None
    inputs = PackInputs(store.root, {"small": work}, Backbones(work.study.model))
    Driver(inputs, packs, set(store.finished_runs()), seen).train(executor or Inline("cpu"), packs)
    return store.finished_runs(), seen


@pytest.fixture(scope="module")
def undisturbed(study: Study, work: TaskWork, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, train(work, out, queue(study))[1]


def test_records_say_how_each_run_trained(study: Study, undisturbed: tuple[Path, Seen]) -> None:
    out, seen = undisturbed
    records = Store.open(out).finished_runs()
    assert [record.steps for record in records.values()] == [*STEPS]
    assert [record.hyperparameters["training"]["max_steps"] for record in records.values()] == [*STEPS]
    assert {record.cost.pack_size for record in records.values()} == {2}
    assert {record.state for record in records.values()} == {RunState.FINISHED}
    # Runs 0 and 1; 2 joins after tick 2, 3 after tick 4, 4 after tick 7; 2 ends at tick 8, 4 at tick 12.
    assert seen.begun == [(5, 12, 0)]
    assert seen.sizes == [2] * 8 + [1] * 4
    assert not list(out.glob("packs/*"))


def test_a_worker_process_trains_them_to_the_same_end(
    study: Study, work: TaskWork, undisturbed: tuple[Path, Seen], tmp_path: Path
) -> None:
    train(work, tmp_path / "out", queue(study), Workers(1, 1))
    assert results_in(tmp_path / "out") == results_in(undisturbed[0])


def test_a_run_whose_record_was_lost_after_it_left_begins_anew(
    study: Study, work: TaskWork, undisturbed: tuple[Path, Seen], tmp_path: Path
) -> None:
    """By then checkpoints hold no tensors of it any more."""
    out = tmp_path / "out"
    with pytest.raises(ManytuneError, match="on purpose"):
        train(work, out, queue(study), stop_after=7)
    first = queue(study).runs[1].id
    store = Store.open(out)
    assert [*store.finished_runs()] == [queue(study).runs[0].id, first]
    shutil.rmtree(store.run_dir(first))
    records, seen = train(work, out, queue(study))
    assert [record.steps for record in records.values()] == [*STEPS]
    (begun,) = seen.begun
    assert begun[0] == 4
    best = Store.open(undisturbed[0]).finished_runs()[first].best_score
    assert records[first].best_score == pytest.approx(best, abs=1e-5)


def test_where_memory_runs_out_there_is_room_for_half_as_many(
    study: Study, work: TaskWork, undisturbed: tuple[Path, Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_few(*given: Any) -> Any:
        callback, room = given[-5], given[-1]
        if room > 2:
            on_step_end = callback.on_step_end

            def run_out(pack_id: str, step: int, losses: Sequence[float]) -> None:
                on_step_end(pack_id, step, losses)
                if step == 3:
                    raise MemoryError

            monkeypatch.setattr(callback, "on_step_end", run_out, raising=False)
        return train_pack(*given)

    monkeypatch.setattr("manytune.executors.job.train_pack", train_few)
    records, seen = train(work, tmp_path / "out", queue(study, room=3))
    assert "It is tried again in 2 packs of 3 runs and 2 runs" in " ".join(seen.messages)
    assert sum("goes on from step 2" in text for text in seen.messages) == 2
    there = Store.open(undisturbed[0]).finished_runs()
    for run_id, record in records.items():
        assert record.steps == there[run_id].steps
        assert record.best_score == pytest.approx(there[run_id].best_score, abs=1e-5)
    assert len(records) == 5


def test_a_plan_keeps_room_and_training_and_is_as_before_without(study: Study) -> None:
    pack = queue(study)
    assert packs_from_json(packs_to_json([pack])) == (pack,)
    plain = plan_packs(plan_runs(study), 4)
    values = packs_to_json(plain)
    assert packs_from_json(values) == plain
    assert not any("room" in pack for pack in values)
    assert not any("training" in run for pack in values for run in pack["runs"])


def test_parts_of_a_pack_with_room() -> None:
    runs = tuple(plan_runs(small_study(Path("m"), seeds=list(range(7)))))
    pack = Pack("p", "t", "adapters", runs, room=4)
    parts = smaller_packs(pack, {runs[0].id}, 16)
    assert [part.room for part in parts] == [2, 2]
    assert [len(part.runs) for part in parts] == [4, 3]
    assert {run.id for part in parts for run in part.runs} == {run.id for run in runs}
    assert {part.cut_from for part in parts} == {4}
    (one,) = smaller_packs(replace(pack, room=1), set(), 16)
    assert (one.runs, one.room, one.micro_batch) == (runs, 1, 8)
