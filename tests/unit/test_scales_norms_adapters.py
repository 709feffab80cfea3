"""What is special to (IA)³, LayerNorm tuning and adapters: what trains where, and which backbones they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from manytune.methods import make_method
from manytune.methods.adaptation import Bottleneck, ScaleInput, ScaleOutput, TrainBias, TrainGain
from manytune.models.loading import model_spec
from manytune.models.spec import ModelSpec
from manytune.utils.errors import StudyError
from tiny import make_tiny_of


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    folder = tmp_path_factory.mktemp("specs")
    families = ("bert", "modernbert", "albert", "deberta", "roformer")
    return {family: model_spec(str(make_tiny_of(folder / family, family)), 2) for family in families}


def test_ia3_scales_keys_values_and_what_narrows_again(specs: dict[str, ModelSpec]) -> None:
    hooks = make_method("ia3", learning_rate=1).adapt(specs["bert"]).hooks
    layers = ("encoder.layer.0", "encoder.layer.1")
    outputs = {f"{layer}.attention.self.{name}" for layer in layers for name in ("key", "value")}
    assert {hook.path for hook in hooks if isinstance(hook, ScaleOutput)} == outputs
    assert {hook.path for hook in hooks if isinstance(hook, ScaleInput)} == {f"{n}.output.dense" for n in layers}
    alone = make_method("ia3", learning_rate=1, feed_forward=False).adapt(specs["bert"]).hooks
    assert {hook.path for hook in alone} == outputs
    # One layer, whose embeddings' projection is no part of it.
    albert = make_method("ia3", learning_rate=1).adapt(specs["albert"]).hooks
    assert [hook.path.rpartition(".")[2] for hook in albert] == ["key", "value", "ffn_output"]


@pytest.mark.parametrize(("family", "layer"), [("modernbert", "Wqkv"), ("deberta", "in_proj")])
def test_where_queries_are_one_layer_with_keys_they_are_scaled_too(
    specs: dict[str, ModelSpec], family: str, layer: str
) -> None:
    method = make_method("ia3", learning_rate=1)
    (note,) = method.notes(specs[family])
    assert note == f"query, key and value are one layer, {layer}; ia3 scales all of its outputs, queries too."
    scaled = [hook for hook in method.adapt(specs[family]).hooks if isinstance(hook, ScaleOutput)]
    assert [(hook.path.rpartition(".")[2], hook.size) for hook in scaled] == [(layer, 96)] * 2
    assert not [*method.notes(specs["bert"])]


def test_every_norm_of_the_backbone_is_tuned(specs: dict[str, ModelSpec]) -> None:
    for family, norms in (("bert", 5), ("modernbert", 5), ("albert", 3), ("deberta", 5), ("roformer", 5)):
        hooks = make_method("ln-tuning", learning_rate=1).adapt(specs[family]).hooks
        gains = [hook.path for hook in hooks if isinstance(hook, TrainGain)]
        assert len(gains) == norms, family
        assert any(path.startswith("embeddings.") for path in gains)
        biases = [hook.path for hook in hooks if isinstance(hook, TrainBias)]
        assert biases == ([] if family == "modernbert" else gains)
        only = make_method("ln-tuning", learning_rate=1, biases=False).adapt(specs[family]).hooks
        assert [hook.path for hook in only] == gains


def test_the_norms_are_those_of_transformers(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    for family in specs:
        model = AutoModelForSequenceClassification.from_pretrained(make_tiny_of(tmp_path / family, family))
        found = {path for path, each in model.base_model.named_modules() if type(each).__name__.endswith("LayerNorm")}
        assert set(specs[family].norms) == found


def test_where_adapters_stand(specs: dict[str, ModelSpec]) -> None:
    places = {
        ("bert", "pfeiffer"): ["output.LayerNorm"],
        ("bert", "houlsby"): ["attention.output.dropout", "output.dropout"],
        ("roformer", "houlsby"): ["attention.output.dropout", "output.dropout"],
        ("modernbert", "pfeiffer"): [""],
        ("modernbert", "houlsby"): ["attn", "mlp"],
    }
    for (family, kind), expected in places.items():
        hooks = make_method("adapter", learning_rate=1, kind=kind).adapt(specs[family]).hooks
        container = "layers" if family == "modernbert" else "encoder.layer"
        paths = {f"{container}.{layer}.{path}".removesuffix(".") for layer in (0, 1) for path in expected}
        assert {hook.path for hook in hooks} == paths
        for hook in hooks:
            assert isinstance(hook, Bottleneck)
            assert (hook.size, hook.width) == (32, 2)
            assert hook.activation == {"pfeiffer": "relu", "houlsby": "silu"}[kind]
            assert hook.renorms is (kind == "pfeiffer" and family != "modernbert")


def test_a_default_activation_shares_a_group_with_its_own_name() -> None:
    """Neighbours in a pack have the same hooks, so that their tensors are one."""
    own, named, other = (make_method("adapter", learning_rate=1, activation=each) for each in (None, "relu", "gelu"))
    assert own.pack_order == named.pack_order
    assert sorted([other, own], key=lambda method: method.pack_order) == [other, own]
    assert len({own.label, named.label, other.label}) == 3


def test_a_backbone_that_does_not_fit_is_refused_with_what_would(specs: dict[str, ModelSpec]) -> None:
    strange = replace(
        specs["bert"],
        targets={word: word[::-1] for word in ("query", "key", "value")},
        tensors={name: shape for name, shape in specs["bert"].tensors.items() if "LayerNorm" not in name},
        layer_ends=(),
    )
    for method, message in (
        (
            make_method("ia3", learning_rate=1),
            r"ia3 scales keys and values, and .* are called: dense, key, query, value",
        ),
        (
            make_method("ln-tuning", learning_rate=1),
            "ln-tuning trains the backbone's norms, and this backbone has none",
        ),
        (
            make_method("adapter", learning_rate=1),
            "adapter stands behind the sub-layers of a layer, and it is not known",
        ),
    ):
        assert method.suits(specs["bert"])
        assert not method.suits(strange)
        with pytest.raises(StudyError, match=message):
            method.adapt(strange)
    narrow = make_method("adapter", learning_rate=1, reduction_factor=33)
    assert not narrow.suits(specs["bert"])
    with pytest.raises(StudyError, match=r"reduction_factor 33 leaves nothing of .* 32; a factor from 1 to 32"):
        narrow.adapt(specs["bert"])
