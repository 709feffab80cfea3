"""The tensors of a backbone and its head, without their values.

The head is everything that transformers' sequence-classification model of the family puts on top of the encoder,
plus the pooler where the checkpoint lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from manytune.models.families import WORDS, HeadRow, family_of
from manytune.utils.errors import ModelError

_NO_BOUND = 1_000_000
"""Positions of an architecture that names no most."""

_GUESSES: Mapping[str, tuple[str, ...]] = {
    word: (word, word[0], f"{word[0]}_lin", f"{word[0]}_proj", f"{word}_proj") for word in WORDS
}
"""What an architecture without a row of its own may call the layers that the words mean; the first found counts."""


@dataclass(frozen=True)
class HeadTensor:
    """One tensor of a head.

    Attributes:
        name: In transformers' sequence-classification model.
        shape: Its shape.
        std: Standard deviation of a fresh one, which is normal around zero; None: it is `fill` throughout.
        cutoff: Standard deviations that a fresh one is cut at; None for no cut.
        fill: 1 for a norm's weight, 0 for a bias.
    """

    name: str
    shape: tuple[int, ...]
    std: float | None = None
    cutoff: float | None = None
    fill: float = 0.0


@dataclass(frozen=True)
class HeadNorm:
    """A LayerNorm of a head.

    Attributes:
        name: The module's path.
        epsilon: Added to the variance.
        bias: Whether it has one.
    """

    name: str
    epsilon: float
    bias: bool


@dataclass(frozen=True)
class HeadLayer:
    """One linear layer of a head: dropout, then the product, then the activation, then a norm if there is one.

    Attributes:
        name: The module's path in transformers' sequence-classification model.
        inputs: Width in.
        outputs: Width out.
        activation: Its name in transformers, or `none`.
        dropout: Probability that an input is dropped while training.
        bias: Whether the product has a bias.
        norm: The norm behind it.
        std: Standard deviation of fresh weights; None for the head's own.
    """

    name: str
    inputs: int
    outputs: int
    activation: str
    dropout: float
    bias: bool = True
    norm: HeadNorm | None = None
    std: float | None = None


@dataclass(frozen=True)
class HeadSpec:
    """The head of a family.

    Attributes:
        layers: In the order of computation; the first one sees the pooled features. Empty where transformers' own
            modules compute the head.
        initializer_range: Standard deviation of fresh weights.
        cutoff: Standard deviations that fresh weights are cut at; None for no cut.
        others: Tensors that no layer holds.
    """

    layers: tuple[HeadLayer, ...]
    initializer_range: float
    cutoff: float | None = None
    others: tuple[HeadTensor, ...] = ()

    def tensors(self) -> tuple[HeadTensor, ...]:
        """The head's tensors, in the order of computation."""
        return tuple(tensor for layer in self.layers for tensor in self._of(layer)) + self.others

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The head's tensors: name → shape."""
        return {tensor.name: tensor.shape for tensor in self.tensors()}

    def _of(self, layer: HeadLayer) -> Iterator[HeadTensor]:
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
    """The tensors of a backbone and head, without their values.

    Attributes:
        prefix: Path of the backbone in the sequence-classification model, such as `roberta`.
        tensors: Backbone parameters: path inside the backbone → shape.
        linears: Linear layers of the backbone: path → (in, out).
        biases: Names of the backbone's bias parameters.
        head: The head.
        max_length: Most tokens that a sequence may have.
        vocabulary: Token ids that it has embeddings for, from 0.
        token_types: Token types that it has embeddings for; 0 where it knows none.
        targets: The words query, key and value → what this backbone calls these layers.
        passes: How often a layer's matrices are used in a forward pass: ALBERT's layers are one and the same.
        padded: Whether its runs go through it in turn, in the padded layout.
    """

    prefix: str
    tensors: dict[str, tuple[int, ...]]
    linears: dict[str, tuple[int, int]]
    biases: tuple[str, ...]
    head: HeadSpec
    max_length: int
    vocabulary: int
    token_types: int
    targets: dict[str, str]
    passes: int
    padded: bool

    @property
    def fused(self) -> str | None:
        """The layer that holds query, key and value all together; None where they are three."""
        return self.targets["query"] if len(set(self.targets.values())) == 1 else None


def describe(whole: Any, config: Any, *, lacks_pooler: bool) -> ModelSpec:
    """Look at a sequence-classification model, which may be on the meta device.

    Args:
        whole: As transformers has it.
        config: Its config.
        lacks_pooler: Its checkpoint has no pooler, so that the pooler belongs to the head.

    Raises:
        ModelError: Its head holds tensors of which it is not known how they begin.
    """
    family = family_of(config.model_type)
    prefix: str = whole.base_model_prefix
    base = whole.base_model
    modules = dict(base.named_modules())
    pooler = {path: module for path, module in modules.items() if path.split(".")[0] == "pooler" and lacks_pooler}
    own = {path: module for path, module in modules.items() if path not in pooler}
    tensors = {
        f"{path}.{name}" if path else name: tuple(parameter.shape)
        for path, module in own.items()
        for name, parameter in module.named_parameters(recurse=False)
    }
    linears = {p: (m.in_features, m.out_features) for p, m in own.items() if isinstance(m, nn.Linear)}
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
        passes=_passes(config),
        padded=family.path == "padded",
    )


def first_position(config: Any) -> int:
    """The position id of a sequence's first token."""
    first = family_of(config.model_type).first_position
    return int(config.pad_token_id) + 1 if first is None else first


def _passes(config: Any) -> int:
    groups = getattr(config, "num_hidden_groups", None)
    return config.num_hidden_layers // groups if groups else 1


def _range(config: Any) -> float:
    return float(getattr(config, "initializer_range", None) or 0.02)  # as transformers falls back


def _layer(row: HeadRow, whole: Any, config: Any) -> HeadLayer:
    linear = whole.get_submodule(row.module)
    norm = None if row.norm is None else whole.get_submodule(row.norm)
    set_ones = [value for value in (getattr(config, key, None) for key in row.dropout) if value is not None]
    return HeadLayer(
        row.module,
        linear.in_features,
        linear.out_features,
        getattr(config, row.activation, row.activation),
        float(set_ones[0]) if set_ones else 0.0,
        linear.bias is not None,
        None if norm is None else HeadNorm(str(row.norm), norm.eps, norm.bias is not None),
        row.scale(config),
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
    return next((own for own in names if any(f".{path}".endswith(f".{own}") for path in linears)), name)
