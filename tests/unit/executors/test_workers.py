"""Worker processes: their threads and cores, and what becomes of a pack whose process dies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from callback_log import CallbackLog
from forked import ForkedProcess
from manytune.config import Study
from manytune.config.plan import plan_packs, plan_runs
from manytune.executors import Inline, Workers
from manytune.executors.estimate import HardwareProfile
from manytune.executors.inline import train_here
from manytune.executors.messages import CallSender, encoded, replay
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.packing import PackedModel
from manytune.storage.directory import Store
from manytune.storage.record import HistoryRow, RunState
from manytune.study import StudyResult, run_study
from manytune.training.callbacks import Callback, ForwardingCallback, PackEnd
from manytune.training.workload import prepare
from manytune.utils import hardware
from manytune.utils.errors import ManytuneError, StudyError
from manytune.utils.signals import StopRequest
from record_factory import make_record
from study_files import results_in, small_study, write_small_study
from tiny import make_tiny
from waiting import until_brought_about

LORA = {"method": "lora", "rank": 2, "learning_rate": 1e-3}
FULL = {"method": "full", "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a process: each leads a session, as no other child of it does."""
    return [each for each in psutil.Process(pid).children() if os.getsid(each.pid) == each.pid]


class Watcher(CallbackLog):
    """Does something to the worker processes when a pack has been evaluated."""

    def __init__(self, act: Callable[[str, int], None] = lambda pack_id, step: None) -> None:
        super().__init__()
        self.act = act

    def on_evaluate(self, pack_id: str, step: int, *values: Any) -> None:
        super().on_evaluate(pack_id, step, *values)
        self.act(pack_id, step)


def run(study: Study, out: Path, act: Callable[[str, int], None], workers: Workers) -> tuple[StudyResult, Watcher]:
    log = Watcher(act)
    return run_study(study, out, executor=workers, callbacks=[log]), log


def kill_workers() -> None:
    for process in workers_of(os.getpid()):
        process.kill()  # and its driver alone waits for it


def test_a_pack_whose_process_was_killed_goes_on_from_its_checkpoint(model: Path, tmp_path: Path) -> None:
    study = small_study(model)
    run_study(study, tmp_path / "undisturbed", executor=Inline("cpu"), callbacks=[])
    killed: list[int] = []
    setups: list[tuple[list[int], str | None]] = []

    def kill_once(pack_id: str, step: int) -> None:
        if step == 4 and not killed:
            (worker,) = workers_of(os.getpid())
            setups.append((worker.cpu_affinity(), worker.environ().get("OMP_NUM_THREADS")))
            killed.append(worker.pid)
            kill_workers()

    result, log = run(study, tmp_path / "out", kill_once, Workers(1, threads=1))
    assert result.failed == ()
    assert len(killed) == 1
    assert setups == [([sorted(os.sched_getaffinity(0))[0]], "1")]
    assert any(text.endswith("its process was killed by SIGKILL. It goes on elsewhere.") for text in log.messages)
    assert any(re.search(r"goes on from step [24]\.", text) for text in log.messages)
    assert results_in(tmp_path / "out") == results_in(tmp_path / "undisturbed")
    assert workers_of(os.getpid()) == []


def test_after_three_deaths_a_pack_is_given_up_and_the_others_train(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", ForkedProcess)
    study = small_study(model, methods=[FULL, LORA], seeds=[0])
    deadly = next(pack.id for pack in plan_packs(plan_runs(study), 8) if pack.kind == "full")
    deaths: list[int] = []

    def kill(pack_id: str, step: int) -> None:
        if pack_id == deadly:
            deaths.append(step)
            kill_workers()

    result, log = run(study, tmp_path, kill, Workers(1, threads=1))
    assert len(deaths) == 3
    full, lora = result.records
    assert (full.state, lora.state) == (RunState.FAILED, RunState.FINISHED)
    assert full.failure == ("What trained it died 3 times, the last time because its process was killed by SIGKILL.")
    assert log.records[full.run_id] == full
    assert full.parameters.trainable


def test_a_pack_whose_process_the_system_killed_for_memory_is_cut(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", ForkedProcess)
    kills = {"count": 0}
    monkeypatch.setattr(hardware, "oom_kills", lambda: f"boot {kills['count']}")

    def kill_once(pack_id: str, step: int) -> None:
        if not kills["count"]:
            kills["count"] += 1
            kill_workers()

    result, log = run(small_study(model), tmp_path, kill_once, Workers(1, threads=1))
    assert [record.cost.pack_size for record in result.records] == [1, 1]
    assert any("because memory ran out. It is tried again in 2 packs of 1 run and 1 run." in t for t in log.messages)


_FAILING_WORKER = """
import sys
from pathlib import Path
import torch
from manytune.executors import worker_process
from manytune.packing import PackedModel

marker, forward, steps = Path(sys.argv[2]), PackedModel.forward, []

def failing(self, layout, *, step=None, run_keys=None):
    steps.extend([] if run_keys is None else [run_keys])
    if len(steps) == 5 and not marker.exists():
        marker.touch()
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    return forward(self, layout, step=step, run_keys=run_keys)

PackedModel.forward = failing
worker_process.main(int(sys.argv[1]))
"""
"""A worker process whose GPU fails once, in the fifth step; given the pipe, and a file that says that it has failed."""


class TestGpuThatFails:
    """After some errors a GPU refuses whatever the process asks of it: `hardware.has_lost_device`."""

    def test_a_fresh_worker_goes_on_with_the_pack(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study, failed = small_study(model), tmp_path / "failed"
        run_study(study, tmp_path / "undisturbed", executor=Inline("cpu"), callbacks=[])
        started: list[int] = []

        class Failing(ForkedProcess):
            def __init__(self, command: list[str], **named: Any) -> None:
                if "manytune.executors.worker_process" in command:
                    command = [sys.executable, "-c", _FAILING_WORKER, command[-1], str(failed)]
                super().__init__(command, **named)
                started.append(self.pid)

        monkeypatch.setattr(subprocess, "Popen", Failing)
        result, log = run(study, tmp_path / "out", lambda pack_id, step: None, Workers(1, threads=1))
        assert failed.exists()
        assert result.failed == ()
        assert [end.how for end in log.ends] == ["lost", "done"]
        assert "device-side assert" in (log.ends[0].traceback or "")
        said = "the GPU failed: AcceleratorError: CUDA error: device-side assert triggered. It goes on elsewhere."
        assert any(text.endswith(said) for text in log.messages)
        assert any("goes on from step 4." in text for text in log.messages)
        assert len(set(started)) == 2
        assert results_in(tmp_path / "out") == results_in(tmp_path / "undisturbed")

    def test_in_this_process_the_study_ends_and_says_how_it_goes_on(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study, log = small_study(model, methods=[FULL, LORA], seeds=[0]), CallbackLog()
        with monkeypatch.context() as patch:
            patch.setattr(PackedModel, "forward", _fail)
            with pytest.raises(
                ManytuneError, match=r"illegal memory access(?s:.*)Start the same command again"
            ) as raised:
                run_study(study, tmp_path, executor=Inline("cpu"), callbacks=[log])
        assert "--devices cpu:0 " in str(raised.value)
        assert len(log.started) == 1, "no other pack was tried"
        assert log.records == {}
        (kept,) = tmp_path.glob("packs/*/traceback.txt")
        assert "illegal memory access" in kept.read_text()
        assert run_study(study, tmp_path, executor=Inline("cpu"), callbacks=[]).failed == ()


def _fail(*_: Any, **__: Any) -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …")


def test_when_the_driver_is_killed_its_workers_end_at_once(model: Path, tmp_path: Path) -> None:
    file = write_small_study(tmp_path, model, {"max_steps": 100_000, "eval_every": 50_000, "checkpoint_every": 10})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "manytune", "run", str(file), "--out", str(out), "--workers", "2", "--quiet"]
    with ForkedProcess([*command, "training.max_pack=1"], stderr=subprocess.PIPE) as driver:
        until_brought_about(lambda: len(list(out.glob("packs/*/*.json"))) >= 2, driver)
        workers = workers_of(driver.pid)
        assert len(workers) == 2
        driver.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def test_one_worker_a_device_and_a_share_of_the_cores_each() -> None:
    capacity, profile = Workers(devices=("cpu", "cpu", "cpu")).profile("fp32", 32)
    assert (capacity, profile.device) == (3, "cpu")
    whole = Inline("cpu").profile("fp32", 32)[1]
    assert profile.free_bytes == pytest.approx(whole.free_bytes / 3, rel=0.2)


@pytest.mark.parametrize(
    ("devices", "sharing"), [(("cuda:0", "cuda:1"), 1), (("cuda", "cuda:0", "cuda:1"), 2), (("cuda:1",) * 3, 3)]
)
def test_workers_on_one_gpu_share_its_memory(
    devices: tuple[str, ...], sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "choose_device", lambda name, option: torch.device(name))
    asked: list[int] = []
    monkeypatch.setattr(HardwareProfile, "measure", lambda *_, threads, sharing: asked.append(sharing))
    Workers(devices=devices).profile("fp32", 32)
    assert asked == [sharing]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "--workers: it must be at least 1, not 0."),
        ({"count": 3, "devices": ("cpu", "cpu")}, "--workers: 3, but --devices names 2. Leave --workers out."),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        Workers(**values)


def test_a_device_that_is_not_there_is_refused_before_anything_starts(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"--devices: mps is not available|--devices: cuda:7 is not available"):
        run_study(
            small_study(model),
            tmp_path / "out",
            executor=Workers(devices=("cuda:7",)),
            callbacks=[],
        )
    assert not (tmp_path / "out").exists()


def test_what_is_sent_is_what_is_called() -> None:
    """Every call of the protocol, through JSON and back; of steps, four a second at most."""
    sent: list[dict[str, Any]] = []
    now = [0.0]
    sender = CallSender(lambda message: sent.append(json.loads(encoded(message))), clock=lambda: now[0])
    row = HistoryRow(step=3, train_loss=0.1 + 0.2, metrics={"pearson": None}, eval_loss=float("nan"))
    record = make_record()
    sender.on_train_begin("p", "stsb", "pearson", ["a", "b"], total_steps=10, first_step=2)
    for step, seconds in ((1, 0.0), (2, 0.1), (3, 0.3)):
        now[0] = seconds
        sender.on_step_end("p", step, [0.5, float("inf")])
    sender.on_evaluate("p", 3, {"a": row}, ("a", 1 / 3))
    sender.on_evaluate("p", 3, {"a": row}, None)
    sender.on_checkpoint("p", 3)
    sender.on_run_end("p", record)
    sender.on_message("well", "warning")
    calls: list[tuple[str, Mapping[str, Any]]] = []

    class Log(ForwardingCallback):
        def forward(self, hook: str, arguments: Mapping[str, Any]) -> None:
            calls.append((hook, arguments))

    assert [replay(message, Log()) for message in sent] == [None] * len(sent)
    assert repr(calls.pop(3)[1]["rows"]) == repr({"a": row})  # of its nan, no equality can be asked
    assert calls == [
        (
            "on_train_begin",
            {
                "pack_id": "p",
                "task": "stsb",
                "metric": "pearson",
                "runs": ["a", "b"],
                "total_steps": 10,
                "first_step": 2,
            },
        ),
        ("on_step_end", {"pack_id": "p", "step": 1, "losses": [0.5, float("inf")]}),
        ("on_step_end", {"pack_id": "p", "step": 3, "losses": [0.5, float("inf")]}),
        ("on_evaluate", {"pack_id": "p", "step": 3, "rows": {"a": row}, "best": None}),
        ("on_checkpoint", {"pack_id": "p", "step": 3}),
        ("on_run_end", {"pack_id": "p", "record": record}),
        ("on_message", {"text": "well", "level": "warning"}),
    ]
    end = PackEnd("p", "broken", reason="r", traceback="t", out_of_memory=True)
    sender.on_pack_end(end)
    calls.clear()
    assert (replay(sent[-1], Log()), calls) == (end, [])


def test_a_worker_says_what_broke_a_pack(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker process does with a pack, in this process."""
    study = small_study(model)
    Store.create_or_open(tmp_path, study)
    works = {"builtin-similarity": prepare(study, "builtin-similarity")}
    inputs = PackInputs(tmp_path, works, Backbones(study.model))
    (pack,) = plan_packs(plan_runs(study), 8)

    def broken(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("manytune.executors.job.train_pack", broken)
    end = train_here(inputs, pack, [], torch.device("cpu"), Callback(), StopRequest(), apart=True)
    assert (end.how, end.out_of_memory) == ("broken", True)
    assert (end.reason or "").startswith("MemoryError: no more")
    assert "in broken" in (end.traceback or "")
