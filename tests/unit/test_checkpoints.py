"""What a pack goes on from after it was stopped: it comes to the same end, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manytune.config import Training, make_method
from manytune.config.plan import Run
from manytune.data.tasks import get_task
from manytune.methods import adapt
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel
from manytune.training import checkpoints
from manytune.training.checkpoints import Checkpoints
from manytune.training.loop import Checkpoint, Outcome, PackData, train_pack
from tiny import make_tiny, random_rows

TASK = get_task("cola")
ROWS = random_rows(60)
TRAINING = Training(batch_size=8, max_steps=14, eval_every=4, warmup_steps=2, weight_decay=0.1, accumulate=2)
KINDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "adapters": [
        ("lora", {"rank": 2, "dropout": 0.1, "learning_rate": 1e-2}),
        ("lora", {"rank": 2, "learning_rate": 1e30}),  # fails
        ("lora", {"rank": 4, "dropout": 0.1, "learning_rate": 1e-12}),  # learns nothing, so it stops early
        ("bitfit", {"learning_rate": 1e-2}),
    ],
    "full": [("full", {"learning_rate": 1e-3})],
    "head": [("head", {"learning_rate": 1e-2}), ("head", {"learning_rate": 1e-3, "head": "bias"})],
}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(make_tiny(tmp_path_factory.mktemp("tiny"))), 2)


class StoppedError(Exception):
    """The pack was stopped on purpose."""


class Case:
    """A pack that can be stopped; it listens to the training, and keeps checkpoints in a folder."""

    def __init__(self, backbone: Backbone, kind: str, dtype: torch.dtype, folder: Path, every: int | None = 3) -> None:
        self.training = TRAINING.model_copy(update={"early_stopping": 2 if kind == "adapters" else None})
        methods = [make_method(name, **settings) for name, settings in KINDS[kind]]
        self.runs = [Run(f"run{seed}", "tiny", "cola", method, seed) for seed, method in enumerate(methods)]
        self.backbone, self.dtype, self.folder, self.every = backbone, dtype, folder, every
        self.stop_after: int | None = None
        self.ends: dict[str, dict[str, Any]] = {}
        self.told: list[str] = []

    def train(self, stop_after: int | None = None, kept: Checkpoints | None = None) -> int:
        """Go on from the newest checkpoint until a step, or to the end; returns the step it went on from."""
        self.stop_after = stop_after
        self.kept = kept or Checkpoints(self.folder, self.runs, self.every, {"of": "this test"})
        found = self.kept.newest(self.told.append)
        if found is not None:
            assert found[1] == {"of": "this test"}
        start = None if found is None else found[0]
        members = [Member(run.seed, adapt(run.method, self.backbone.model_spec)) for run in self.runs]
        model = PackedModel(self.backbone, members, dtype=self.dtype)
        everything = (np.arange(ROWS.size),) * len(self.runs)
        before = 0 if start is None else start.step
        with suppress(StoppedError):
            data = PackData(ROWS, ROWS, everything, everything)
            train_pack(model, self.runs, TASK, data, self.training, self, self, start)
        return before

    def step(self, step: int, losses: Sequence[float]) -> None:
        if step == self.stop_after:
            raise StoppedError

    def evaluated(self, step: int, outcomes: Sequence[Outcome]) -> None: ...

    def ended(self, outcome: Outcome) -> None:
        again = result(outcome)
        assert self.ends.setdefault(outcome.run.id, again) == again

    def due(self, step: int) -> bool:
        return self.kept.due(step)

    def keep(self, checkpoint: Checkpoint) -> None:
        self.kept.keep(checkpoint)


def result(outcome: Outcome) -> dict[str, Any]:
    """All that must not depend on whether the pack was stopped: everything but clocks."""

    def plain(state: dict[str, Tensor]) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in state.items()}

    return {
        "facts": (str(outcome.state), outcome.failure, outcome.steps, outcome.best_step),
        "history": [row.model_dump(exclude={"seconds"}) for row in outcome.history],
        "best": None if outcome.best is None else (outcome.best.scores, outcome.best.loss),
        "states": (plain(outcome.best_state), plain(outcome.last_state)),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_that_is_stopped_anywhere_comes_to_the_same_end(
    backbone: Backbone, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    undisturbed = Case(backbone, kind, dtype, tmp_path / "undisturbed", every=None)
    undisturbed.train()
    assert len(undisturbed.ends) == len(KINDS[kind])
    if kind == "adapters":
        states = [undisturbed.ends[f"run{i}"]["facts"] for i in range(4)]
        assert [state[0] for state in states] == ["finished", "failed", "finished", "finished"]
        assert states[2][2] < TRAINING.max_steps  # type: ignore[operator]
    stopped = Case(backbone, kind, dtype, tmp_path / "stopped")
    starts = [stopped.train(stop_after) for stop_after in (2, 5, 6, 10, 13, None)]
    assert starts == [0, 0, 4, 4, 9, 12] if kind != "adapters" else starts[-1] == 12
    assert stopped.ends == undisturbed.ends
    assert stopped.told == []
    assert stopped.train() == TRAINING.max_steps  # nothing but the ends is left to tell
    assert stopped.ends == undisturbed.ends


def test_a_run_leaves_only_after_a_checkpoint_that_knows_of_it(backbone: Backbone, tmp_path: Path) -> None:
    class Strict(Case):
        def ended(self, outcome: Outcome) -> None:
            found = Checkpoints(self.folder, self.runs, None, {}).newest(self.told.append)
            assert found is not None
            index = self.runs.index(outcome.run)
            assert index not in found[0].alive
            assert result(found[0].outcomes[index]) == result(outcome)
            super().ended(outcome)

    case = Strict(backbone, "adapters", torch.float32, tmp_path, every=None)
    case.train()
    assert len(case.ends) == 4


def test_two_checkpoints_are_kept_and_nothing_else(backbone: Backbone, tmp_path: Path) -> None:
    case = Case(backbone, "head", torch.float32, tmp_path)
    (tmp_path / ".000000009.json.0badcafe.tmp").touch()
    case.train()
    documents = sorted(path.name for path in tmp_path.glob("*.json"))
    assert documents == ["000000012.json", "000000014.json"]
    referred = {"000000012.safetensors", "000000014.safetensors"}
    others = {path.name for path in tmp_path.iterdir()} - {*documents, *referred}
    assert others
    assert all(name.startswith("run") for name in others)
    assert len(others) <= 2 * 2 * len(case.runs)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def turned(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["000000012.json", "000000012.safetensors"])
@pytest.mark.parametrize("damage", [cut, turned, emptied, Path.unlink], ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    backbone: Backbone, tmp_path: Path, name: str, damage: Any
) -> None:
    undisturbed = Case(backbone, "head", torch.float32, tmp_path / "undisturbed")
    undisturbed.train()
    case = Case(backbone, "head", torch.float32, tmp_path / "damaged")
    case.train(stop_after=13)
    damage(case.folder / name)
    assert case.train() == 9
    assert case.ends == undisturbed.ends
    if damage is not Path.unlink or name.endswith(".safetensors"):
        (said,) = case.told
        assert "000000012.json is damaged" in said


def test_where_all_are_damaged_there_is_none(backbone: Backbone, tmp_path: Path) -> None:
    case = Case(backbone, "head", torch.float32, tmp_path)
    case.train(stop_after=13)
    for path in tmp_path.glob("*.safetensors"):
        cut(path)
    assert case.train() == 0
    assert len(case.told) == 2
    assert len(case.ends) == 2


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"runs": ["run0", "run7"]}, {"digests": {"../outside.safetensors": "0"}}],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_not_used(
    backbone: Backbone, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(backbone, "head", torch.float32, tmp_path)
    dumps = checkpoints.json.dumps
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.json, "dumps", lambda document: dumps({**document, **change}))
        case.train(stop_after=5)
    assert case.train() == 0
    assert case.told


def test_after_they_are_forgotten_a_pack_that_starts_anew_keeps_its_own(backbone: Backbone, tmp_path: Path) -> None:
    """Those of before, of later steps, are neither kept in their place nor taken for files that are written already."""
    undisturbed = Case(backbone, "head", torch.float32, tmp_path / "undisturbed")
    undisturbed.train()
    case = Case(backbone, "head", torch.float32, tmp_path / "forgotten")
    case.train(stop_after=13)
    kept = Checkpoints(case.folder, case.runs, 3, {"of": "this test"})
    assert kept.newest(case.told.append) is not None
    for path in case.folder.glob("run*"):
        path.write_bytes(b"of other kernels")
    kept.forget()
    assert list(case.folder.iterdir()) == []
    case.train(stop_after=7, kept=kept)
    assert case.train() == 6
    assert case.ends == undisturbed.ends
    assert case.told == []


def test_the_time_that_went_by_is_kept(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    kept = Checkpoints(tmp_path, [], None, {})
    assert not kept.due(1)
    now[0] += 299.0
    assert not kept.due(2)
    now[0] += 1.0
    assert kept.due(2)
    every = Checkpoints(tmp_path, [], 5, {})
    assert [step for step in range(1, 12) if every.due(step)] == [5, 10]


def test_no_field_of_an_outcome_is_lost() -> None:
    held = {*checkpoints._PLAIN, *checkpoints._TENSORS, "run", "state", "history", "best", "last"}
    assert {field.name for field in fields(Outcome)} == held
