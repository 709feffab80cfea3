"""Settings of methods that change what trains, how it begins, and at which rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manytune.config import Study
from manytune.config.plan import plan_runs
from manytune.methods import make_method
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel, build_layout
from manytune.utils.errors import StudyError
from tiny import make_tiny, make_tiny_of, random_rows


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(make_tiny(tmp_path_factory.mktemp("settings") / "bert")), 2)


def state_of(backbone: Backbone, seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    method = make_method(settings.pop("method"), learning_rate=1e-3, **settings)
    return PackedModel(backbone, [Member(seed, method.adapt(backbone.model_spec))]).bank.state(0)


def test_the_last_layers_begin_anew_keyed_by_the_seed(backbone: Backbone) -> None:
    pretrained = {f"bert.{name}": tensor for name, tensor in backbone.model.state_dict().items()}
    first, again, other = (state_of(backbone, seed, method="full", reinit_top=1) for seed in (0, 0, 1))
    fresh = [name for name in pretrained if ".layer.1." in name or "pooler" in name]
    assert len(fresh) == 18
    for name, tensor in pretrained.items():
        if name not in fresh:
            assert torch.equal(first[name], tensor), name
        elif tensor.dim() == 2:
            assert torch.equal(first[name], again[name]), name
            assert not torch.isclose(first[name], other[name]).any(), name
            assert float(first[name].std()) == pytest.approx(backbone.config.initializer_range, rel=0.1), name
        else:
            assert torch.equal(first[name], torch.full_like(tensor, float(name.endswith("weight")))), name


def test_what_is_below_the_last_layers_has_no_gradient(backbone: Backbone) -> None:
    for settings in ({"method": "full", "layers": "top 1"}, {"method": "lora", "rank": 2, "layers": "top 1"}):
        names = {name for name in state_of(backbone, **settings) if name.startswith("bert.")}
        assert names
        assert all(".layer.1." in name or ("pooler" in name and settings["method"] == "full") for name in names)


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal", "pissa", "olora"])
def test_however_lora_begins_a_run_is_the_base_model(backbone: Backbone, init: str) -> None:
    rows = random_rows(6)
    base, own = (
        PackedModel(backbone, [Member(3, method.adapt(backbone.model_spec))]).forward(
            build_layout(rows, [np.arange(6)])
        )
        for method in (
            make_method("head", learning_rate=1.0),
            make_method("lora", rank=4, alpha=32, init=init, targets="all-linear", learning_rate=1.0),
        )
    )
    torch.testing.assert_close(own, base, rtol=1e-4, atol=1e-5)


def test_runs_of_other_rates_and_scales_share_their_tensors(backbone: Backbone) -> None:
    """But PiSSA's factors hold the scale, so there they do not."""
    settings = [{"alpha": 4, "b_learning_rate_ratio": 16}, {"alpha": 8, "head_learning_rate": 1e-4}]
    for init, groups in (("kaiming", [(0, 2)]), ("pissa", [(0, 1), (1, 2)])):
        methods = [make_method("lora", rank=2, init=init, learning_rate=1e-3, **each) for each in settings]
        model = PackedModel(backbone, [Member(0, method.adapt(backbone.model_spec)) for method in methods])
        factors = [
            tensor
            for tensor in model.bank.tensors
            if tensor.name.endswith("layer.0.attention.self.query.lora_B.weight")
        ]
        assert [(tensor.group.first, tensor.group.last) for tensor in factors] == groups
    head = next(tensor for tensor in model.bank.tensors if tensor.name == "classifier.weight")
    assert head.rates is not None
    assert head.rates.tolist() == pytest.approx([1.0, 0.1])


def test_a_head_rate_may_be_a_multiple_of_the_learning_rate() -> None:
    study = Study.from_dict(
        {
            "name": "multiples",
            "tasks": ["builtin-acceptability"],
            "seeds": [0],
            "training": {"epochs": 1},
            "methods": [
                {"method": "full", "learning_rate": [1e-5, 1e-4], "head_learning_rate": {"of_learning_rate": 10}}
            ],
        }
    )
    found = [run.method.model_dump() for run in plan_runs(study)]
    assert [each["head_learning_rate"] for each in found] == pytest.approx([1e-4, 1e-3])
    assert plan_runs(study)[0].label == "full lr 1e-5, head_learning_rate 1e-4"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "full", "layers": "top 3"}, "full's layers: the encoder has 2 layers, so `top 3` is not possible"),
        ({"method": "full", "reinit_top": 3}, "full's reinit_top 3 is more than the encoder's layers, 2"),
        (
            {"method": "lora", "rank": 2, "freeze_a": True, "b_learning_rate_ratio": 4.0},
            "with freeze_a A does not train",
        ),
        ({"method": "full", "reinit_top": 2, "layers": "top 1"}, "reaches layers that stay frozen with layers `top 1`"),
        ({"method": "full", "layers": "last 2"}, "it must be all, or the number of the last layers, such as top 4"),
        ({"method": "full", "layerwise_decay": 1.5}, "must be at most 1"),
        ({"method": "lora", "rank": 3, "init": "orthogonal"}, "init orthogonal needs an even rank, not 3"),
        ({"method": "lora", "rank": 3, "init": "eva"}, "init: 'eva' is not one of"),
        (
            {"method": "lora", "rank": 2, "targets": "pooler.dense", "layers": "top 1"},
            "targets: received 'pooler.dense'",
        ),
        (
            {"method": "lora", "rank": 2, "targets": ["pooler.dense"], "layers": "top 1"},
            "targets are in none of the layers `top 1`",
        ),
        ({"method": "lora", "rank": 2, "targets": ["all-linear", "query"]}, "holds every layer already"),
        ({"method": "lora", "rank": 2, "head": "frozen", "head_learning_rate": 1e-3}, "but its head is frozen"),
        ({"method": "bitfit", "biases": "query"}, "biases: 'query' is not one of"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_the_reason(
    backbone: Backbone, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError) as error:
        state_of(backbone, **settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("albert", {"method": "full", "layers": "top 1"}, "this backbone's layers are one and the same, so use all"),
        ("albert", {"method": "full", "layerwise_decay": 0.9}, "layerwise_decay: this backbone's layers are one and"),
        ("albert", {"method": "full", "reinit_top": 1}, "reinit_top: this backbone's layers are one and the same"),
        (
            "modernbert",
            {"method": "bitfit", "biases": "query-and-ffn"},
            "bitfit trains the backbone's biases, and this",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(
    tmp_path: Path, family: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        state_of(load_backbone(str(make_tiny_of(tmp_path / family, family)), 2), **settings)
