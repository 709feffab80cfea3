"""A step as a GPU takes it: Triton's kernels by its interpreter, CUDA graphs by a stand-in that records on a CPU."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
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
from manytune.packing import Member, PackedAdamW, PackedModel
from manytune.packing.kernels import AdamWUpdate
from manytune.packing.transfer import put_all
from manytune.storage.record import RunState
from manytune.training import step as module
from manytune.training.callbacks import PackCallback
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Outcome
from manytune.training.step import Losses, RunBatch, Stepper, StepPlan, forward_backward, plan_step
from simulated_device import DEVICE, DeviceWork, simulated_device
from simulated_graph import SimulatedGraph, simulate_graphs, triton_launches
from tiny import make_tiny, random_rows

pytest.importorskip("triton", reason="triton is not here: it is installed on Linux on x86-64 alone")

from manytune.packing.kernels import triton as triton_kernels

TASK = get_task("builtin-acceptability")
DATA = random_rows(60, longest=11, seed=5)

MIXED = [
    ("lora", {"rank": 2, "dropout": 0.1}),
    ("lora", {"rank": 2, "dropout": 0.1}),
    ("lora", {"rank": 16, "dropout": 0.1}),
    ("bitfit", {}),
    ("head", {}),
]
LORA = [("lora", {"rank": 2, "dropout": 0.1})] * 2
FULL = [("full", {})]
HEAD = [("head", {})]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda family: load_backbone(str(make_tiny(root / family, family, num_attention_heads=1)), 2))


@pytest.fixture
def build(backbone: Callable[[str], Backbone], monkeypatch: pytest.MonkeyPatch) -> Callable[..., PackedModel]:
    def built(
        methods: Sequence[tuple[str, dict[str, Any]]], family: str = "roberta", kernels: str = "triton"
    ) -> PackedModel:
        monkeypatch.setenv("MANYTUNE_KERNELS", kernels)
        spec = backbone(family).model_spec
        made = [make_method(name, learning_rate=1e-2, **settings) for name, settings in methods]
        model = PackedModel(backbone(family), [Member(seed, each.adapt(spec)) for seed, each in enumerate(made)])
        assert model.context.kernels.name == kernels
        return model

    return built


def stepper_of(model: PackedModel) -> Stepper:
    return Stepper(model, PackedAdamW(model.bank, model.context.kernels), TASK)


def planned(model: PackedModel, seed: int, number: int = 0, rows: int = 2) -> StepPlan:
    """A step of each run on rows of its own seed's choice, whatever pack it is in."""
    batches = [
        RunBatch(np.random.default_rng([seed, own]).integers(0, len(DATA.labels), rows), rows, number)
        for own in model.seeds
    ]
    updates = [AdamWUpdate(number + 1, 1e-2, weight_decay=0.1, max_grad_norm=1.0) for _ in model.seeds]
    return plan_step(model, TASK, DATA, batches, updates)


def state_of(model: PackedModel) -> dict[str, Tensor]:
    return {f"{run} {name}": value for run in range(len(model.seeds)) for name, value in model.bank.state(run).items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def of_one_shape(model: PackedModel, count: int) -> list[StepPlan]:
    """Plans of different batches that have the same shape."""
    plans: dict[Any, list[StepPlan]] = {}
    for seed in range(400):
        plan = planned(model, seed, number=seed)
        same = plans.setdefault(plan.shape, [])
        if all(plan.micro_batches[0].token_bounds != each.micro_batches[0].token_bounds for each in same):
            same.append(plan)
        if len(same) == count:
            return same
    raise AssertionError("no such batches")


class TestWholeSteps:
    @pytest.mark.parametrize(
        ("family", "methods"), [("roberta", MIXED), ("bert", FULL)], ids=["mixed roberta", "full bert"]
    )
    def test_steps_are_the_references(self, build: Callable[..., PackedModel], family: str, methods: Any) -> None:
        states, losses = [], []
        for kernels in ("plain", "triton"):
            model = build(methods, family, kernels)
            assert model.can_be_recorded is (kernels == "triton")
            stepper = stepper_of(model)
            losses.append(torch.stack([stepper.take(planned(model, number, number)) for number in range(2)]))
            states.append(state_of(model))
        assert losses[0].shape == (2, len(methods))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
        compared = 0
        for name, wanted in states[0].items():
            if name.endswith(
                "key.bias"
            ):  # no loss depends on it: its gradient is rounding, which AdamW's steps enlarge
                continue
            torch.testing.assert_close(states[1][name], wanted, rtol=1e-3, atol=1e-4)
            compared += 1
        assert compared > 5

    @pytest.mark.parametrize("methods", [MIXED, FULL], ids=["mixed", "full"])
    def test_a_step_reads_nothing_of_its_batch_on_the_host_but_its_shape(
        self, build: Callable[..., PackedModel], methods: Any
    ) -> None:
        model = build(methods)
        one, other = of_one_shape(model, 2)
        tensors = put_all(other.arrays, model.device)
        found = []
        for on_host in (other, one):
            losses = forward_backward(model, TASK, on_host, tensors)
            grads = [each.grad for each in model.bank.tensors if each.grad is not None]
            found.append([losses, *(each.to_dense() if each.is_sparse else each.clone() for each in grads)])
            for tensor in model.bank.tensors:
                tensor.forget_grad()
        assert len(found[0]) > 3
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Callable[[PackedModel], Stepper]:
    """Makes steppers that record as on a GPU, on the CPU."""
    simulate_graphs(monkeypatch)
    monkeypatch.setenv("MANYTUNE_CUDA_GRAPHS", "1")

    def made(model: PackedModel) -> Stepper:
        with monkeypatch.context() as patch:
            patch.setattr(model, "device", torch.device("cuda"))
            return stepper_of(model)

    return made


def graphs_of(stepper: Stepper) -> list[SimulatedGraph]:
    return [record.graph for record in stepper._records.values()]  # type: ignore[misc]


class TestRecords:
    def test_the_second_step_of_a_shape_is_recorded_and_later_ones_are_replayed(
        self, build: Callable[..., PackedModel], recording: Callable[[PackedModel], Stepper]
    ) -> None:
        eager, recorded = build(MIXED[1:]), build(MIXED[1:])
        plain, stepper = stepper_of(eager), recording(recorded)
        replays = []
        for plan in of_one_shape(eager, 3):
            wanted = plain.take(plan)
            assert torch.equal(stepper.take(plan), wanted)
            assert_same(state_of(recorded), state_of(eager))
            replays.append([graph.replays for graph in graphs_of(stepper)])
        assert replays == [[], [1], [2]]
        assert len(graphs_of(plain)) == 0

    def test_a_run_that_leaves_or_joins_drops_the_records(
        self, build: Callable[..., PackedModel], recording: Callable[[PackedModel], Stepper]
    ) -> None:
        eager, recorded = build(LORA), build(LORA)
        plain, stepper = stepper_of(eager), recording(recorded)

        def both(count: int) -> None:
            for plan in of_one_shape(eager, count):
                assert torch.equal(stepper.take(plan), plain.take(plan))
            assert_same(state_of(recorded), state_of(eager))

        both(2)
        (record,) = stepper._records.values()
        kept = weakref.ref(record.kept)
        del record
        gc.collect()
        assert kept() is not None, "what a graph reads lives as long as it"
        member = eager.members[0]
        for model in (eager, recorded):
            model.keep([1])
        both(1)
        gc.collect()
        assert kept() is None
        assert stepper._records == {}
        for model in (eager, recorded):
            model.rearrange([model.members[0], member], [0, None])
        both(2)
        assert [graph.replays for graph in graphs_of(stepper)] == [1]

    def test_of_too_many_the_one_that_was_not_taken_for_longest_goes(
        self,
        build: Callable[..., PackedModel],
        recording: Callable[[PackedModel], Stepper],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "_MOST_RECORDS", 2)
        eager, recorded = build(HEAD), build(HEAD)
        plain, stepper = stepper_of(eager), recording(recorded)
        one, two, three = (planned(eager, 0, rows=rows) for rows in (1, 2, 3))
        for plan in (one, one, two, two, one, three, three):
            assert torch.equal(stepper.take(plan), plain.take(plan))
        assert list(stepper._records) == [one.shape, three.shape]
        assert [graph.replays for graph in graphs_of(stepper)] == [2, 1]
        assert torch.equal(stepper.take(two), plain.take(two))
        assert list(stepper._records) == [three.shape, two.shape]
        assert_same(state_of(recorded), state_of(eager))

    def test_without_memory_for_records_steps_are_taken_one_by_one(
        self,
        build: Callable[..., PackedModel],
        recording: Callable[[PackedModel], Stepper],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        eager, recorded = build(HEAD), build(HEAD)
        plain, stepper = stepper_of(eager), recording(recorded)
        first, *others = of_one_shape(eager, 3)
        assert torch.equal(stepper.take(first), plain.take(first))

        def full(self: SimulatedGraph) -> None:
            end(self)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        end = SimulatedGraph.capture_end
        monkeypatch.setattr(SimulatedGraph, "capture_end", full)
        for plan in others:
            assert torch.equal(stepper.take(plan), plain.take(plan))
        assert stepper._records == {}
        assert_same(state_of(recorded), state_of(eager))

    def test_recording_is_off_unless_it_is_asked_for(
        self,
        build: Callable[..., PackedModel],
        recording: Callable[[PackedModel], Stepper],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("MANYTUNE_CUDA_GRAPHS")
        model = build(HEAD)
        stepper = recording(model)
        for plan in of_one_shape(model, 2):
            stepper.take(plan)
        assert stepper._records == {}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = make_tiny(tmp_path_factory.mktemp("deep") / "roberta", "roberta", num_hidden_layers=12)
    return load_backbone(str(folder), 2)


class TestLaunches:
    @pytest.mark.parametrize(
        ("name", "settings", "runs"),
        [("lora", {"rank": 8, "dropout": 0.1}, runs) for runs in (1, 8, 64)] + [("bitfit", {}, 8), ("full", {}, 1)],
        ids=["1 lora", "8 lora", "64 lora", "8 bitfit", "full"],
    )
    def test_a_step_is_some_500_launches_one_copy_and_no_waiting(
        self, deep: Backbone, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any], runs: int
    ) -> None:
        monkeypatch.setenv("MANYTUNE_KERNELS", "triton")
        adaptation = make_method(name, learning_rate=1e-3, **settings).adapt(deep.model_spec)
        tables: list[Any] = []
        original = triton_kernels._chunks
        monkeypatch.setattr(triton_kernels, "_chunks", lambda *a: tables.append(a) or original(*a))
        with simulated_device():
            model = PackedModel(deep, [Member(seed, adaptation) for seed in range(runs)], device=DEVICE)
            assert model.can_be_recorded
            stepper = stepper_of(model)
            for number in range(2):
                plan = planned(model, number, number)
                tables.clear()
                launched: Counter[str] = Counter()

                def launch(call: Any, args: Any, named: Any, launched: Counter[str] = launched) -> None:
                    launched[call.__self__.fn.__name__] += 1

                with triton_launches(launch), DeviceWork() as work:
                    losses = stepper.take(plan)
            assert losses.shape == (runs,)
        assert launched["attention_tile"] >= 12
        assert 300 < launched.total() + work.launches.total() <= 600
        # Of the optimizer's table there is another copy, while torch's memory for gradients still moves.
        assert work.copies == {"to device": 1 + len(tables)}
        assert work.waits == {}


class Noted(PackCallback):
    """Notes what a pack trains on, and spoils the tensors of one run in the middle of its way."""

    def __init__(self, spoil: Callable[[int], None] = lambda step: None) -> None:
        self.spoil, self.losses = spoil, list[list[float]]()
        self.outcomes: dict[int, Outcome] = {}

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.losses.append(list(losses))
        self.spoil(step)

    def on_run_trained(self, outcome: Outcome) -> None:
        self.outcomes[outcome.run.seed] = outcome


class TestQueuedAhead:
    """The device is given the next step before the host has read the losses of this one."""

    METHODS = (("head", {}), ("bitfit", {}))

    def trained(
        self,
        build: Callable[..., PackedModel],
        *,
        ahead: bool,
        spoilt: Callable[[PackedModel, int], None] = lambda model, step: None,
    ) -> tuple[Noted, list[str]]:
        """What came of a pack of two runs, and what was queued and read in which order."""
        model, order = build(self.METHODS), list[str]()
        runs = [
            Run(f"run{seed}", "tiny", TASK.name, make_method(name, learning_rate=1e-2, **settings), seed)
            for seed, (name, settings) in enumerate(self.METHODS)
        ]
        training = Training(batch_size=2, max_steps=5, eval_every=3, warmup_steps=0, schedule="constant")
        rows = (np.arange(20),) * len(runs)
        data = PackData(DATA, DATA, rows, tuple(own[:3] for own in rows))
        noted = Noted(lambda step: spoilt(model, step))
        with pytest.MonkeyPatch.context() as patch:
            take, read = Stepper.take, Losses.read
            patch.setattr(Stepper, "take", lambda self, plan: (order.append("queue"), take(self, plan))[1])
            patch.setattr(Losses, "read", lambda self: (order.append("read"), read(self))[1])
            if not ahead:
                patch.setattr(model.context.kernels, "fuses", False)
            train_pack(model, runs, TASK, data, training, noted)
        return noted, order

    def test_results_are_the_same_to_the_bit(self, build: Callable[..., PackedModel]) -> None:
        found, order = self.trained(build, ahead=True)
        wanted, in_turn = self.trained(build, ahead=False)
        assert in_turn == ["queue", "read"] * 5
        # None is queued ahead of an evaluation, or of the end.
        assert order == [*("queue", "queue", "read", "queue", "read", "read"), *("queue", "queue", "read", "read")]
        assert found.losses == wanted.losses
        for seed, outcome in wanted.outcomes.items():
            other = found.outcomes[seed]
            assert [row.model_dump(exclude={"seconds"}) for row in other.history] == [
                row.model_dump(exclude={"seconds"}) for row in outcome.history
            ]
            assert_same(other.best_state | other.last_state, outcome.best_state | outcome.last_state)

    def test_a_run_whose_loss_is_no_number_is_not_updated_again(self, build: Callable[..., PackedModel]) -> None:
        before: dict[str, Tensor] = {}

        def spoil(model: PackedModel, step: int) -> None:
            if step == 3:  # after the evaluation's step, when nothing is queued
                tensor = next(tensor for tensor in model.bank.of(0) if tensor.name.endswith("out_proj.bias"))
                tensor.data(0).fill_(float("nan"))
                before.update(model.bank.state(0))

        found, _ = self.trained(build, ahead=True, spoilt=spoil)
        alone, _ = self.trained(build, ahead=True)
        failed, other = found.outcomes[0], found.outcomes[1]
        assert failed.state is RunState.FAILED
        assert "at step 4" in (failed.failure or "")
        assert failed.steps == 4
        for name, value in failed.last_state.items():
            assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
        assert [losses[-1] for losses in found.losses] == [losses[-1] for losses in alone.losses]
        assert_same(other.last_state or other.best_state, alone.outcomes[1].last_state or alone.outcomes[1].best_state)
