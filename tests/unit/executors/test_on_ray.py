"""What packs are given of a cluster, what goes between nodes, and a node that is killed in the middle of a pack."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from callback_log import CallbackLog
from manytune.executors import Inline, ray_executor
from manytune.executors.ray_executor import OnRay, Resources
from manytune.executors.ray_node import Storage, files_in, mirror, node_problem
from manytune.study import run_study
from manytune.training.mailbox import Mail, Mailbox
from manytune.utils.errors import StudyError
from manytune.utils.hardware import versions
from study_files import results_in, small_study
from tiny import make_tiny

CAMPAIGN = Path(__file__).parents[2] / "faults" / "cluster.py"


class TestResources:
    def test_they_are_read_as_they_are_written(self) -> None:
        assert Resources.parse("") == Resources(1, 0, 0)
        assert Resources.parse(" gpu=0.5, cpu=4 ,memory=8e9") == Resources(4, 0.5, 8_000_000_000)
        assert Resources(4, 0.5, 8).options() == {"num_cpus": 4, "num_gpus": 0.5, "memory": 8}
        assert Resources().options() == {"num_cpus": 1, "num_gpus": 0}

    @pytest.mark.parametrize(
        "text", ["cpu", "cpu=many", "tpu=1", "gpu=-1", "memory=inf", "cpu=nan", "cpu=0.5", "cpu=0"]
    )
    def test_what_they_cannot_be_is_refused(self, text: str) -> None:
        with pytest.raises(StudyError, match=r"--pack-resources: .*(cpu=N|cpu=1)"):
            Resources.parse(text)

    def test_a_node_holds_as_many_packs_as_its_scarcest_resource_allows(self) -> None:
        node = {"CPU": 16.0, "GPU": 2.0, "memory": 64e9}
        assert Resources(cpu=4).fit(node) == 4
        assert Resources(cpu=1, gpu=0.1).fit(node) == 16
        assert Resources(cpu=1, gpu=0.5).fit(node) == 4
        assert Resources(cpu=1, memory=30_000_000_000).fit(node) == 2
        assert Resources(cpu=1, gpu=1).fit({"CPU": 16.0}) == 0

    def test_packs_share_the_memory_of_a_gpu_or_of_a_node(self) -> None:
        nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 2.0}]
        assert Resources(cpu=2).sharing(nodes) == 8
        assert Resources(cpu=1, gpu=1).sharing(nodes) == 1
        assert Resources(cpu=1, gpu=2).sharing(nodes) == 1
        assert Resources(cpu=1, gpu=0.25).sharing(nodes) == 4
        assert Resources(cpu=8, gpu=0.1).sharing(nodes) == 2, "no node has room for more"


class TestFiles:
    def test_a_mirror_holds_what_it_is_of(self, tmp_path: Path) -> None:
        there, here = tmp_path / "there", tmp_path / "here"
        mirror(there, {"1.json": b"a", "1.safetensors": b"b", "oom-kills.txt": b"c"}, None)
        assert files_in(there) == {"1.json": b"a", "1.safetensors": b"b"}
        mirror(here, {"0.json": b"old", "1.safetensors": b"b"}, None)
        (here / "oom-kills.txt").write_text("stays")
        mirror(here, {"1.json": b"a"}, ["1.json", "1.safetensors"])
        assert files_in(here) == files_in(there)
        assert (here / "oom-kills.txt").exists()

    @pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
    def test_a_storage_is_the_same_wherever_it_is(self, tmp_path: Path, scheme: str) -> None:
        storage = Storage(f"{scheme}{tmp_path}", "pack")
        assert storage.pull() == {}
        storage.push({"1.json": b"a", "1.safetensors": b"b"}, ["1.json", "1.safetensors"])
        storage.push({"2.json": b"c"}, ["1.safetensors", "2.json"])
        assert storage.pull() == {"1.safetensors": b"b", "2.json": b"c"}
        storage.remove()
        assert storage.pull() == {}
        storage.remove()

    def test_a_node_that_does_not_see_the_storage_says_so(self, tmp_path: Path) -> None:
        storage = Storage(str(tmp_path), "probe")
        assert "does not see --ray-storage" in (node_problem(versions(), storage) or "")
        storage.push({"probe": b"seen"}, ["probe"])
        assert node_problem(versions(), storage) is None

    def test_a_node_with_another_version_says_so(self) -> None:
        other = {**versions(), "torch": "0.1"}
        message = node_problem(other, None) or ""
        assert re.search(r"has other versions than the driver: torch \S+, not 0\.1\. Install the same there\.", message)


def test_the_mailbox_keeps_the_order_and_the_request_to_stop() -> None:
    mailbox = Mailbox()
    assert mailbox.begin("a", 1) is None
    first, second = Mail("a", 1, {"n": 1}, {}), Mail("b", 1, {"n": 2}, {"f": b"x"}, ("e", "f"))
    mailbox.put(first)
    mailbox.put(second)
    assert mailbox.take() == [first, second]
    assert mailbox.take() == []
    mailbox.stop(15)
    assert (mailbox.stopped(), mailbox.begin("c", 1), mailbox.begun()) == (15, 15, [("a", 1), ("c", 1)])


@pytest.mark.parametrize("connected", [False, True])
def test_a_pack_that_no_node_has_room_for_is_refused(cluster: Any, tmp_path: Path, connected: bool) -> None:
    ray = pytest.importorskip("ray")
    if connected:
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    study = small_study(make_tiny(tmp_path / "model"))
    executor = OnRay(cluster.address, Resources(cpu=1, gpu=1))
    with pytest.raises(StudyError, match=r"--pack-resources: no node has room for one pack; the nodes have cpu="):
        run_study(study, tmp_path / "out", executor=executor, callbacks=[])
    assert not (tmp_path / "out").exists()
    assert ray.is_initialized() is connected  # a connection of the caller's own is left alone
    ray.shutdown()


def test_a_process_whose_gpu_fails_ends_and_the_pack_goes_on_in_a_fresh_one(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    training = {"max_steps": 6, "eval_every": 2, "precision": "fp32", "max_pack": 2}
    study, marker = small_study(make_tiny(tmp_path / "model"), training=training), str(tmp_path / "failed")
    run_study(study, tmp_path / "undisturbed", executor=Inline("cpu"), callbacks=[])

    def train(task: Any, mailbox: Any, checkpoints: Any) -> bytes:
        """In a process of a node, whose GPU fails once, in the fifth step."""
        from pathlib import Path

        import torch

        from manytune.executors import ray_node
        from manytune.packing import PackedModel

        forward, failed, steps = PackedModel.forward, Path(marker), list[Any]()

        def failing(self: Any, layout: Any, *, step: Any = None, run_keys: Any = None) -> Any:
            steps.extend([] if run_keys is None else [run_keys])
            if len(steps) == 5 and not failed.exists():
                failed.touch()
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            return forward(self, layout, step=step, run_keys=run_keys)

        PackedModel.forward = failing  # type: ignore[method-assign]
        try:
            return ray_node.train(task, mailbox, checkpoints)
        finally:
            PackedModel.forward = forward  # type: ignore[method-assign]

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no node knows this module
    monkeypatch.setattr(ray_executor.ray_node, "train", train)
    log = CallbackLog()
    result = run_study(study, tmp_path / "out", executor=OnRay(cluster.address), callbacks=[log])
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert result.failed == ()
    assert [end.how for end in log.ends] == ["lost", "done"]
    said = [text for text in log.messages if "the GPU failed: AcceleratorError: CUDA error: device-side assert" in text]
    assert len(said) == 1
    assert any("It goes on elsewhere." in text for text in log.messages)
    assert any("goes on from step 4." in text for text in log.messages)
    assert results_in(tmp_path / "out") == results_in(tmp_path / "undisturbed")


def test_a_node_that_is_killed_and_one_that_joins_change_nothing() -> None:
    pytest.importorskip("ray", reason="ray is not here: install the extra, `pip install manytune[ray]`")
    command = [sys.executable, CAMPAIGN, "--packs", "4", "--steps", "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["packs"] == 4
    assert result["differing"] == []
    assert result["killed_in_the_middle_of"]
    assert result["went_on_elsewhere"] >= 1
    assert result["left_over_processes"] == []
