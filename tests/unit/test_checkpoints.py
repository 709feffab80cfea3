"""What a pack goes on from after it was stopped: it comes to the same end, to the bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manytune.config import Training
from manytune.config.plan import Run
from manytune.data.tasks import get_task
from manytune.methods import make_method
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel
from manytune.training import checkpoints
from manytune.training.callbacks import PackCallback
from manytune.training.checkpoints import Checkpoints
from manytune.training.evaluation import EvaluationSummary
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Checkpoint, Clock, Outcome, RunCheckpoint
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
        ("ia3", {"learning_rate": 1e-2}),
        ("ln-tuning", {"learning_rate": 1e-2}),
        ("adapter", {"reduction_factor": 8, "learning_rate": 1e-2}),
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


class Case(PackCallback):
    """A pack that can be stopped, and keeps checkpoints in a folder."""

    def __init__(self, backbone: Backbone, kind: str, dtype: torch.dtype, folder: Path, every: int | None = 3) -> None:
        self.training = TRAINING.model_copy(update={"early_stopping": 2 if kind == "adapters" else None})
        methods = [make_method(name, **settings) for name, settings in KINDS[kind]]
        self.runs = [Run(f"run{seed}", "tiny", "cola", method, seed) for seed, method in enumerate(methods)]
        self.backbone, self.dtype, self.folder, self.every = backbone, dtype, folder, every
        self.stop_after: int | None = None
        self.ends: dict[str, dict[str, Any]] = {}
        self.messages: list[str] = []

    def train(self, stop_after: int | None = None, kept: Checkpoints | None = None) -> int:
        """Go on from the newest checkpoint until a step, or to the end; returns the step it went on from."""
        self.stop_after = stop_after
        self.kept = kept or Checkpoints(self.folder, self.runs, self.every, {"of": "this test"})
        found = self.kept.newest(self.messages.append)
        if found is not None:
            assert found[1] == {"of": "this test"}
        start = None if found is None else found[0]
        members = [Member(run.seed, run.method.adapt(self.backbone.model_spec)) for run in self.runs]
        model = PackedModel(self.backbone, members, dtype=self.dtype)
        everything = (np.arange(ROWS.size),) * len(self.runs)
        before = 0 if start is None else start.step
        with suppress(StoppedError):
            data = PackData(ROWS, ROWS, everything, everything)
            train_pack(model, self.runs, TASK, data, self.training, self, start)
        return before

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        if step == self.stop_after:
            raise StoppedError

    def on_run_trained(self, outcome: Outcome) -> None:
        again = result(outcome)
        assert self.ends.setdefault(outcome.run.id, again) == again

    def should_checkpoint(self, step: int) -> bool:
        return self.kept.due(step)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
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
    assert stopped.messages == []
    assert stopped.train() == TRAINING.max_steps  # nothing but the ends is left to tell
    assert stopped.ends == undisturbed.ends


def test_a_run_leaves_only_after_a_checkpoint_that_knows_of_it(backbone: Backbone, tmp_path: Path) -> None:
    class Strict(Case):
        def on_run_trained(self, outcome: Outcome) -> None:
            found = Checkpoints(self.folder, self.runs, None, {}).newest(self.messages.append)
            assert found is not None
            index = self.runs.index(outcome.run)
            assert index not in found[0].alive
            assert result(found[0].runs[index].outcome) == result(outcome)
            super().on_run_trained(outcome)

    case = Strict(backbone, "adapters", torch.float32, tmp_path, every=None)
    case.train()
    assert len(case.ends) == len(KINDS["adapters"])


def test_two_checkpoints_are_kept_and_nothing_else(backbone: Backbone, tmp_path: Path) -> None:
    case = Case(backbone, "head", torch.float32, tmp_path)
    (tmp_path / ".roster-000000009.json.0badcafe.tmp").touch()
    case.train()
    documents = sorted(path.name for path in tmp_path.glob("*.json"))
    assert documents == ["roster-000000012.json", "roster-000000014.json"]
    referred = {"state-000000012.safetensors", "state-000000014.safetensors"}
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


@pytest.mark.parametrize("name", ["roster-000000012.json", "state-000000012.safetensors"])
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
        (message,) = case.messages
        assert "roster-000000012.json is damaged" in message


def test_where_all_are_damaged_there_is_none(backbone: Backbone, tmp_path: Path) -> None:
    case = Case(backbone, "head", torch.float32, tmp_path)
    case.train(stop_after=13)
    for path in tmp_path.glob("*.safetensors"):
        cut(path)
    assert case.train() == 0
    assert len(case.messages) == 2
    assert len(case.ends) == 2


@pytest.mark.parametrize(
    "change",
    [{"format": 3}, {"runs": [{"id": "run7"}]}, {"digests": {"../outside.safetensors": "0"}}],
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
    assert case.messages


def test_after_they_are_forgotten_a_pack_that_starts_anew_keeps_its_own(backbone: Backbone, tmp_path: Path) -> None:
    """Those of before, of later steps, are neither kept in their place nor taken for files that are written already."""
    undisturbed = Case(backbone, "head", torch.float32, tmp_path / "undisturbed")
    undisturbed.train()
    case = Case(backbone, "head", torch.float32, tmp_path / "forgotten")
    case.train(stop_after=13)
    kept = Checkpoints(case.folder, case.runs, 3, {"of": "this test"})
    assert kept.newest(case.messages.append) is not None
    for path in case.folder.glob("run*"):
        path.write_bytes(b"of other kernels")
    kept.forget()
    assert list(case.folder.iterdir()) == []
    case.train(stop_after=7, kept=kept)
    assert case.train() == 6
    assert case.ends == undisturbed.ends
    assert case.messages == []


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


@dataclass
class LargerOutcome(Outcome):
    """An outcome with fields of every sort that a later version may add."""

    rounds: int = 0
    ranks: dict[str, list[float]] = field(default_factory=dict)
    summary: EvaluationSummary | None = None
    averaged_state: dict[str, Tensor] = field(default_factory=dict)


def larger(run: Run) -> LargerOutcome:
    summary = EvaluationSummary({"pearson": math.nan}, 0.1, collapsed=True)
    averaged = {"a.weight": torch.randn(2, 3)}
    return LargerOutcome(run, rounds=3, ranks={"a": [0.1, 2.0]}, summary=summary, averaged_state=averaged)


RUN = Run("run0", "tiny", "cola", make_method("head", learning_rate=1e-2), 0)


def kept(folder: Path, outcome: Outcome) -> Checkpoints:
    checkpoints = Checkpoints(folder, [RUN], None, {})
    clock = Clock.after(3, TRAINING, ROWS.size)
    checkpoints.keep(Checkpoint([RunCheckpoint(clock, outcome, alive=False)], {}, 1.5))
    return checkpoints


def test_a_field_that_is_added_to_an_outcome_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "Outcome", LargerOutcome)
    outcome = larger(RUN)
    found = kept(tmp_path, outcome).newest(pytest.fail)
    assert found is not None
    (run,), seconds = found[0].runs, found[0].seconds
    assert (run.clock, run.alive, seconds) == (Clock.after(3, TRAINING, ROWS.size), False, 1.5)
    again = run.outcome
    assert type(again) is LargerOutcome
    assert again.run is RUN
    assert torch.equal(again.averaged_state["a.weight"], outcome.averaged_state["a.weight"])
    assert again.summary is not None
    assert math.isnan(again.summary.scores["pearson"])
    others = {field.name for field in fields(outcome)} - {"averaged_state", "summary"}
    assert len(others) > 10
    assert all(getattr(again, name) == getattr(outcome, name) for name in others)


@pytest.mark.parametrize(
    "change",
    [{"rounds": "many"}, {"ranks": {"a": 1}}, {"more": 1}, {"rounds": None}, {"averaged_state": {"a": 1}}],
    ids=str,
)
def test_fields_of_another_type_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(checkpoints, "Outcome", LargerOutcome)
    dumps = checkpoints.json.dumps
    with monkeypatch.context() as patched:

        def changed(roster: Any) -> str:
            for run in roster.get("runs", ()):
                run["outcome"] |= change
                run["files"] = {name: file for name, file in run["files"].items() if name not in change}
            return dumps(roster)

        patched.setattr(checkpoints.json, "dumps", changed)
        keeper = kept(tmp_path, larger(RUN))
    messages: list[str] = []
    assert keeper.newest(messages.append) is None
    assert "is damaged" in messages[0]


def test_an_outcome_without_one_of_its_fields_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default is not taken for what it was."""
    keeper = kept(tmp_path, Outcome(RUN))
    monkeypatch.setattr(checkpoints, "Outcome", LargerOutcome)
    messages: list[str] = []
    assert keeper.newest(messages.append) is None
    assert "it lacks ['averaged_state', 'ranks', 'rounds', 'summary']" in messages[0]


def test_tensors_of_an_outcome_are_written_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = Checkpoints._write

    def noted(self: Checkpoints, file: str, tensors: Any) -> str:
        written.append(file)
        return write(self, file, tensors)

    monkeypatch.setattr(Checkpoints, "_write", noted)
    case = Case(backbone, "head", torch.float32, tmp_path)
    case.train(stop_after=10)
    case.train()
    assert len(written) == len(set(written)) > 8
    best = {file.removesuffix(".safetensors").rpartition("-")[2] for file in written if ".best_state-" in file}
    assert best <= {"000000004", "000000008", "000000012", "000000014"}
    assert best


def test_of_an_outcome_that_was_released_no_tensors_are_kept(tmp_path: Path) -> None:
    """Neither on the disk nor in memory; what is known of it stays."""
    summary = EvaluationSummary({"matthews": 0.5}, 0.1, collapsed=False)
    outcome = Outcome(RUN, best=summary, best_step=3, best_state={"a": torch.ones(2)}, steps=3)
    keeper = kept(tmp_path, outcome)
    assert [path.name for path in tmp_path.glob("run0.*")] == ["run0.best_state-000000003.safetensors"]
    assert not outcome.released
    outcome.release()
    for joined in (1, 2):  # of two checkpoints, because two are kept
        clock = Clock.after(3, TRAINING, ROWS.size)
        keeper.keep(Checkpoint([RunCheckpoint(clock, outcome, False, joined)], {}, 2.0))
    assert not list(tmp_path.glob("run0.*"))
    assert not keeper._written
    found = keeper.newest(pytest.fail)
    assert found is not None
    (run,) = found[0].runs
    assert run.joined == 2
    assert found[0].step == 5
    assert run.outcome.released
    assert run.outcome.best == summary


def test_checkpoints_of_format_1_are_not_gone_on_from(tmp_path: Path) -> None:
    """Until a checkpoint takes their place they stay, for the version that wrote them."""
    old = {"000000009.json", "000000009.safetensors", "run0-8.safetensors"}
    for name in old:
        (tmp_path / name).write_text("{}")
    messages: list[str] = []
    assert Checkpoints(tmp_path, [RUN], None, {}).newest(messages.append) is None
    (message,) = messages
    assert "are of an earlier version of manytune" in message
    assert "start anew, unless you stop now" in message
    assert {path.name for path in tmp_path.iterdir()} == old
    assert kept(tmp_path, Outcome(RUN)).newest(messages.append) is not None
    assert {path.name for path in tmp_path.iterdir()} == {"roster-000000003.json", "state-000000003.safetensors"}


# Runs that go on in another pack

METHODS = [
    make_method("lora", rank=2, dropout=0.1, learning_rate=1e-2),
    make_method("lora", rank=4, dropout=0.1, learning_rate=3e-3),
    make_method("bitfit", learning_rate=1e-2),
]
OTHERS = [
    make_method("lora", rank=4, dropout=0.1, learning_rate=1e-3),
    make_method("lora", rank=2, learning_rate=1e-3),
]


def runs_of(methods: Sequence[Any], first: int) -> list[Run]:
    return [Run(f"run{seed}", "tiny", "cola", method, seed) for seed, method in enumerate(methods, first)]


def in_a_pack(case: Case, runs: Sequence[Run], start: Checkpoint | None = None, stop_after: int | None = None) -> None:
    case.runs, case.stop_after = list(runs), stop_after
    members = [Member(run.seed, run.method.adapt(case.backbone.model_spec)) for run in runs]
    model = PackedModel(case.backbone, members)
    everything = (np.arange(ROWS.size),) * len(runs)
    data = PackData(ROWS, ROWS, everything, everything)
    case.kept = Checkpoints(case.folder, case.runs, case.every, {})
    with suppress(StoppedError):
        train_pack(model, runs, TASK, data, case.training, case, start)


def taken(case: Case) -> Checkpoint:
    found = Checkpoints(case.folder, case.runs, None, {}).newest(pytest.fail)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("places", [[0], [2], [2, 1], [1, 3, 0], [4, 2, 3, 1, 0]], ids=str)
def test_a_run_goes_on_in_another_pack(backbone: Backbone, tmp_path: Path, places: list[int]) -> None:
    """Alone, with neighbours of another pack, in another order: it ends as in the pack that it was begun in."""
    one, other = runs_of(METHODS, 0), runs_of(OTHERS, 3)
    undisturbed = Case(backbone, "head", torch.float32, tmp_path / "undisturbed")
    in_a_pack(undisturbed, one)
    in_a_pack(undisturbed, other)
    begun = [Case(backbone, "head", torch.float32, tmp_path / name) for name in ("one", "other")]
    in_a_pack(begun[0], one, stop_after=7)
    in_a_pack(begun[1], other, stop_after=7)
    runs = [[*one, *other][place] for place in places]
    start = Checkpoint.gather(runs, [taken(case) for case in begun])
    assert start.step == 6
    moved = Case(backbone, "head", torch.float32, tmp_path / "moved")
    in_a_pack(moved, runs, start)
    assert moved.ends.keys() == {run.id for run in runs}
    for run_id, end in moved.ends.items():
        assert_alike(end, undisturbed.ends[run_id])
    again = Case(backbone, "head", torch.float32, tmp_path / "moved")  # which has kept its own checkpoints
    again.runs = runs
    assert taken(again).step == TRAINING.max_steps


def assert_alike(end: dict[str, Any], other: dict[str, Any]) -> None:
    """To floating-point reduction order: products of a pack of another size may round differently."""
    assert end["facts"] == other["facts"]
    assert [row["step"] for row in end["history"]] == [row["step"] for row in other["history"]]
    for row, there in zip(end["history"], other["history"], strict=True):
        assert row["learning_rate"] == there["learning_rate"]
        assert row["train_loss"] == pytest.approx(there["train_loss"], abs=1e-5)
        assert row["eval_loss"] == pytest.approx(there["eval_loss"], abs=1e-5)
    for state, expected in zip(end["states"], other["states"], strict=True):
        assert state.keys() == expected.keys()
        for name, data in state.items():
            np.testing.assert_allclose(
                np.frombuffer(data, np.float32), np.frombuffer(expected[name], np.float32), atol=1e-5
            )


def test_in_a_pack_of_the_same_shape_a_moved_run_goes_on_to_the_bit(backbone: Backbone, tmp_path: Path) -> None:
    """Its neighbour is another run of the same method; both packs have two runs at every step."""
    lora = [make_method("lora", rank=2, dropout=0.1, learning_rate=rate) for rate in (1e-2, 1e-3, 3e-3, 1e-4)]
    runs = runs_of(lora, 0)
    undisturbed = Case(backbone, "head", torch.float32, tmp_path / "undisturbed")
    in_a_pack(undisturbed, runs[:2])
    begun = [Case(backbone, "head", torch.float32, tmp_path / name) for name in ("one", "other")]
    in_a_pack(begun[0], runs[:2], stop_after=7)
    in_a_pack(begun[1], runs[2:], stop_after=7)
    moved = Case(backbone, "head", torch.float32, tmp_path / "moved")
    in_a_pack(moved, [runs[0], runs[3]], Checkpoint.gather([runs[0], runs[3]], [taken(case) for case in begun]))
    assert moved.ends["run0"] == undisturbed.ends["run0"]


def test_runs_at_different_steps_go_on_in_one_pack(backbone: Backbone, tmp_path: Path) -> None:
    runs = runs_of([*METHODS[:2], OTHERS[0]], 0)
    undisturbed = Case(backbone, "head", torch.float32, tmp_path / "undisturbed")
    in_a_pack(undisturbed, runs)
    begun = [Case(backbone, "head", torch.float32, tmp_path / name) for name in ("one", "other")]
    in_a_pack(begun[0], runs[:2], stop_after=7)
    in_a_pack(begun[1], runs[2:], stop_after=10)
    start = Checkpoint.gather(runs, [taken(case) for case in begun])
    assert [each.clock.step for each in start.runs] == [6, 6, 9]
    assert {each.tick for each in start.runs} == {start.step} == {9}
    with pytest.raises(ValueError, match="of other runs than the pack"):
        in_a_pack(begun[0], runs[::-1], start)
    moved = Case(backbone, "head", torch.float32, tmp_path / "moved")
    in_a_pack(moved, runs, start)
    for run_id, end in moved.ends.items():
        assert_alike(end, undisturbed.ends[run_id])
    assert len(moved.ends) == 3


def test_a_clock_says_what_comes_next() -> None:
    training = TRAINING.model_copy(update={"max_steps": None, "epochs": 2.0, "schedule": "cosine"})
    # 60 rows, 8 in a batch, 2 batches a step: 4 steps a pass.
    assert Clock.after(6, training, 60) == Clock(6, 1, 2, "cosine", 2, 8, 6)
