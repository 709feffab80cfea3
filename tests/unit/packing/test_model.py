from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from equal_updates import EqualAdamW
from manytune.methods import make_method
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel, build_layout
from tiny import make_tiny, random_rows

ROWS = random_rows(6, longest=9)
METHODS = {
    "full": make_method("full", learning_rate=1.0),
    "bitfit": make_method("bitfit", learning_rate=1.0),
    "lora": make_method("lora", rank=2, learning_rate=1.0),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A BERT whose biases are not zero, as a pretrained one's are not, and which bf16 cannot hold."""
    loaded = load_backbone(str(make_tiny(tmp_path_factory.mktemp("tiny") / "bert")), 2)
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return loaded


@pytest.fixture
def build(backbone: Backbone) -> Callable[..., PackedModel]:
    def packed(method: str, runs: int = 1, dtype: torch.dtype = torch.float32) -> PackedModel:
        adaptation = METHODS[method].adapt(backbone.model_spec)
        return PackedModel(backbone, [Member(seed, adaptation) for seed in range(runs)], dtype=dtype)

    return packed


def storages(model: PackedModel) -> set[int]:
    """Where the parameters lie that a forward pass reads and no run owns."""
    owned = {id(tensor.value) for tensor in model.bank.tensors}
    parts = (model._passes._encoder, model._passes.pooler)
    return {p.data_ptr() for part in parts for p in part.parameters() if id(p) not in owned}


@pytest.mark.parametrize("method", METHODS)
def test_what_trains_starts_from_the_fp32_checkpoint_in_any_precision(
    build: Callable[..., PackedModel], backbone: Backbone, method: str
) -> None:
    state = build(method, dtype=torch.bfloat16).bank.state(0)
    expected = build(method).bank.state(0)
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
    pretrained = {f"bert.{name}": p for name, p in backbone.model.named_parameters()}
    assert (len(state.keys() & pretrained.keys()) > 10) is (method != "lora")
    for name in state.keys() & pretrained.keys():
        assert torch.equal(state[name], pretrained[name])


def test_frozen_weights_are_shared_with_the_backbone(build: Callable[..., PackedModel], backbone: Backbone) -> None:
    pretrained = {parameter.data_ptr() for parameter in backbone.model.parameters()}
    joined = {"query.weight", "key.weight", "value.weight"}  # laid side by side for one product
    for model in (build("lora"), build("bitfit", runs=2)):
        apart = [p for name, p in backbone.model.named_parameters() if name.split("self.")[-1] not in joined]
        assert {p.data_ptr() for p in apart} == storages(model) & pretrained
        assert len(storages(model) - pretrained) == len(pretrained) - len(apart)
    own = {tensor.value.data_ptr() for tensor in build("full").bank.tensors}
    assert own.isdisjoint(pretrained)


def test_in_bf16_the_encoders_products_are_rounded_and_nothing_else(
    build: Callable[..., PackedModel], backbone: Backbone
) -> None:
    model = build("lora", dtype=torch.bfloat16)
    assert model._passes.pooler is not None
    pooler = model._passes.pooler.state_dict()
    assert len(pooler) == 2
    for name, tensor in pooler.items():
        assert torch.equal(tensor, backbone.model.get_parameter(f"pooler.dense.{name}"))
    linears = {f"{path}.weight" for path in backbone.model_spec.linears}
    for name, parameter in model._passes._encoder.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if name in linears else torch.float32), name
    logits = model.forward(build_layout(ROWS, [np.arange(6)]))
    assert logits.dtype == torch.float32
    exact = build("lora").forward(build_layout(ROWS, [np.arange(6)]))
    assert 0 < float((logits - exact).detach().abs().max()) < 0.1


def test_full_fine_tuning_in_bf16_trains_fp32_weights_of_which_products_read_a_copy(
    build: Callable[..., PackedModel], backbone: Backbone
) -> None:
    model = build("full", dtype=torch.bfloat16)
    products = {f"bert.{path}.weight" for path in backbone.model_spec.linears}
    copies = {t.name: t for t in model.bank.tensors if t.compute_copy is not None}
    assert copies.keys() == {name for name in products if "pooler" not in name}
    assert all(tensor.value.dtype == torch.float32 for tensor in model.bank.tensors)
    optimizer = EqualAdamW(model.bank, model.context.kernels)
    layout, labels = build_layout(ROWS, [np.arange(6)]), torch.tensor([0, 1, 0, 1, 0, 1])
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model.forward(layout)[0], labels)
        losses.append(float(loss.detach()))
        loss.backward()
        assert all(tensor.grad is not None for tensor in model.bank.tensors)
        optimizer.step([1e-3])
        for tensor in copies.values():
            assert tensor.compute_copy is not None
            assert torch.equal(tensor.compute_copy, tensor.value.bfloat16())
    assert losses[2] < losses[0]
    fresh = build("full", dtype=torch.bfloat16)
    fresh.bank.load(0, model.bank.state(0))
    assert torch.equal(fresh.forward(layout), model.forward(layout))


def test_rows_are_rounded_for_torchs_products_alone(
    build: Callable[..., PackedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = build("lora", dtype=dtype)
        for multiplies in (False, True):
            monkeypatch.setattr(model.context.kernels, "multiplies", multiplies)
            assert model.rounds_rows is (not multiplies or dtype == torch.bfloat16)


def test_a_smaller_pack_computes_what_its_runs_did(build: Callable[..., PackedModel]) -> None:
    for method in ("bitfit", "lora"):
        model = build(method, runs=4)
        for run in range(4):
            spread(model, run)
        rows = [np.arange(run, run + 3) for run in range(4)]
        before = model.forward(build_layout(ROWS, rows), step=0)
        model.keep([1, 3])
        after = model.forward(build_layout(ROWS, [rows[1], rows[3]]), step=0)
        torch.testing.assert_close(after, before[[1, 3]], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after, before[[0, 2]])


def spread(model: PackedModel, run: int) -> None:
    """Make a run's tensors its own."""

    def shifted(tensor: Tensor) -> Tensor:
        return tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(run))

    model.bank.load(run, {name: shifted(tensor) for name, tensor in model.bank.state(run).items()})


def test_runs_that_differ_in_alpha_alone_keep_their_own_scale(backbone: Backbone) -> None:
    """They share a group, also after one of them has left."""
    members = [
        Member(5, make_method("lora", rank=2, alpha=alpha, learning_rate=1.0).adapt(backbone.model_spec))
        for alpha in (1.0, 8.0, 64.0)
    ]
    together = PackedModel(backbone, members)
    assert sum(len(group) == 3 for group in together.bank.groups) == 2  # the adapters, the heads
    for run in range(3):
        spread(together, run)
    together.keep([0, 2])
    logits = together.forward(build_layout(ROWS, [np.arange(6)] * 2))
    for run, member in enumerate((members[0], members[2])):
        alone = PackedModel(backbone, [member])
        alone.bank.load(0, together.bank.state(run))
        expected = alone.forward(build_layout(ROWS, [np.arange(6)]))
        torch.testing.assert_close(logits[run], expected[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1])


def test_every_layer_and_every_seed_draws_an_a_of_its_own(build: Callable[..., PackedModel]) -> None:
    model = build("lora", runs=2)
    draws = [
        (run, name, tensor) for run in range(2) for name, tensor in model.bank.state(run).items() if "lora_A" in name
    ]
    assert len(draws) == 2 * 2 * 2  # seeds, layers, targets
    for index, (run, name, tensor) in enumerate(draws):
        for other_run, other_name, other in draws[:index]:
            assert not torch.equal(tensor, other), (run, name, other_run, other_name)
    again = build("lora").bank.state(0)
    assert all(torch.equal(tensor, again[name]) for run, name, tensor in draws if run == 0)


def test_a_run_that_trains_every_weight_has_no_neighbours(build: Callable[..., PackedModel]) -> None:
    with pytest.raises(ValueError, match="pack of one"):
        build("full", runs=2)
