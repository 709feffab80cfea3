"""Training, evaluation and scoring on a device other than the CPU (`simulated_device`), where every tensor must be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import joining
from manytune.config import Training
from manytune.config.plan import Run
from manytune.data.tasks import get_task
from manytune.methods import make_method
from manytune.methods.adaptation import (
    Adaptation,
    Bottleneck,
    Hook,
    LowRank,
    ScaleInput,
    ScaleOutput,
    TrainBias,
    TrainGain,
)
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel, build_layout
from manytune.packing.buckets import attend
from manytune.packing.dropout import Drop
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.storage.record import HistoryRow
from manytune.training import snapshot
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import evaluate
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Checkpoint, Outcome
from simulated_device import DEVICE, DeviceWork, simulated_device
from tiny import make_tiny_of, random_rows

TASK = get_task("builtin-acceptability")
DATA = random_rows(16, longest=40)
SELECT = np.arange(12, 16)
TRAINING = Training(batch_size=6, max_steps=3, eval_every=2, max_grad_norm=1.0, class_weights="balanced")

MIXED = [("lora", {"rank": 2, "dropout": 0.1}), ("lora", {"rank": 4}), ("bitfit", {})]
KINDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "full": [("full", {})],
    "bitfit": [("bitfit", {})] * 2,
    "head": [("head", {})] * 2,
    "lora and bitfit": MIXED,
}
CASES = [
    *(("roberta", kind, torch.float32) for kind in KINDS),
    *(("roberta", kind, torch.bfloat16) for kind in ("full", "lora and bitfit")),
    ("bert", "lora and bitfit", torch.float32),  # a pooler
    ("electra", "full", torch.float32),  # a projection of the embeddings
    ("albert", "lora and bitfit", torch.float32),  # transformers' modules, several times
    ("modernbert", "full", torch.bfloat16),  # a window, the mean of the tokens
    ("deberta", "bitfit", torch.float32),  # padded batches
]


class Kept(PackCallback):
    """Keeps the losses of the steps, and the newest checkpoint."""

    def __init__(self) -> None:
        self.losses: list[Sequence[float]] = []
        self.newest: Checkpoint | None = None

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.losses.append(losses)

    def should_checkpoint(self, step: int) -> bool:
        return step == 1

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.newest = self.newest or copy.deepcopy(checkpoint)  # the pack goes on with what it holds


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    root = tmp_path_factory.mktemp("zoo")
    return cache(lambda family: load_backbone(str(make_tiny_of(root / family, family)), 2))


@pytest.fixture(autouse=True)
def _plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYTUNE_KERNELS", "plain")


def members_of(backbone: Backbone, methods: Sequence[tuple[str, dict[str, Any]]]) -> tuple[list[Run], list[Member]]:
    made = [make_method(name, learning_rate=1e-3, **settings) for name, settings in methods]
    runs = [Run(f"run{seed}", "tiny", TASK.name, method, seed) for seed, method in enumerate(made)]
    return runs, [Member(seed, method.adapt(backbone.model_spec)) for seed, method in enumerate(made)]


def train(
    backbone: Backbone,
    methods: Sequence[tuple[str, dict[str, Any]]],
    device: torch.device,
    dtype: torch.dtype,
    start: Checkpoint | None = None,
) -> tuple[list[Outcome], Kept]:
    runs, members = members_of(backbone, methods)
    model = PackedModel(backbone, members, dtype=dtype, device=device)
    # Runs that have other numbers of rows, so that a batch is ragged at the end of the first one's epoch.
    rows = tuple(np.arange(12 - 2 * number) for number in range(len(runs)))
    data, kept = PackData(DATA, DATA, rows, (SELECT,) * len(runs)), Kept()
    return train_pack(model, runs, TASK, data, TRAINING, kept, start), kept


def history(outcome: Outcome) -> list[float]:
    rows: Sequence[HistoryRow] = outcome.history
    return [row.eval_loss for row in rows]


@pytest.mark.parametrize(("family", "kind", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_a_pack_trains_and_is_scored_as_on_the_cpu(
    backbone: Callable[[str], Backbone], family: str, kind: str, dtype: torch.dtype
) -> None:
    outcomes, kept = train(backbone(family), KINDS[kind], torch.device("cpu"), dtype)
    with simulated_device():
        there, kept_there = train(backbone(family), KINDS[kind], DEVICE, dtype)
        # Checkpoints are the same thing for every family, and each takes a training.
        again = (
            train(backbone(family), KINDS[kind], DEVICE, dtype, kept_there.newest)[0] if family == "roberta" else there
        )
        members = members_of(backbone(family), KINDS[kind])[1][:1]
        model = snapshot.restore(backbone(family), members, [there[0].best_state], device=DEVICE)
        scored = evaluate(model, TASK, DATA, [SELECT])[0]
    near = 1e-4 if dtype == torch.float32 else 1e-2  # a CPU's products in bf16 are another library's
    np.testing.assert_allclose(kept_there.losses, kept.losses, rtol=near)
    assert [history(each) for each in again] == [history(each) for each in there], "from a checkpoint, to the bit"
    for on_cpu, on_device in zip(outcomes, there, strict=True):
        np.testing.assert_allclose(history(on_device), history(on_cpu), rtol=near)
        assert {tensor.device.type for tensor in on_device.best_state.values()} == {"cpu"}
        assert on_cpu.best_state.keys() == on_device.best_state.keys()
    if dtype == torch.float32:
        assert there[0].best is not None
        assert scored.loss == pytest.approx(there[0].best.loss, rel=1e-4)


def test_runs_join_and_leave_as_on_the_cpu(backbone: Callable[[str], Backbone]) -> None:
    made = backbone("roberta")
    short = {"eval_every": 2, "batch_size": 4}
    first = joining.entry(made, 0, "lora", RANK=2, max_steps=3, **short)
    later = {
        1: [joining.entry(made, 1, "lora", RANK=4, max_steps=2, **short)],
        2: [joining.entry(made, 2, "bitfit", max_steps=2, **short)],
    }
    log, _ = joining.train(made, [first], joining.Schedule(later), room=2)
    with simulated_device():
        there, _ = joining.train(made, [first], joining.Schedule(later), room=2, device=DEVICE)
    assert there.rosters == log.rosters
    assert there.losses.keys() == log.losses.keys() == {"run0", "run1", "run2"}
    for run_id, losses in log.losses.items():
        np.testing.assert_allclose(there.losses[run_id], losses, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_every_kind_of_hook_computes_as_on_the_cpu(backbone: Callable[[str], Backbone], family: str) -> None:
    layer, width = "encoder.layer.1", 32
    dense, norm = f"{layer}.output.dense", f"{layer}.output.LayerNorm"
    hooks: tuple[Hook, ...] = (ScaleInput(dense, 64), TrainBias(dense, width), ScaleOutput(dense, width))
    hooks += (LowRank(dense, 64, width, rank=2, scale=2.0, dropout=0.1), Bottleneck(dense, width, 4, "tanh"))
    hooks += (TrainGain(norm, width), TrainBias(norm, width), Bottleneck(layer, width, 3))
    head = tuple(backbone(family).model_spec.head.shapes())
    members = [Member(0, Adaptation(hooks=hooks, head=head)), Member(1, Adaptation(head=head))]

    def computed(device: torch.device) -> list[Tensor]:
        model = PackedModel(backbone(family), members, device=device)
        logits = model.forward(build_layout(DATA, [np.arange(5), np.arange(3)], device=device), step=1)
        logits.square().sum().backward()
        grads = [tensor.grad for tensor in model.bank.tensors]
        return [logits.detach().cpu(), *(grad.cpu() for grad in grads if grad is not None)]

    on_cpu = computed(torch.device("cpu"))
    with simulated_device():
        there = computed(DEVICE)
    assert len(there) == len(on_cpu) > 12
    for ours, theirs in zip(there, on_cpu, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_tensor_left_on_the_cpu_is_found(
    backbone: Callable[[str], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ReferenceKernels.gelu

    def planted(self: ReferenceKernels, x: Tensor, *others: Any) -> Tensor:
        return original(self, x, *others) + torch.zeros(x.shape[1])

    monkeypatch.setattr(ReferenceKernels, "gelu", planted)
    with simulated_device(), pytest.raises(RuntimeError, match=r"on the same device, but found lazy:0 and cpu"):
        train(backbone("roberta"), MIXED, DEVICE, torch.float32)


class TestDeviceWork:
    def test_launches_copies_and_waits_are_told_apart(self) -> None:
        with simulated_device() as device:
            x = torch.randn(4, 3).to(device)
            with DeviceWork() as work:
                y = x.view(3, 4).t() @ torch.ones(3, 2, device=device)  # a fill and a product; views are free
                y.add_(1)
                torch.ones(2).to(device, non_blocking=True)
                on_cpu = torch.zeros(2)
                torch.zeros(3).add_(on_cpu.sum())  # the CPU's own work does not count
        assert work.launches == {"ones": 1, "mm": 1, "add_": 1}
        assert work.copies == {"to device": 1}
        assert work.blocking == 0

    @pytest.mark.parametrize(
        ("wait", "name"),
        [
            (lambda x: x.tolist(), "copy to host"),
            (lambda x: x.cpu(), "copy to host"),
            (lambda x: x.sum().item(), "_local_scalar_dense"),
            (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
            (lambda x: x[x > 0], "nonzero"),
            (lambda x: torch.tensor([1.0], device=x.device), "copy to device"),
            (lambda x: x[[0, 2]], "copy to device"),
            (lambda x: torch.ones(2).to(x.device), "copy to device"),
        ],
        ids=["tolist", "cpu", "item", "bool", "mask", "tensor", "list", "to"],
    )
    def test_what_waits_for_the_device_is_named(self, wait: Callable[[Tensor], Any], name: str) -> None:
        with simulated_device() as device:
            x = torch.randn(4).to(device)
            with DeviceWork() as work:
                wait(x)
        assert work.waits == {name: 1}

    def test_what_the_cpu_does_is_not_counted(self) -> None:
        with DeviceWork() as work:
            torch.ones(3).sum().item()
        assert (work.launches.total(), work.copies.total(), work.blocking) == (0, 0, 0)


class TestAttention:
    """Attention in plain torch, `attend`."""

    def test_training_without_dropout_goes_around_sdpa(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its gradient on a GPU differs from time to time."""
        called: list[bool] = []
        original = F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append(True) or original(*a, **k))
        with simulated_device() as device:
            layout = build_layout(DATA, [np.arange(6)], device=device)
            q, k, v = (torch.randn(layout.rows, 32).to(device).requires_grad_() for _ in range(3))
            out = attend(q, k, v, layout, 4, 0.3, None)
            out.sum().backward()
            assert not called
            with torch.no_grad():
                evaluated = attend(q, k, v, layout, 4, 0.3, None)
            assert called
        torch.testing.assert_close(out.detach().cpu(), evaluated.cpu())

    def test_scores_in_bf16_are_not_rounded(self) -> None:
        """Rounded to bf16, a score of 100 is off by 0.25, and its weight by a quarter."""
        layout = build_layout(DATA, [np.arange(6)])
        q, k, v = (torch.randn(layout.rows, 32).bfloat16() for _ in range(3))
        drop = Drop(torch.zeros(layout.rows, dtype=torch.int32), 0, 1e-9)
        rounded = attend(q * 6, k * 6, v, layout, 4, 1.0, drop).float()
        exact = attend((q * 6).double(), (k * 6).double(), v.double(), layout, 4, 1.0, None).float()
        assert (rounded - exact).abs().max() < 0.02
