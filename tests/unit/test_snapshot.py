from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from manytune.methods import make_method
from manytune.methods.adaptation import Adaptation
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel
from manytune.training import snapshot
from manytune.utils.errors import StoreError
from tiny import make_tiny

FACTS = {"run_id": "run0", "seed": 3, "method": {"method": "lora", "rank": 2}}


def state_of(value: float = 1.0) -> dict[str, Tensor]:
    return {"classifier.weight": torch.full((2, 4), value), "classifier.bias": torch.arange(2) + value}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run0" / "best"


@pytest.fixture
def saved(directory: Path) -> Path:
    snapshot.save(directory, state_of(), FACTS)
    return directory


def test_what_is_saved_is_loaded(directory: Path) -> None:
    state = state_of() | {"odd": torch.tensor([0.1, -0.0, float("inf"), 1e-45])}
    size = snapshot.save(directory, state, FACTS)
    loaded, facts = snapshot.load(directory)
    assert_same(loaded, state)
    assert facts == {"format": 1, **FACTS}
    assert size == sum(path.stat().st_size for path in directory.iterdir())
    assert [path.name for path in directory.parent.iterdir()] == ["best"]


def test_its_files_are_safetensors_and_json(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"snapshot.safetensors", "snapshot.json"}
    assert_same(load_file(saved / "snapshot.safetensors"), state_of())
    assert json.loads((saved / "snapshot.json").read_text())["seed"] == 3


def test_a_snapshot_that_is_there_is_replaced(saved: Path) -> None:
    (saved / "stray").touch()
    snapshot.save(saved, state_of(2.0), {"run_id": "other"})
    state, facts = snapshot.load(saved)
    assert_same(state, state_of(2.0))
    assert facts == {"format": 1, "run_id": "other"}
    assert [path.name for path in saved.parent.iterdir()] == ["best"]
    assert not (saved / "stray").exists()


def test_two_that_write_the_same_snapshot_do_not_mix(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one starts while the first one writes, and is done before it."""
    write, depth = snapshot.save_file, []

    def interrupted(state: dict[str, Tensor], path: Path) -> None:
        write(state, path)
        if not depth:
            depth.append(1)
            snapshot.save(directory, state_of(2.0), {"run_id": "second"})
            assert_same(snapshot.load(directory)[0], state_of(2.0))

    monkeypatch.setattr(snapshot, "save_file", interrupted)
    snapshot.save(directory, state_of(1.0), {"run_id": "first"})
    state, facts = snapshot.load(directory)
    assert_same(state, state_of(1.0))
    assert facts["run_id"] == "first"
    assert [path.name for path in directory.parent.iterdir()] == ["best"]


def full_disk(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def writing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "save_file", full_disk)


def facts_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", full_disk)


def flushing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manytune.utils.files.os.fsync", full_disk)


def renaming_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            full_disk()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)


FAILURES = [writing_fails, facts_fail, flushing_fails, renaming_fails]


@pytest.mark.parametrize("fail", FAILURES)
def test_where_writing_fails_the_old_snapshot_stays(
    saved: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(StoreError, match=r"best cannot be written: .*No space left"):
            snapshot.save(saved, state_of(2.0), {})
    state, facts = snapshot.load(saved)
    assert_same(state, state_of())
    assert facts == {"format": 1, **FACTS}


@pytest.mark.parametrize("fail", FAILURES)
def test_where_writing_fails_there_is_no_half_a_snapshot(
    directory: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fail(monkeypatch)
    with pytest.raises(StoreError):
        snapshot.save(directory, state_of(), FACTS)
    assert list(directory.parent.iterdir()) == []


def cut_tensors(directory: Path) -> None:
    path = directory / "snapshot.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def other_tensors(directory: Path) -> None:
    (directory / "snapshot.safetensors").write_bytes(b"\x80\x04pickle")


def no_tensors(directory: Path) -> None:
    (directory / "snapshot.safetensors").unlink()


def cut_facts(directory: Path) -> None:
    path = directory / "snapshot.json"
    path.write_text(path.read_text()[:-5])


def no_facts(directory: Path) -> None:
    (directory / "snapshot.json").unlink()


def other_facts(directory: Path) -> None:
    (directory / "snapshot.json").write_text("[1]")


def binary_facts(directory: Path) -> None:
    (directory / "snapshot.json").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "damage", [cut_tensors, other_tensors, no_tensors, cut_facts, no_facts, other_facts, binary_facts]
)
def test_a_damaged_snapshot_is_refused(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    with pytest.raises(StoreError, match=r"The snapshot .*best cannot be read: ."):
        snapshot.load(saved)


@pytest.mark.parametrize("value", [2, None, "1"])
def test_another_format_is_refused_whatever_else_it_holds(saved: Path, value: Any) -> None:
    (saved / "snapshot.json").write_text(json.dumps({"format": value}))
    (saved / "snapshot.safetensors").unlink()
    with pytest.raises(StoreError, match=rf"has format {value!r}; this manytune reads 1\."):
        snapshot.load(saved)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(make_tiny(tmp_path_factory.mktemp("tiny") / "bert")), 2)


@pytest.fixture(scope="module")
def adaptation(backbone: Backbone) -> Adaptation:
    return make_method("lora", rank=2, learning_rate=1.0).adapt(backbone.model_spec)


@pytest.fixture
def tensors(backbone: Backbone, adaptation: Adaptation) -> dict[str, Tensor]:
    """What a run of that adaptation holds, and nothing that a fresh one would."""
    state = PackedModel(backbone, [Member(0, adaptation)]).bank.state(0)
    return {name: tensor + 1 for name, tensor in state.items()}


def test_a_restored_model_holds_the_snapshots_tensors(
    backbone: Backbone, adaptation: Adaptation, tensors: dict[str, Tensor]
) -> None:
    model = snapshot.restore(backbone, [Member(8, adaptation)], [tensors])
    assert_same(model.bank.state(0), tensors)
    assert model.seeds == [8]
    assert all(tensor.value.dtype == torch.float32 for tensor in model.bank.tensors)


NAME = "bert.encoder.layer.1.attention.self.value.lora_A.weight"


@pytest.mark.parametrize(
    "changes",
    [
        {NAME: None},
        {"besides": torch.zeros(2)},
        {NAME: torch.zeros(3, 32)},
        {NAME: torch.zeros(1, 32)},
        {NAME: torch.zeros(2)},
        {"classifier.bias": torch.zeros(1)},
    ],
    ids=["missing", "besides", "another rank", "broadcastable", "a vector", "another number of labels"],
)
def test_tensors_of_another_run_are_refused(
    backbone: Backbone, adaptation: Adaptation, tensors: dict[str, Tensor], changes: dict[str, Tensor | None]
) -> None:
    assert NAME in tensors
    state = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    (name,) = changes
    with pytest.raises(StoreError, match=rf"does not fit its run: .*{name}"):
        snapshot.restore(backbone, [Member(0, adaptation)], [state])
