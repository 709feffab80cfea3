"""A study from its first pack to its last record, with very small models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from callback_log import CallbackLog
from manytune.config import Study
from manytune.config.plan import Run, plan_packs, plan_runs
from manytune.data import metrics
from manytune.executors.job import PackJob
from manytune.report.guard import ReportWarning
from manytune.report.writing import write_report
from manytune.storage.directory import Store
from manytune.storage.lock import Lock
from manytune.storage.record import RunState
from manytune.study import StudyResult, run_study
from manytune.training import snapshot
from manytune.training.evaluation import Evaluation, evaluate
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Checkpoint, Outcome
from manytune.utils.errors import DataError, ManytuneError, StoreError
from study_files import small_task
from tiny import make_tiny

TASK = "small"
LORA = {"method": "lora", "rank": 2, "learning_rate": 1e-3}
HEAD = {"method": "head", "learning_rate": 1e-3}
ONE_STEP = {"max_steps": 1, "precision": "fp32"}
FINISHED, FAILED, COLLAPSED = RunState.FINISHED, RunState.FAILED, RunState.COLLAPSED

Evaluate = Callable[..., tuple[Evaluation, ...]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def small(model: Path, methods: Sequence[Mapping[str, Any]] = (LORA,), **changes: Any) -> Study:
    return Study.from_dict(
        {
            "name": "small",
            "model": str(model),
            "tasks": [small_task(model)],
            "seeds": [0, 1],
            "training": {"max_steps": 2, "eval_every": 1, "precision": "fp32"},
            "methods": list(methods),
            **changes,
        }
    )


def run(study: Study, out: Path) -> tuple[StudyResult, CallbackLog]:
    log = CallbackLog()
    return run_study(study, out, device="cpu", callbacks=[log]), log


def test_what_is_no_study_is_refused_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"takes a Study, not 'study\.yaml' \(str\): make one with Study\.from_file"):
        run_study("study.yaml", tmp_path)  # type: ignore[arg-type]


# Scores


def constant(*args: Any, **options: Any) -> tuple[Evaluation, ...]:
    """An evaluation that finds every run's prediction constant."""
    found = evaluate(*args, **options)
    return tuple(replace(each, collapsed=True, scores=dict.fromkeys(each.scores, 0.0)) for each in found)


def test_a_run_that_is_constant_on_the_selecting_rows_alone_has_not_collapsed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manytune.training.loop.evaluate", constant)
    result, log = run(small(tiny, selection="train-split"), tmp_path)
    assert [record.state for record in result.records] == [FINISHED, FINISHED]
    assert all(record.best_score for record in result.records)
    assert log.ended == {record.run_id: "finished" for record in result.records}


def test_a_run_that_is_constant_on_dev_has_collapsed_and_scores_0(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manytune.executors.job.evaluate", constant)
    result, log = run(small(tiny, tasks=["builtin-similarity"], selection="train-split"), tmp_path)
    assert [(record.state, record.best_score) for record in result.records] == [(COLLAPSED, 0.0)] * 2
    for record in result.records:
        assert log.records[record.run_id] == record
        assert record.notes[0] == (
            "It predicts one constant for all dev rows (Pearson 0.000), whatever their text. "
            "It took only 2 steps: train longer."
        )


def test_the_snapshot_is_scored_as_it_lies_on_the_disk(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = snapshot.save

    def spoil(directory: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
        return save(directory, {name: torch.zeros_like(tensor) for name, tensor in state.items()}, facts)

    monkeypatch.setattr(snapshot, "save", spoil)
    result, _ = run(small(tiny), tmp_path)
    assert [(record.state, record.best_score) for record in result.records] == [(COLLAPSED, 0.0)] * 2


@pytest.mark.parametrize(("selection", "times"), [("dev", 2), ("train-split", 1)])
def test_with_a_split_of_train_dev_is_scored_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, times: int
) -> None:
    """The last tensors are scored on dev only where dev selects: else their score there is not known."""
    rates = iter([0.2, 0.1] * 2)  # the first evaluation is the best one, so that the last tensors are others

    def falling(model: Any, task: Any, data: Any, rows: Any) -> tuple[Evaluation, ...]:
        found = evaluate(model, task, data, rows)
        rate = next(rates)
        return tuple(replace(each, scores=dict.fromkeys(each.scores, rate)) for each in found)

    scored: list[int] = []

    def counted(model: Any, task: Any, data: Any, rows: Any) -> tuple[Evaluation, ...]:
        scored.append(len(rows[0]))
        return evaluate(model, task, data, rows)

    monkeypatch.setattr("manytune.training.loop.evaluate", falling)
    monkeypatch.setattr("manytune.executors.job.evaluate", counted)
    result, _ = run(small(tiny, seeds=[0], selection=selection), tmp_path)
    (record,) = result.records
    assert len(scored) == times
    assert record.best_score is not None
    assert (record.last_score is None) is (selection == "train-split")
    assert (record.last_scores == {}) is (selection == "train-split")


def test_the_best_run_is_best_by_the_metrics_own_direction(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = metrics.Metric("pearson", "Error", False, lambda predictions, labels: 0.0)
    monkeypatch.setattr(metrics, "METRICS", {**metrics.METRICS, "pearson": error})
    scores = iter([(0.3, 0.1), (0.2, 0.4)])

    def falling(model: Any, task: Any, data: Any, rows: Any) -> tuple[Evaluation, ...]:
        found = evaluate(model, task, data, rows)
        return tuple(replace(e, scores={"pearson": score}) for e, score in zip(found, next(scores), strict=True))

    monkeypatch.setattr("manytune.training.loop.evaluate", falling)
    result, log = run(small(tiny), tmp_path)
    assert log.bests == [(result.records[1].run_id, 0.1)] * 2


def test_peak_memory_is_trainings_and_not_that_of_the_scores_after_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = {"bytes": 0}

    class Memory:
        def __init__(self, device: torch.device) -> None:
            peak["bytes"] = 70

        def bytes(self) -> int:
            return peak["bytes"]

    def train(*args: Any) -> list[Outcome]:
        peak["bytes"] = 100
        return train_pack(*args)

    def score(*args: Any) -> tuple[Evaluation, ...]:
        peak["bytes"] = 10_000
        return evaluate(*args)

    monkeypatch.setattr("manytune.utils.hardware.PeakMemory", Memory)
    monkeypatch.setattr("manytune.executors.job.train_pack", train)
    monkeypatch.setattr("manytune.executors.job.evaluate", score)
    result, _ = run(small(tiny), tmp_path)
    assert [record.cost.peak_memory_bytes for record in result.records] == [100, 100]


# Failures


def failing(error: Exception, *, after: int = 0) -> Callable[..., list[Outcome]]:
    """A training of packs that raises in the first of them, when `after` of its runs have ended."""
    calls = []

    def train(
        model: Any, runs: Sequence[Run], task: Any, data: PackData, training: Any, log: Any, *others: Any
    ) -> list[Outcome]:
        calls.append(runs)
        if len(calls) > 1:
            return train_pack(model, runs, task, data, training, log, *others)
        for each in runs[:after]:
            log.on_run_trained(Outcome(each, state=FAILED, failure="Its own reason."))
        raise error

    return train


def test_whatever_breaks_a_pack_is_recorded_and_the_next_one_trains(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("the device is gone\nand more of it")
    monkeypatch.setattr("manytune.executors.job.train_pack", failing(error, after=1))
    result, log = run(small(tiny, [LORA, HEAD]), tmp_path)
    lora, head = result.records[:2], result.records[2:]
    assert [record.failure for record in lora] == ["Its own reason.", "RuntimeError: the device is gone"]
    assert [record.state for record in head] == [FINISHED, FINISHED]
    assert result.failed == lora
    for record in lora:
        assert log.records[record.run_id] == record
        assert (record.steps, record.best_score, record.cost.train_seconds) == (None, None, None)
        assert record.parameters.trainable
    assert len(log.packs) == 2

    again, _ = run(small(tiny, [LORA, HEAD]), tmp_path)
    assert again.records == result.records


def test_where_a_pack_broke_is_kept(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manytune.executors.job.train_pack", failing(RuntimeError("the device is gone")))
    run(small(tiny), tmp_path)
    (kept,) = tmp_path.glob("packs/*/traceback.txt")
    assert kept.read_text().startswith("Traceback ")
    assert "RuntimeError: the device is gone" in kept.read_text()


def test_runs_that_failed_are_tried_again_when_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = run(small(tiny, [LORA, HEAD]), tmp_path / "undisturbed")
    with monkeypatch.context() as patched:
        patched.setattr("manytune.executors.job.train_pack", failing(RuntimeError("the device is gone")))
        result, _ = run(small(tiny, [LORA, HEAD]), tmp_path / "out")
        assert len(result.failed) == 2
    untouched = result.records[2:]
    log = CallbackLog()
    again = run_study(small(tiny, [LORA, HEAD]), tmp_path / "out", device="cpu", callbacks=[log], retry_failed=True)
    assert again.failed == ()
    assert again.records[2:] == untouched
    assert [r.best_score for r in again.records] == [r.best_score for r in undisturbed.records]
    assert len(log.packs) == 1
    assert not list(tmp_path.glob("out/packs/*"))


@pytest.mark.parametrize("left", [0, 1])
def test_a_checkpoint_that_is_of_no_use_any_more_is_removed(tiny: Path, tmp_path: Path, left: int) -> None:
    """Its process was killed between its last record and this; `left` packs are still to be trained."""
    study = small(tiny, [LORA, HEAD])
    result, _ = run(study, tmp_path)
    packs = Store.open(tmp_path).read_plan()
    assert packs is not None
    stale = tmp_path / "packs" / packs[0].id
    stale.mkdir()
    (stale / "000000002.json").write_text("{}")
    for record in result.records[2 : 2 + 2 * left]:
        Store.open(tmp_path).reset_run(record.run_id)
    run(study, tmp_path)
    assert list((tmp_path / "packs").iterdir()) == []
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    ("fact", "source", "first", "second"),
    [
        ("kernels", "kernel_path", "compiled", "plain"),
        ("accelerator", "hardware.accelerator_arithmetic", "NVIDIA A100, CUDA 13.0", "NVIDIA H100, CUDA 13.0"),
    ],
    ids=["kernels", "GPU"],
)
def test_under_other_kernels_a_pack_starts_anew_and_keeps_its_own_checkpoints(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fact: str, source: str, first: str, second: str
) -> None:
    training = {"max_steps": 6, "eval_every": 2, "precision": "fp32"}
    study = small(tiny, training=training)
    stopping_at = [4]

    class Stopping(CallbackLog):
        def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
            if step == stopping_at[0] + 1:
                raise KeyboardInterrupt

    def start(here: str) -> Stopping:
        monkeypatch.setattr(f"manytune.executors.job.{source}", lambda device: here)
        log = Stopping()
        with suppress(KeyboardInterrupt):
            run_study(study, tmp_path / "out", device="cpu", callbacks=[log])
        return log

    start(first)
    stopping_at[0] = 2
    (message,) = start(second).messages
    assert f"was begun with {fact}: {first}, and here it is {second}" in message
    stopping_at[0] = 6
    (message,) = start(second).messages
    assert message.endswith("goes on from step 2.")
    undisturbed, _ = run(study, tmp_path / "undisturbed")
    records = Store.open(tmp_path / "out").finished_runs().values()
    assert [r.best_score for r in records] == [r.best_score for r in undisturbed.records]


def test_a_run_whose_batches_would_change_on_its_way_starts_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more training rows the same step lies elsewhere in another pass."""
    own = {"name": "own", "train": "own.csv", "dev": "dev.csv", "text": ["text"], "label": "y", "type": "regression"}
    training = {"max_steps": 6, "eval_every": 2, "precision": "fp32"}
    study = small(tiny, tasks=[own], training=training)
    monkeypatch.chdir(tmp_path)
    lines = [f"text number {index},{index * 37 % 11}" for index in range(80)]
    (tmp_path / "dev.csv").write_text("\n".join(["text,y", *lines[60:]]))

    class Stopping(CallbackLog):
        def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
            if step == 5 and not self.packs[1:]:
                raise KeyboardInterrupt

    log = Stopping()
    for rows in (40, 60):
        (tmp_path / "own.csv").write_text("\n".join(["text,y", *lines[:rows]]))
        with suppress(KeyboardInterrupt):
            result = run_study(study, tmp_path / "out", device="cpu", callbacks=[log], accept_changes=True)
    assert any("was begun with batch: 1, and here it is 0. A run never changes" in message for message in log.messages)
    assert [record.steps for record in result.records] == [6, 6]
    undisturbed = run_study(study, tmp_path / "undisturbed", device="cpu", callbacks=[CallbackLog()])
    assert [r.best_score for r in result.records] == [r.best_score for r in undisturbed.records]


# Memory


def needing(rows: dict[int, int], error: Exception) -> Callable[..., list[Outcome]]:
    """A training for which memory runs out where more runs, or rows of one, go through at once than these."""
    most_runs, most_rows = next(iter(rows.items()))

    def train(model: Any, runs: Sequence[Run], task: Any, data: PackData, training: Any, *others: Any) -> list[Outcome]:
        if len(runs) > most_runs or any(each.batch_size > most_rows for each in training):
            raise error
        return train_pack(model, runs, task, data, training, *others)

    return train


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_a_pack_for_which_memory_runs_out_is_cut_and_tried_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    study = small(tiny, seeds=[0, 1, 2, 3, 4])
    undisturbed, _ = run(study, tmp_path / "undisturbed")
    monkeypatch.setattr("manytune.executors.job.train_pack", needing({2: 16}, error))
    result, log = run(study, tmp_path / "out")
    assert result.failed == ()
    sizes = [record.cost.pack_size for record in result.records]
    assert sorted(sizes) == [1, 2, 2, 2, 2]  # type: ignore[type-var]
    assert log.messages[0].endswith("It is tried again in 2 packs of 2 runs and 3 runs.")
    for record, alone in zip(result.records, undisturbed.records, strict=True):
        assert record.best_score == pytest.approx(alone.best_score, abs=1e-4)
        assert record.notes == [f"Memory ran out in a pack of 5 runs, so it trained in one of {record.cost.pack_size}."]
    packs = Store.open(tmp_path / "out").read_plan()
    assert packs is not None
    assert [len(pack.runs) for pack in packs] == [2, 1, 2]
    assert not list(tmp_path.glob("out/packs/*"))


def test_of_one_run_the_batch_is_cut(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, _ = run(small(tiny), tmp_path / "undisturbed")
    monkeypatch.setattr("manytune.executors.job.train_pack", needing({1: 4}, MemoryError()))
    result, log = run(small(tiny), tmp_path / "out")
    assert [text.partition("tried again in ")[2] for text in log.messages] == [
        "2 packs of 1 run and 1 run.",
        *["parts of 8 rows of the batch.", "parts of 4 rows of the batch."] * 2,
    ]
    for record, alone in zip(result.records, undisturbed.records, strict=True):
        assert record.best_score == pytest.approx(alone.best_score, abs=1e-4)
        assert record.steps == alone.steps
        assert record.hyperparameters == alone.hyperparameters
        (note,) = record.notes
        assert note.endswith("trained in one of 1, its batch in parts of 4 rows.")
    packs = Store.open(tmp_path / "out").read_plan()
    assert packs is not None
    assert [pack.id.split(".")[1:] for pack in packs] == [["1", "m4"], ["2", "m4"]]


@pytest.mark.parametrize(("seeds", "parts"), [([0, 1, 2], "2 packs of 1 run and 2 runs"), ([0], "parts of 8 rows")])
def test_what_a_pack_was_cut_into_goes_on_from_its_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: list[int], parts: str
) -> None:
    keep = PackJob.save_checkpoint

    def then_run_out(job: PackJob, checkpoint: Checkpoint) -> None:
        keep(job, checkpoint)
        if job.pack.cut_from is None and checkpoint.step == 2:
            raise MemoryError

    study = small(tiny, seeds=seeds, training={"max_steps": 4, "eval_every": 2, "precision": "fp32"})
    undisturbed, _ = run(study, tmp_path / "undisturbed")
    monkeypatch.setattr(PackJob, "save_checkpoint", then_run_out)
    result, log = run(study, tmp_path / "out")
    assert f"It is tried again in {parts}" in log.messages[0]
    assert len(log.messages) == len(log.packs)
    assert all(text.endswith("goes on from step 2.") for text in log.messages[1:])
    store = Store.open(tmp_path / "out")
    for record, alone in zip(result.records, undisturbed.records, strict=True):
        assert record.best_score == pytest.approx(alone.best_score, abs=1e-4)
        assert [row.step for row in store.read_history(record.run_id)] == [2, 4]
    assert not list(tmp_path.glob("out/packs/*"))


def test_where_not_even_a_row_fits_the_record_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manytune.executors.job.train_pack", needing({1: 0}, MemoryError()))
    result, _ = run(small(tiny, seeds=[0]), tmp_path)
    (record,) = result.failed
    assert (record.failure or "").startswith("MemoryError: no message. Not even one row at a time fits")


def killed(study: Study, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a study as a process does that is killed when its first pack has begun."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("manytune.executors.job.train_pack", die)
        with pytest.raises(KeyboardInterrupt):
            run(study, out)


def test_a_process_that_the_system_killed_for_memory_is_not_started_like_that_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(["boot 3", "boot 4", "boot 4", "boot 4"])
    monkeypatch.setattr("manytune.utils.hardware.oom_kills", lambda: next(kills))

    killed(small(tiny), tmp_path, monkeypatch)
    result, log = run(small(tiny), tmp_path)
    assert log.messages[0].endswith("because memory ran out. It is tried again in 2 packs of 1 run and 1 run.")
    assert [record.cost.pack_size for record in result.records] == [1, 1]


@pytest.mark.parametrize("later", ["boot 3", "another-boot 4", None])
def test_a_process_that_was_just_killed_goes_on_as_planned(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: str | None
) -> None:
    monkeypatch.setattr("manytune.utils.hardware.oom_kills", lambda: "boot 3")

    killed(small(tiny), tmp_path, monkeypatch)
    monkeypatch.setattr("manytune.utils.hardware.oom_kills", lambda: later)
    result, _ = run(small(tiny), tmp_path)
    assert [record.cost.pack_size for record in result.records] == [2, 2]


# What has changed


def test_another_study_is_refused_or_accepted_and_what_is_in_both_is_kept(tiny: Path, tmp_path: Path) -> None:
    first, _ = run(small(tiny), tmp_path)
    changed = small(tiny, [LORA, HEAD], seeds=[1, 2])
    with pytest.raises(StoreError, match=r"seeds: \[0, 1\] there, \[1, 2\] here(.|\n)*--accept-changes"):
        run(changed, tmp_path)
    log = CallbackLog()
    result = run_study(changed, tmp_path, device="cpu", callbacks=[log], accept_changes=True)
    by_id = {record.run_id: record for record in result.records}
    assert by_id[first.records[1].run_id] == first.records[1]
    assert by_id.keys() == {run.id for run in plan_runs(changed)}
    assert Store.open(tmp_path).read_record(first.records[0].run_id) == first.records[0]  # not lost
    assert log.messages[0] == "1 of 4 runs has ended before."
    gone = f"1 run of before, such as {first.records[0].run_id}, no longer part of the study: in no table or report."
    assert gone in " ".join(log.messages)
    structure = Store.open(tmp_path).task_artifacts(TASK).structure()
    assert structure is not None
    assert set(structure.trained) == {run.label for run in plan_runs(changed)}
    assert Store.open(tmp_path).study() == changed
    assert run(changed, tmp_path)[0].records == result.records


def test_what_is_removed_from_a_finished_study_leaves_table_status_and_report(tiny: Path, tmp_path: Path) -> None:
    whole = small(tiny, [LORA, HEAD], tasks=[small_task(tiny), "builtin-acceptability"], training=ONE_STEP)
    first, _ = run(whole, tmp_path)
    assert len(first.records) == 8
    less = small(tiny, [LORA], training=ONE_STEP)
    log = CallbackLog()
    result = run_study(less, tmp_path, device="cpu", callbacks=[log], accept_changes=True)
    wanted = {run.id for run in plan_runs(less)}
    assert {record.run_id for record in result.records} == wanted
    assert [table.task for table in result.tables] == [TASK]
    store = Store.open(tmp_path)
    assert store.study() == less
    status = store.status()
    assert ({row.run_id for row in status.runs}, status.planned, status.counts["finished"]) == (wanted, 2, 2)
    assert len(status.unplanned) == 6
    page, _ = write_report([tmp_path])
    assert "acceptability" not in page.read_text()
    again, log = run(less, tmp_path)
    assert (again.records, log.messages) == (result.records, ["2 of 2 runs have ended before."])
    # Nothing was lost: accepted the other way, they count again, and none is trained anew.
    back = run_study(whole, tmp_path, device="cpu", callbacks=[log := CallbackLog()], accept_changes=True)
    assert (back.records, log.packs) == (first.records, [])


def test_changes_to_a_users_own_task_are_taken_back_whole(tiny: Path, tmp_path: Path) -> None:
    """Other classes, rows and methods, and back: what runs had learned and were scored on is theirs again."""

    def study(classes: Sequence[str], *methods: Mapping[str, Any]) -> Study:
        data = tmp_path / f"{'-'.join(classes)}.csv"
        rows = [f"item {classes[0]} {place},{classes[place % len(classes)]}" for place in range(40)]
        data.write_text("\n".join(["text,label", *rows]) + "\n")
        own = {"name": "own", "train": str(data), "dev": 0.25, "text": ["text"], "label": "label"}
        return small(tiny, methods, tasks=[own], seeds=[0], training=ONE_STEP)

    out = tmp_path / "out"
    three, two = ("x", "y", "z"), ("x", "y")
    first, _ = run(study(three, LORA), out)
    files = {name: (out / name).read_bytes() for name in ("provenance.json", "tasks/own/learned.json", "plan.json")}
    texts = Store.open(out).task_artifacts("own").examples()
    run_study(study(two, HEAD), out, device="cpu", callbacks=[CallbackLog()], accept_changes=True)
    dev = Store.open(out).task_artifacts("own").examples()
    assert dev is not None
    assert {text for (text,) in dev.texts} <= {f"item x {place}" for place in range(40)}
    assert set(dev.labels) <= {0, 1}, "rows of the runs that the study has now"
    with pytest.raises(StoreError, match="Task own: its data has other classes"):
        run_study(study(two, HEAD, LORA), out, device="cpu", callbacks=[CallbackLog()], accept_changes=True)
    assert Store.open(out).study() == study(two, HEAD), "nothing was written"
    back = run_study(study(three, LORA), out, device="cpu", callbacks=[log := CallbackLog()], accept_changes=True)
    assert (back.records, log.packs) == (first.records, [])
    assert {name: (out / name).read_bytes() for name in files} == files
    assert Store.open(out).task_artifacts("own").examples() == texts


def test_classes_that_were_edited_are_made_anew_from_the_data(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "own.csv"
    data.write_text("text,label\n" + "".join(f"item {place},{'no' if place % 2 else 'yes'}\n" for place in range(40)))
    own = {"name": "own", "train": str(data), "dev": 0.25, "text": ["text"], "label": "label"}
    study = small(tiny, tasks=[own], seeds=[0], training=ONE_STEP)
    run(study, tmp_path / "out")
    path = tmp_path / "out" / "tasks" / "own" / "learned.json"
    kept = path.read_text()
    path.write_text(kept.replace("no", "?").replace("yes", "no").replace("?", "yes"))
    with pytest.warns(ReportWarning, match=r"Without the classes of own: .*learned\.json is not what the run own-"):
        write_report([tmp_path / "out"])
    _, log = run(study, tmp_path / "out")
    assert (path.read_text(), log.packs) == (kept, [])


def test_a_finished_study_that_may_not_be_written_to_is_read(tiny: Path, tmp_path: Path) -> None:
    first, _ = run(small(tiny), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    assert run(small(tiny), tmp_path)[0].records == first.records
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before


def test_who_is_refused_has_written_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process takes the lock right after this one has looked."""
    theirs, mine = small(tiny, name="theirs"), small(tiny, name="mine")
    look = Lock.look
    with ExitStack() as stack:

        def look_too_early(lock: Lock) -> None:
            monkeypatch.setattr(Lock, "look", look)
            stack.enter_context(Lock(tmp_path, print).held())
            Store.create_or_open(tmp_path, theirs)

        monkeypatch.setattr(Lock, "look", look_too_early)
        with pytest.raises(StoreError, match="is in use"):
            run_study(mine, tmp_path, device="cpu", callbacks=[CallbackLog()], accept_changes=True)
        assert Store.open(tmp_path).study() == theirs
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "study.yaml"]


def test_a_process_that_holds_the_lock_of_an_empty_directory_is_named(tiny: Path, tmp_path: Path) -> None:
    with Lock(tmp_path, print).held(), pytest.raises(StoreError, match="is in use"):
        run(small(tiny), tmp_path)


def test_what_is_refused_leaves_no_directory_behind(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ManytuneError):
        run(small(tiny, [{**LORA, "targets": ["no-such-layer"]}]), tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []


def test_who_has_lost_the_lock_writes_no_record(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def and_lose(*args: Any) -> Any:
        (tmp_path / "lock").write_text("{}")
        return train_pack(*args)

    monkeypatch.setattr("manytune.executors.job.train_pack", and_lose)
    with pytest.raises(StoreError, match=r"has taken .* over"):
        run(small(tiny), tmp_path)
    assert Store.open(tmp_path).finished_runs() == {}
    assert (tmp_path / "lock").read_text() == "{}"  # the other's, still


@pytest.mark.parametrize(("kind", "name"), [("versions", "torch"), ("data", TASK)])
def test_other_versions_or_data_are_refused_or_accepted(tiny: Path, tmp_path: Path, kind: str, name: str) -> None:
    first, _ = run(small(tiny), tmp_path)
    Store.open(tmp_path).reset_run(first.records[0].run_id)
    there = json.loads((tmp_path / "provenance.json").read_text())
    here = there[kind][name]
    there[kind][name] = "another"
    (tmp_path / "provenance.json").write_text(json.dumps(there))
    with pytest.raises(
        StoreError, match=rf'{kind}.{name}: "another" there, "{re.escape(here)}" here(.|\n)*--accept-changes'
    ):
        run(small(tiny), tmp_path)
    log = CallbackLog()
    run_study(small(tiny), tmp_path, device="cpu", callbacks=[log], accept_changes=True)
    assert any(text.startswith("Accepted changes:") for text in log.messages)
    assert json.loads((tmp_path / "provenance.json").read_text())[kind][name] == here


def test_a_directory_of_an_earlier_version_is_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    """It has ground.json, and in its plan "place"; what they say counts until the first start writes the new ones."""
    first, _ = run(small(tiny), tmp_path)
    Store.open(tmp_path).reset_run(first.records[0].run_id)
    there = json.loads((tmp_path / "provenance.json").read_text())
    there["data"][TASK] = "another"
    (tmp_path / "ground.json").write_text(json.dumps(there))
    (tmp_path / "provenance.json").unlink()
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["place"] = plan.pop("executor")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert Store.open(tmp_path).read_executor() == plan["place"]
    with pytest.raises(StoreError, match=f'data.{TASK}: "another" there'):
        run(small(tiny), tmp_path)
    run_study(small(tiny), tmp_path, device="cpu", callbacks=[], accept_changes=True)
    assert json.loads((tmp_path / "provenance.json").read_text())["data"][TASK] != "another"
    plan["executor"] = plan.pop("place")
    assert json.loads((tmp_path / "plan.json").read_text()) == plan


def test_provenance_that_is_damaged_is_reported(tiny: Path, tmp_path: Path) -> None:
    first, _ = run(small(tiny), tmp_path)
    Store.open(tmp_path).reset_run(first.records[0].run_id)
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(StoreError, match=r"provenance\.json is damaged"):
        run(small(tiny), tmp_path)


@pytest.mark.parametrize("error", [DataError("The disk is full."), KeyboardInterrupt()], ids=["mendable", "interrupt"])
def test_what_a_user_does_or_can_mend_ends_the_study(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    monkeypatch.setattr("manytune.executors.job.train_pack", failing(error))
    with pytest.raises(type(error)):
        run(small(tiny), tmp_path)
    assert Store.open(tmp_path).finished_runs() == {}


# What the plan, the data and the weights say


def test_a_plan_that_was_stored_is_obeyed(tiny: Path, tmp_path: Path) -> None:
    study = small(tiny)
    apart = plan_packs(plan_runs(study), 1)
    Store.create_or_open(tmp_path, study).write_plan(apart)
    result, log = run(study, tmp_path)
    assert log.started == [pack.id for pack in apart]
    assert [record.cost.pack_size for record in result.records] == [1, 1]


def test_a_note_on_the_data_is_said_once_and_kept_in_every_record(tiny: Path, tmp_path: Path) -> None:
    study = small(tiny, training={"max_steps": 1, "max_length": 12, "precision": "fp32"})
    result, log = run(study, tmp_path)
    notes = [text for text in log.messages if "were cut at 12 tokens" in text]
    assert len(notes) == 1
    assert [record.notes for record in result.records] == [notes, notes]
    assert set(log.ended.values()) == {"finished"}


def test_a_pooler_that_the_weights_lack_is_the_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model on the hub it is not known before its weights are loaded."""
    folder = make_tiny(tmp_path / "model")
    weights = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "pooler" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    monkeypatch.setattr("manytune.models.loading.stored_shapes", lambda folder: {})
    study = small(folder, [HEAD], seeds=[0])
    result, _ = run(study, tmp_path / "out")
    (record,) = result.records
    pooler, classifier = 32 * 32 + 32, 32 + 1
    assert record.parameters.head == record.parameters.trainable == pooler + classifier
    state, _ = snapshot.load(Store.open(tmp_path / "out").snapshot_dir(record.run_id))
    assert set(state) == {
        f"{name}.{kind}" for name in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")
    }
