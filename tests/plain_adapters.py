"""Bottleneck adapters as plain torch modules, written into the layers of transformers' own models.

The adapters library puts its `double_seq_bn` (houlsby) and `seq_bn` (pfeiffer) here; it cannot be installed beside
transformers 5, so its formulas stand here once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

__all__ = ["PlainBottleneck", "add_adapters"]


class PlainBottleneck(nn.Module):
    """up(act(down(y))), which starts at zero."""

    def __init__(self, size: int, width: int, activation: str) -> None:
        super().__init__()
        self.down, self.up, self.activation = nn.Linear(size, width), nn.Linear(width, size), ACT2FN[activation]
        for tensor in (self.up.weight, self.up.bias, self.down.bias):
            nn.init.zeros_(tensor)

    def forward(self, y: Tensor) -> Tensor:
        return self.up(self.activation(self.down(y)))  # type: ignore[no-any-return]


Norm = Callable[[Tensor], Tensor]


def add_adapters(model: Any, family: str, kind: str, make: Callable[[], PlainBottleneck]) -> dict[str, PlainBottleneck]:
    """Change the layers of an encoder; returns the networks by the paths that their tensors have in a snapshot."""
    found: dict[str, PlainBottleneck] = {}
    base = model.base_model

    def network(owner: nn.Module, path: str) -> PlainBottleneck:
        found[f"{model.base_model_prefix}.{path}.adapter"] = new = make()
        owner.add_module("bottleneck", new)
        return new

    def summed(h: Tensor, x: Tensor, norm: Norm, new: PlainBottleneck | None) -> Tensor:
        if new is None:
            return norm(h + x)
        return norm(h + new(norm(h + x) if kind == "pfeiffer" else h) + x)

    for index, layer in enumerate(_layers(base, family)):
        path = f"{_LAYERS.get(family, 'encoder.layer')}.{index}"
        first, second = _PLACES.get(family, ("attention.output.dropout", "output.dropout", "output.LayerNorm"))[:2]
        if kind == "pfeiffer":
            first, second = "", _PLACES.get(family, ("", "", "output.LayerNorm"))[2]
        behind = (
            network(layer.attn if family == "modernbert" else layer.attention, f"{path}.{first}") if first else None
        )
        last = network(layer, f"{path}.{second}".removesuffix("."))
        _CHANGES.get(family, _change_bert)(layer, behind, last, summed)
    return found


_LAYERS = {
    "distilbert": "transformer.layer",
    "albert": "encoder.albert_layer_groups.0.albert_layers",
    "modernbert": "layers",
}
_PLACES = {
    "mpnet": ("attention.dropout", "output.dropout", "output.LayerNorm"),
    "distilbert": ("attention.out_lin", "ffn", "output_layer_norm"),
    "albert": ("attention.output_dropout", "ffn_output", "full_layer_layer_norm"),
    "modernbert": ("attn", "mlp", ""),
}


def _layers(base: Any, family: str) -> Any:
    return base.get_submodule(_LAYERS.get(family, "encoder.layer"))


def _change_bert(layer: Any, behind: Any, last: Any, summed: Any) -> None:
    for module, new in ((layer.attention.output, behind), (layer.output, last)):
        module.forward = lambda hidden, x, module=module, new=new: summed(
            module.dropout(module.dense(hidden)), x, module.LayerNorm, new
        )


def _change_mpnet(layer: Any, behind: Any, last: Any, summed: Any) -> None:
    attention, output = layer.attention, layer.output

    def attend(hidden: Tensor, *args: Any, **named: Any) -> Any:
        out = attention.attn(hidden, *args, **named)
        return summed(attention.dropout(out[0]), hidden, attention.LayerNorm, behind), *out[1:]

    attention.forward = attend
    output.forward = lambda hidden, x: summed(output.dropout(output.dense(hidden)), x, output.LayerNorm, last)


def _change_distilbert(layer: Any, behind: Any, last: Any, summed: Any) -> None:
    def forward(hidden: Tensor, *args: Any, **named: Any) -> Tensor:
        attn = summed(layer.attention(hidden, *args, **named)[0], hidden, layer.sa_layer_norm, behind)
        return summed(layer.ffn(attn), attn, layer.output_layer_norm, last)  # type: ignore[no-any-return]

    layer.forward = forward


def _change_albert(layer: Any, behind: Any, last: Any, summed: Any) -> None:
    """Without dropout: what stands behind attention's dropout is put before it."""
    dense = layer.attention.dense
    product = dense.forward
    if behind is not None:
        dense.forward = lambda x: product(x) + behind(product(x))

    def forward(hidden: Tensor, *args: Any, **named: Any) -> Tensor:
        attn = layer.attention(hidden, *args, **named)[0]
        return summed(layer.ff_chunk(attn), attn, layer.full_layer_layer_norm, last)  # type: ignore[no-any-return]

    layer.forward = forward


def _change_modernbert(layer: Any, behind: Any, last: Any, summed: Any) -> None:
    """Norms stand before the sub-layers, so there is none behind their sums."""

    def forward(hidden: Tensor, *args: Any, **named: Any) -> Tensor:
        attn = layer.attn(layer.attn_norm(hidden), *args, **named)[0]
        attn = summed(attn, hidden, nn.Identity(), behind)
        return summed(layer.mlp(layer.mlp_norm(attn)), attn, nn.Identity(), last)  # type: ignore[no-any-return]

    layer.forward = forward


_CHANGES = {
    "mpnet": _change_mpnet,
    "distilbert": _change_distilbert,
    "albert": _change_albert,
    "modernbert": _change_modernbert,
}
