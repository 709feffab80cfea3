"""The encoder families as data: where a pack's tokens lie, what the head is, what query, key and value are called.

A family is known by the `model_type` of its transformers config. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

WORDS = ("query", "key", "value")
"""Names of layers that a study may use with any family; each row's `targets` says what they are called there."""


@dataclass(frozen=True)
class HeadRow:
    """One linear layer of a family's head: dropout, the product, the activation, the norm."""

    module: str  # the layer's path in transformers' sequence-classification model
    activation: str = "none"  # its name in transformers, or the key of the config that holds the name
    # config keys of the dropout before the product: the first one that is set counts; without keys there is none
    dropout: tuple[str, ...] = ()
    norm: str | None = None  # path of the LayerNorm behind the activation, if there is one
    # the standard deviation of fresh weights, from the config
    scale: Callable[[Any], float] = lambda config: config.initializer_range


@dataclass(frozen=True)
class LayerNames:
    """The paths, in a layer of `encoder.layer`, of the parts that an encoder layer built like BERT's is made of."""

    attention: str  # the module that computes queries, keys, values and what their attention gives
    attention_dropout: str  # of the weights
    query: str
    key: str
    value: str
    attn_out: str  # the product behind attention
    dropout1: str  # behind that product
    norm1: str = "attention.LayerNorm"
    fc1: str = "intermediate.dense"
    fc2: str = "output.dense"
    dropout2: str = "output.dropout"
    norm2: str = "output.LayerNorm"


_BERT_LAYER = LayerNames(
    attention="attention.self",
    attention_dropout="attention.self.dropout",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attn_out="attention.output.dense",
    dropout1="attention.output.dropout",
    norm1="attention.output.LayerNorm",
)
_MPNET_LAYER = LayerNames(
    attention="attention.attn",
    attention_dropout="attention.attn.dropout",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attn_out="attention.attn.o",
    dropout1="attention.dropout",
)


@dataclass(frozen=True)
class SubLayers:
    """The modules, in an encoder layer, at which its two sub-layers end."""

    attention: str = "attention.output.dropout"  # whose output is added to the layer's input
    feed_forward: str = "output.dropout"  # whose output is added to the one of attention
    last: str = "output.LayerNorm"  # the norm of that sum; empty where the layer ends without one


@dataclass(frozen=True)
class Family:
    """How an architecture is used."""

    checkpoint: str  # a well-known model on the hub
    # `flat`: all runs in one pass, their sequences end to end, where attention goes through transformers' interface
    # or is replaced by ours (`position_bias`);
    # `padded`: one run after the other, its sequences padded to the longest of its batch
    path: Literal["flat", "padded"]
    # the layers of the head, in the order of computation; empty where transformers' own modules compute it
    head: tuple[HeadRow, ...] = ()
    # the words query, key and value → the names of these layers in this family
    targets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({word: word for word in WORDS}))
    # path in the backbone of the linear layer, with tanh, between the first token and the head
    pooler: str | None = None
    # position id of a sequence's first token; None: the one after the padding token's id
    first_position: int | None = 0
    pooling: str | None = None  # config key that holds `cls` or `mean`; None: the head sees the first token
    # config key of the number of standard deviations at which fresh weights of the head are cut off
    cutoff: str | None = None
    layer: LayerNames | None = None  # where `encoder.layer` holds layers built like BERT's
    sublayers: SubLayers = SubLayers()
    # path of an embedding of relative positions, a column for each head, that all layers add to attention's scores;
    # `relative_position_bucket` of the module around it says which row a key's place less the query's has
    position_bias: str | None = None
    # whether transformers' own modules can work in bf16; else they compute in fp32 whatever is asked for
    bf16: bool = True

    def layers(self, words: Iterable[str]) -> list[str]:
        """What layers are called here, by the words of a study's `targets`."""
        return list(dict.fromkeys(self.targets.get(word, word) for word in words))

    @property
    def is_fused(self) -> bool:
        """Whether query, key and value are one layer, all of which is adapted where one of them is named."""
        return len(set(self.targets.values())) == 1


def _one_over_root_depth(config: Any) -> float:
    """ModernBERT's deviation of fresh weights inside the head, which falls with the number of layers."""
    return float(config.initializer_range / (2.0 * config.num_hidden_layers) ** 0.5)


_OWN_OR_HIDDEN = ("classifier_dropout", "hidden_dropout_prob")


def _named(query: str, key: str, value: str) -> Mapping[str, str]:
    return MappingProxyType(dict(zip(WORDS, (query, key, value), strict=True)))


def _roberta(checkpoint: str) -> Family:
    return Family(
        checkpoint,
        "flat",
        head=(
            HeadRow("classifier.dense", "tanh", _OWN_OR_HIDDEN),
            HeadRow("classifier.out_proj", dropout=_OWN_OR_HIDDEN),
        ),
        first_position=None,
        layer=_BERT_LAYER,
    )


FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        "google-bert/bert-base-uncased",
        "flat",
        head=(HeadRow("classifier", dropout=_OWN_OR_HIDDEN),),
        pooler="pooler.dense",
        layer=_BERT_LAYER,
    ),
    "roberta": _roberta("FacebookAI/roberta-base"),
    "xlm-roberta": _roberta("FacebookAI/xlm-roberta-base"),
    "camembert": _roberta("almanach/camembert-base"),
    "electra": Family(
        "google/electra-base-discriminator",
        "flat",
        head=(
            HeadRow("classifier.dense", "gelu", _OWN_OR_HIDDEN),
            HeadRow("classifier.out_proj", dropout=_OWN_OR_HIDDEN),
        ),
        layer=_BERT_LAYER,
    ),
    "distilbert": Family(
        "distilbert/distilbert-base-uncased",
        "flat",
        head=(HeadRow("pre_classifier", "relu"), HeadRow("classifier", dropout=("seq_classif_dropout",))),
        targets=_named("q_lin", "k_lin", "v_lin"),
        sublayers=SubLayers("attention.out_lin", "ffn", "output_layer_norm"),
    ),
    "albert": Family(
        "albert/albert-base-v2",
        "flat",
        head=(HeadRow("classifier", dropout=("classifier_dropout_prob",)),),
        pooler="pooler",
        sublayers=SubLayers("attention.output_dropout", "ffn_output", "full_layer_layer_norm"),
    ),
    "modernbert": Family(
        "answerdotai/ModernBERT-base",
        "flat",
        head=(
            HeadRow("head.dense", "classifier_activation", norm="head.norm", scale=_one_over_root_depth),
            HeadRow("classifier", dropout=("classifier_dropout",), scale=lambda config: config.hidden_size**-0.5),
        ),
        targets=_named("Wqkv", "Wqkv", "Wqkv"),
        sublayers=SubLayers("attn", "mlp", ""),
        pooling="classifier_pooling",
        cutoff="initializer_cutoff_factor",
    ),
    "mpnet": Family(
        "microsoft/mpnet-base",
        "flat",
        head=(
            HeadRow("classifier.dense", "tanh", ("hidden_dropout_prob",)),
            HeadRow("classifier.out_proj", dropout=("hidden_dropout_prob",)),
        ),
        targets=_named("attn.q", "attn.k", "attn.v"),
        first_position=2,
        layer=_MPNET_LAYER,
        sublayers=SubLayers(attention="attention.dropout"),
        position_bias="encoder.relative_attention_bias",
    ),
    "deberta": Family("microsoft/deberta-base", "padded", targets=_named("in_proj", "in_proj", "in_proj"), bf16=False),
    "deberta-v2": Family("microsoft/deberta-v3-base", "padded", targets=_named("query_proj", "key_proj", "value_proj")),
}
"""Families that are tested one by one, by the `model_type` of their config; DeBERTa-v3 is a `deberta-v2`."""

OTHER = Family("", "padded")
"""Any other encoder: in the padded layout, with whatever head transformers gives it."""


def family_of(model_type: str) -> Family:
    """The row of an architecture; `OTHER` where it has none."""
    return FAMILIES.get(model_type, OTHER)


def cached_models() -> dict[str, list[str]]:
    """Models whose weights are in the local cache of the hub, by `model_type`; nothing is asked of the network."""
    from huggingface_hub.constants import HF_HUB_CACHE

    models: set[tuple[str, str]] = set()
    for path in Path(HF_HUB_CACHE).glob("models--*/snapshots/*/config.json"):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and any(path.parent.glob("*.safetensors")):
            name = path.parents[2].name.removeprefix("models--").replace("--", "/")
            models.add((name, str(config.get("model_type"))))
    found: dict[str, list[str]] = {}
    for name, model_type in sorted(models):
        found.setdefault(model_type, []).append(name)
    return found
