"""DoRA: LoRA with trained norms of the weights (Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from manytune.methods.adaptation import Adaptation, LowRank
from manytune.methods.lora import Lora
from manytune.utils.fields import Fraction, refused

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.models.spec import ModelSpec

_NOT_ZERO = "DoRA's norms are those of weights that have lost nothing, so it needs factors whose product begins at zero"


class Dora(Lora):
    """Train a low-rank update and, apart from it, the norm of each output channel's weights (Liu et al. 2024).

    y = g · (xW + (alpha/rank) · x · A · B) + b with g = m / ‖W + (alpha/rank) · A · B‖ by output channel, whose norm
    passes no gradient on.
    """

    title = "DoRA"
    paper = "https://arxiv.org/abs/2402.09353"
    group = "low-rank updates"
    color = "wine"
    grid = MappingProxyType({"rank": (8,)})

    method: Literal["dora"] = "dora"  # type: ignore[assignment]
    """Train a low-rank update of chosen linear layers, and the norms of their output channels' weights."""
    dropout: Fraction = 0.0
    """Probability with which an element of the update's input is zeroed in training; at least 0, below 1. Above 0,
    each layer takes a second product with its frozen weight, as in peft."""
    init: Annotated[
        Literal["kaiming", "gaussian", "orthogonal"], refused(dict.fromkeys(("pissa", "olora"), _NOT_ZERO))
    ] = "kaiming"
    """How A and B begin: A kaiming-uniform or gaussian and B zero; or orthogonal."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """A, B and the norms of each target; raises a StudyError where one matches no layer or is too narrow."""
        found = super().adapt(spec)
        hooks = (replace(hook, magnitude=True) if isinstance(hook, LowRank) else hook for hook in found.hooks)
        return replace(found, hooks=tuple(hooks))

    def merge(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """The update added to the weights that it is for, and each output channel given its norm."""
        merged = super().merge(state, weights, spec)
        for layer in self._layers(spec):
            path = f"{spec.prefix}.{layer}"
            weight = merged[f"{path}.weight"]
            gain = state[f"{path}.lora_magnitude_vector"] / weight.norm(dim=1)
            merged[f"{path}.weight"] = gain[:, None] * weight
        return merged

    def peft_config(self, peft: Any, spec: ModelSpec, **shared: Any) -> Any:
        """As `peft.LoraConfig` with `use_dora`."""
        return super().peft_config(peft, spec, use_dora=True, **shared)
