from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manytune.methods.adaptation import Adaptation
from manytune.methods.bitfit import BitFit
from manytune.models.spec import HeadLayer, HeadSpec
from manytune.packing.bank import Bank, Member
from manytune.packing.context import Context
from manytune.packing.dropout import Keys, dropout_scale, site_key
from manytune.packing.heads import PackedHead, initial_head, reach
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.packing.layout import build_layout
from tiny import random_rows

HIDDEN, PER_RUN = 8, 3

BERT = HeadSpec((HeadLayer("classifier", HIDDEN, 2, "none", 0.3),), 0.02)
ROBERTA = HeadSpec(
    (
        HeadLayer("classifier.dense", HIDDEN, HIDDEN, "tanh", 0.3),
        HeadLayer("classifier.out_proj", HIDDEN, 1, "none", 0.3),
    ),
    0.5,
)
GELU = HeadSpec((HeadLayer("head.dense", HIDDEN, 6, "gelu", 0.0), HeadLayer("classifier", 6, 3, "none", 0.3)), 0.5)
SPECS = {"bert": BERT, "roberta": ROBERTA, "gelu": GELU}
Mode = Literal["full", "bias", "frozen"]


class Pack:
    """The heads of some runs in the middle of a forward pass."""

    def __init__(self, spec: HeadSpec, seeds: Sequence[int], modes: Sequence[Mode], *, train: bool = False) -> None:
        self.spec, self.seeds = spec, seeds
        self.bank = Bank()
        trained = [BitFit(learning_rate=1.0, head=mode).trained_head(spec) for mode in modes]
        members = [Member(seed, Adaptation(head=names)) for seed, names in zip(seeds, trained, strict=True)]
        self.head = PackedHead(spec, members, self.bank, torch.device("cpu"))
        # Each run's rows derive from its seed, so that a run sees the same alone and in a pack.
        rows = [np.random.default_rng(seed).integers(0, 20, PER_RUN) for seed in seeds]
        layout = build_layout(random_rows(20, longest=4), rows)
        self.context = Context(torch.float32, ReferenceKernels())
        self.context.begin(layout, Keys.build(layout, seeds, 1) if train else None)
        self.context.rows = "sequences"
        self.features = torch.cat(
            [torch.from_numpy(np.random.default_rng(seed).normal(size=(PER_RUN, HIDDEN))).float() for seed in seeds]
        )

    def logits(self) -> Tensor:
        return self.head(self.features, self.context)

    def plain(self, run: int) -> Tensor:
        """One run's logits, [B, outputs], by transformers' order: dropout, product, activation."""
        state = self.bank.state(run)
        own = slice(run * PER_RUN, (run + 1) * PER_RUN)
        x = self.features[own]
        for layer in self.spec.layers:
            if self.context.keys is not None and layer.dropout > 0:
                keys = self.context.keys.sequences[own]
                x = x * dropout_scale(keys, site_key(layer.name, 0), x.shape[1], layer.dropout, x.dtype)
            x = F.linear(x, state[f"{layer.name}.weight"], state[f"{layer.name}.bias"])
            x = {"tanh": torch.tanh, "gelu": F.gelu, "none": lambda same: same}[layer.activation](x)
        return x


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_fresh_head_depends_on_the_seed_alone(spec: HeadSpec) -> None:
    pack = Pack(spec, [5, 3, 5, 8], ["full", "full", "bias", "frozen"])
    for run, seed in enumerate(pack.seeds):
        expected = initial_head(spec, seed)
        state = pack.bank.state(run)
        assert state.keys() == expected.keys() == spec.shapes().keys()
        for name, shape in spec.shapes().items():
            assert expected[name].shape == shape
            assert torch.equal(state[name], expected[name])
    weights = [initial_head(spec, seed)[f"{spec.layers[0].name}.weight"] for seed in (3, 5)]
    assert not torch.equal(*weights)


def test_fresh_weights_are_normal_and_biases_zero() -> None:
    wide = HeadSpec((HeadLayer("a", 200, 200, "tanh", 0.0), HeadLayer("b", 200, 200, "none", 0.0)), 0.02)
    tensors = initial_head(wide, 0)
    for name in ("a", "b"):
        weight = tensors[f"{name}.weight"]
        assert float(weight.std()) == pytest.approx(0.02, rel=5 / math.sqrt(2 * weight.numel()))
        assert abs(float(weight.mean())) < 5 * 0.02 / math.sqrt(weight.numel())
        assert not tensors[f"{name}.bias"].any()
    assert not torch.equal(tensors["a.weight"], tensors["b.weight"])


@pytest.mark.parametrize("train", [True, False], ids=["dropout", "no dropout"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_logits_equal_those_of_a_plain_head(spec: HeadSpec, train: bool) -> None:
    pack = Pack(spec, [0, 1, 2, 3], ["full", "full", "bias", "full"], train=train)
    for tensor in pack.bank.tensors:
        tensor.value.data += 0.25
    logits = pack.logits()
    assert logits.shape == (4, PER_RUN, spec.layers[-1].outputs)
    assert logits.dtype == torch.float32
    for run in range(4):
        torch.testing.assert_close(logits[run], pack.plain(run), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("counts", [(1, 3, 2, 3), (3, 0, 1, 0), (0, 0, 0, 2)], ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_runs_of_different_numbers_of_rows(spec: HeadSpec, counts: tuple[int, ...]) -> None:
    """Each gets the logits, and the gradients, of its own rows; a run without rows a gradient of zero."""
    seeds, modes = [0, 1, 2, 3], ["full", "full", "bias", "full"]
    pack, even = (Pack(spec, seeds, modes, train=True) for _ in range(2))  # type: ignore[arg-type]
    data = random_rows(20, longest=4)
    rows = [np.random.default_rng(seed).integers(0, 20, PER_RUN)[:n] for seed, n in zip(seeds, counts, strict=True)]
    layout = build_layout(data, rows)
    pack.context.begin(layout, Keys.build(layout, seeds, 1))
    pack.context.rows = "sequences"
    first = [run * PER_RUN for run in range(4)]
    kept = [row for start, count in zip(first, counts, strict=True) for row in range(start, start + count)]
    logits = pack.head(pack.features[kept], pack.context)
    assert logits.shape == (4, max(counts), spec.layers[-1].outputs)
    expected = even.logits()
    for run, count in enumerate(counts):
        torch.testing.assert_close(logits[run, :count], expected[run, :count], rtol=1e-6, atol=1e-6)
    sum(logits[run, :count].square().sum() for run, count in enumerate(counts)).backward()  # type: ignore[union-attr]
    sum(expected[run, :count].square().sum() for run, count in enumerate(counts)).backward()  # type: ignore[union-attr]
    for own, other in zip(pack.bank.tensors, even.bank.tensors, strict=True):
        if own.value.requires_grad:
            torch.testing.assert_close(own.value.grad, other.value.grad, rtol=1e-5, atol=1e-6)


def test_dropout_changes_the_logits() -> None:
    with_dropout, without = (Pack(ROBERTA, [0, 1], ["full", "full"], train=train) for train in (True, False))
    assert not torch.allclose(with_dropout.logits(), without.logits())


@pytest.mark.parametrize("modes", [["full", "bias", "bias", "frozen"], ["frozen", "full", "frozen", "full"]])
def test_runs_of_any_modes_share_a_pack(modes: list[Mode]) -> None:
    seeds = [4, 2, 6, 2]
    together = Pack(ROBERTA, seeds, modes, train=True)
    logits = together.logits()
    for run, (seed, mode) in enumerate(zip(seeds, modes, strict=True)):
        alone = Pack(ROBERTA, [seed], [mode], train=True)
        torch.testing.assert_close(alone.logits()[0], logits[run], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "trained"),
    [
        (
            "full",
            {
                "classifier.dense.weight",
                "classifier.dense.bias",
                "classifier.out_proj.weight",
                "classifier.out_proj.bias",
            },
        ),
        ("bias", {"classifier.dense.bias", "classifier.out_proj.bias"}),
        ("frozen", set()),
    ],
)
def test_a_mode_says_which_tensors_train(mode: Mode, trained: set[str]) -> None:
    pack = Pack(ROBERTA, [0, 1], [mode, "full"])
    pack.logits().square().sum().backward()
    held = pack.bank.of(0)
    assert {tensor.name for tensor in held} == set(ROBERTA.shapes())
    assert {tensor.name for tensor in held if tensor.value.requires_grad} == trained
    assert {tensor.name for tensor in held if tensor.value.grad is not None} == trained
    for tensor in held:
        assert tensor.value.grad is None or tensor.value.grad[0].any()
    assert {tensor.kind for tensor in held} == {"head"}


def test_a_smaller_pack_computes_what_it_did() -> None:
    pack = Pack(ROBERTA, [0, 1, 2, 3], ["full", "full", "bias", "frozen"])
    before = pack.logits()
    kept = [1, 3]
    pack.bank.keep(kept)
    smaller = Pack(ROBERTA, kept, ["full", "frozen"])
    after = pack.head(smaller.features, smaller.context)
    torch.testing.assert_close(after, before[kept], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_frozen_heads_reach_is_as_far_as_its_inputs_can_push_it(seed: int) -> None:
    weight = initial_head(ROBERTA, seed)["classifier.out_proj.weight"]
    furthest = weight.sign()  # what tanh comes near to
    assert reach(ROBERTA, seed) == pytest.approx(float((weight * furthest).sum()))
    single = HeadSpec((HeadLayer("classifier", HIDDEN, 1, "none", 0.0),), 0.02)
    alone = initial_head(single, seed)["classifier.weight"]
    assert reach(single, seed) == pytest.approx(float(alone.abs().sum()))


def test_without_tanh_there_is_no_bound() -> None:
    assert reach(GELU, 0) == math.inf
