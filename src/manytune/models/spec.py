"""The tensors of a backbone and its head, without their values.

The head is everything that transformers' sequence-classification model of the family puts on top of the encoder,
plus the pooler where the checkpoint lacks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from manytune.models.families import WORDS, HeadRow, family_of
from manytune.utils.errors import ModelError

_NO_BOUND = 1_000_000
"""Positions of an architecture whose config gives no limit."""

_GUESSES: Mapping[str, tuple[str, ...]] = {
    word: (word, word[0], f"{word[0]}_lin", f"{word[0]}_proj", f"{word}_proj") for word in WORDS
}
"""What an architecture without a row of its own may call the layers that the words mean; the first found counts."""


@dataclass(frozen=True)
class HeadTensor:
    """One tensor of a head."""

    name: str  # its path in transformers' sequence-classification model
    shape: tuple[int, ...]
    std: float | None = None  # standard deviation of normal initial values; None: all are `fill`
    cutoff: float | None = None  # standard deviations at which they are cut off; None for no cut
    fill: float = 0.0  # 1 for a norm's weight, 0 for a bias


@dataclass(frozen=True)
class HeadNorm:
    """A LayerNorm of a head."""

    name: str  # the module's path
    epsilon: float  # added to the variance
    bias: bool  # whether it has a bias


@dataclass(frozen=True)
class HeadLayer:
    """One linear layer of a head: dropout, then the product, then the activation, then a norm if there is one."""

    name: str  # the module's path in transformers' sequence-classification model
    inputs: int  # width of the input
    outputs: int  # width of the output
    activation: str  # its name in transformers, or `none`
    dropout: float  # probability that an input is dropped while training
    bias: bool = True  # whether the product has a bias
    norm: HeadNorm | None = None  # the norm behind it
    std: float | None = None  # standard deviation of fresh weights; None for the head's own


@dataclass(frozen=True)
class HeadSpec:
    """The head of a family."""

    # in the order of computation, the first one on the pooled features; empty where transformers computes the head
    layers: tuple[HeadLayer, ...]
    initializer_range: float  # standard deviation of fresh weights
    cutoff: float | None = None  # standard deviations at which fresh weights are cut off; None for no cut
    others: tuple[HeadTensor, ...] = ()  # tensors outside of `layers`

    def tensors(self) -> tuple[HeadTensor, ...]:
        """The head's tensors, in the order of computation."""
        return tuple(tensor for layer in self.layers for tensor in self._tensors_of(layer)) + self.others

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The head's tensors: name → shape."""
        return {tensor.name: tensor.shape for tensor in self.tensors()}

    def _tensors_of(self, layer: HeadLayer) -> Iterator[HeadTensor]:
        std = self.initializer_range if layer.std is None else layer.std
        yield HeadTensor(f"{layer.name}.weight", (layer.outputs, layer.inputs), std, self.cutoff)
        if layer.bias:
            yield HeadTensor(f"{layer.name}.bias", (layer.outputs,))
        if layer.norm is not None:
            yield HeadTensor(f"{layer.norm.name}.weight", (layer.outputs,), fill=1.0)
            if layer.norm.bias:
                yield HeadTensor(f"{layer.norm.name}.bias", (layer.outputs,))


@dataclass(frozen=True)
class ModelSpec:
    """The tensors of a backbone and head, without their values."""

    prefix: str  # path of the backbone in the sequence-classification model, such as `roberta`
    tensors: dict[str, tuple[int, ...]]  # backbone parameters: path inside the backbone → shape
    linears: dict[str, tuple[int, int]]  # linear layers of the backbone: path → (in, out)
    biases: tuple[str, ...]  # names of the backbone's bias parameters
    head: HeadSpec
    max_length: int  # tokens that a sequence may have at most
    vocabulary: int  # number of token embeddings
    token_types: int  # number of token-type embeddings; 0 where it has none
    targets: dict[str, str]  # the words query, key and value → what this backbone calls these layers
    passes: int  # how often a layer's matrices are used in a forward pass: ALBERT's layers are one and the same
    padded: bool  # whether its runs are computed one after the other, in padded batches
    hidden: int  # width of the residual stream
    # of every layer, the modules at which attention and the feed-forward end, and the norm behind both, or the layer
    # itself where there is none: see `SubLayers`
    attention_ends: tuple[str, ...]
    feed_forward_ends: tuple[str, ...]
    layer_ends: tuple[str, ...]

    @property
    def norms(self) -> tuple[str, ...]:
        """Paths of the norms: the modules whose weight is a vector."""
        return tuple(name[:-7] for name, shape in self.tensors.items() if name.endswith(".weight") and len(shape) == 1)

    @property
    def fused(self) -> str | None:
        """The layer that holds query, key and value all together; None where they are three."""
        return self.targets["query"] if len(set(self.targets.values())) == 1 else None

    @property
    def depth(self) -> int:
        """How many layers the encoder has."""
        return 1 + max((layer for layer in map(self.layer_of, self.tensors) if layer is not None), default=-1)

    def layer_of(self, path: str) -> int | None:
        """The number of the encoder's layer that a tensor or module of the backbone is in, from 0 at the bottom.

        Layers stand in a numbered list. None for what comes before or behind them.
        """
        return layer_number(path)

    def is_behind_layers(self, path: str) -> bool:
        """Whether a tensor or module of the backbone comes behind all layers: in a pooler, or a last norm."""
        return path.split(".")[0] in ("pooler", "final_norm")

    def evaluated_bytes(self, itemsize: int, longest: int) -> int:
        """Bytes a token that a forward pass without gradients holds at most at once, roughly.

        Activations have `itemsize` bytes, and the longest sequence `longest` tokens. That is one layer's: the residual
        and what its norms make of it in fp32, q, k and v twice, the widest product in fp32 and as products read it, and
        the scores of attention with heads of 64 channels, where these are written out.
        """
        width = min(inputs for inputs, _ in self.linears.values())
        widest = max(outputs for _, outputs in self.linears.values())
        scores = 3 * 4 * longest * -(-width // 64)
        return (6 * 4 + 8 * itemsize) * width + (3 * 4 + 2 * itemsize) * widest + scores


def layer_number(path: str) -> int | None:
    """The number in a path, which only modules and tensors in a list of layers have; None where there is none."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def describe(whole: Any, config: Any, *, lacks_pooler: bool) -> ModelSpec:
    """Look at a sequence-classification model of transformers, which may be on the meta device.

    With `lacks_pooler`, its checkpoint has no pooler, so the pooler belongs to the head. Raises ModelError where the
    head holds tensors whose initial values are not known.
    """
    family = family_of(config.model_type)
    prefix: str = whole.base_model_prefix
    base = whole.base_model
    modules = dict(base.named_modules())
    pooler = {path: module for path, module in modules.items() if path.split(".")[0] == "pooler" and lacks_pooler}
    kept = {path: module for path, module in modules.items() if path not in pooler}
    tensors = {
        f"{path}.{name}" if path else name: tuple(parameter.shape)
        for path, module in kept.items()
        for name, parameter in module.named_parameters(recurse=False)
    }
    linears = {p: (m.in_features, m.out_features) for p, m in kept.items() if isinstance(m, nn.Linear)}
    cutoff = None if family.cutoff is None else float(getattr(config, family.cutoff))
    rows = family.head
    if pooler and rows and family.pooler is not None:
        rows = (HeadRow(f"{prefix}.{family.pooler}", "tanh"), *rows)
    others = () if rows else tuple(_whole_head(whole, config, {f"{prefix}.{path}" for path in pooler}))
    types = [shape[0] for name, shape in tensors.items() if name.endswith("token_type_embeddings.weight")]
    positions = getattr(config, "max_position_embeddings", None)
    longest = _NO_BOUND if positions is None or positions < 0 else positions - first_position(config)
    if longest < 1:
        raise ModelError(
            f"model: its config has max_position_embeddings {positions}, which leaves no position for a token. "
            "Set it to what the model was trained with."
        )
    groups = getattr(config, "num_hidden_groups", None)  # ALBERT's groups of layers with the same tensors
    return ModelSpec(
        prefix=prefix,
        tensors=tensors,
        linears=linears,
        biases=tuple(name for name in tensors if name.rpartition(".")[2].endswith("bias")),
        head=HeadSpec(tuple(_layer(row, whole, config) for row in rows), _range(config), cutoff, others),
        max_length=longest,
        vocabulary=base.get_input_embeddings().num_embeddings,
        token_types=types[0] if types else 0,
        targets={word: _called(word, family.targets[word], linears) for word in WORDS},
        passes=config.num_hidden_layers // groups if groups else 1,
        padded=family.path == "padded",
        hidden=int(getattr(config, "hidden_size", 0)),
        attention_ends=_in_layers(family.sublayers.attention, kept),
        feed_forward_ends=_in_layers(family.sublayers.feed_forward, kept),
        layer_ends=_in_layers(family.sublayers.last, kept),
    )


def first_position(config: Any) -> int:
    """The position id of a sequence's first token."""
    first = family_of(config.model_type).first_position
    return int(config.pad_token_id) + 1 if first is None else first


def _range(config: Any) -> float:
    return float(getattr(config, "initializer_range", None) or 0.02)  # as transformers falls back


def _layer(row: HeadRow, whole: Any, config: Any) -> HeadLayer:
    linear = whole.get_submodule(row.module)
    norm = None if row.norm is None else whole.get_submodule(row.norm)
    dropouts = [value for value in (getattr(config, key, None) for key in row.dropout) if value is not None]
    return HeadLayer(
        row.module,
        linear.in_features,
        linear.out_features,
        getattr(config, row.activation, row.activation),
        float(dropouts[0]) if dropouts else 0.0,
        linear.bias is not None,
        None if norm is None else HeadNorm(str(row.norm), norm.eps, norm.bias is not None),
        float(row.scale(config)),
    )


def _whole_head(whole: Any, config: Any, pooler: set[str]) -> Iterator[HeadTensor]:
    """Every tensor outside the backbone, and those of a pooler that the checkpoint lacks."""
    inside = f"{whole.base_model_prefix}."
    for path, module in whole.named_modules():
        if f"{path}.".startswith(inside) and path not in pooler:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = "norm" in type(module).__name__.lower()
            if not (isinstance(module, nn.Linear) or is_norm):
                raise ModelError(
                    f"model: the head of {config.model_type} holds {path}.{name}, which is neither a linear layer's "
                    "nor a norm's, and it is not known here how such a tensor begins."
                )
            full = f"{path}.{name}"
            if name == "weight" and not is_norm:
                yield HeadTensor(full, tuple(parameter.shape), _range(config))
            else:
                yield HeadTensor(full, tuple(parameter.shape), fill=float(name == "weight"))


def _called(word: str, name: str, linears: Mapping[str, Any]) -> str:
    """What the backbone calls a layer: as its family's row says, or the first guess that fits."""
    names = (name, *_GUESSES[word])
    return next((each for each in names if any(f".{path}".endswith(f".{each}") for path in linears)), name)


def _in_layers(inner: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Paths of the modules that are called so inside a layer; of the layers themselves where `inner` is empty."""
    pattern = re.compile(r"(.+\.)?\d+" + re.escape(inner and f".{inner}"))
    return tuple(path for path in paths if pattern.fullmatch(path))
