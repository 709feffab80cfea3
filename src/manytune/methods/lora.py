"""LoRA: low-rank updates of chosen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import StrictBool

from manytune.methods.adaptation import Adaptation, Hook, LowRank, LowRankInit, TrainBias
from manytune.methods.base import Axis, HeadMode, Method
from manytune.methods.targets import notes_on_targets, targeted_layers
from manytune.utils.errors import StudyError
from manytune.utils.fields import Count, Fraction, LayerNames, Layers, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.models.spec import ModelSpec


class Lora(Method):
    """Train a low-rank update of chosen linear layers (Hu et al. 2021).

    y = xW + b + (alpha/rank) · drop(x) · A · B, with A and B of width `rank`.
    """

    title = "LoRA"
    paper = "https://arxiv.org/abs/2106.09685"
    group = "low-rank updates"
    color = "green"
    axis = Axis("rank", "LoRA rank", "r=", 2, "rank")
    grid = MappingProxyType({"rank": (2, 8, 64, 256)})
    exports = ("peft", "transformers", "onnx")
    written_if_set = frozenset(
        {"scaling", "layers", "init", "freeze_a", "bias", "b_learning_rate_ratio", "head_learning_rate"}
    )
    multiples = MappingProxyType({**Method.multiples, "alpha": "rank"})

    method: Literal["lora"] = "lora"
    """Train a low-rank update beside chosen linear layers of the frozen backbone."""
    rank: Count
    """Columns of A and rows of B: the rank of the update."""
    alpha: Positive = 8.0
    """The update is scaled by alpha/rank; `{of_rank: 2}` is twice the rank, whichever that is."""
    scaling: Literal["rank", "root-rank"] = "rank"
    """What alpha is divided by: the rank, or its square root, as rank-stabilized LoRA does (rsLoRA,
    https://arxiv.org/abs/2312.03732)."""
    dropout: Fraction = 0.0
    """Probability with which an element of the update's input is zeroed in training; at least 0, below 1."""
    targets: LayerNames = ("query", "value")
    """Names of the linear layers that get an update, or the last parts of their names, or all-linear for every one of
    the backbone; a list of lists compares several sets."""
    layers: Layers = "all"
    """Which of the encoder's layers get updates: all, or the last ones, such as `top 4`."""
    init: LowRankInit = "kaiming"
    """How A and B begin: A kaiming-uniform or gaussian and B zero; orthogonal; or as the main singular vectors (pissa)
    or QR factors (olora) of the weight, which then loses them."""
    freeze_a: StrictBool = False
    """Whether A stays as it begins and B alone trains (LoRA-FA, https://arxiv.org/abs/2308.03303)."""
    bias: Literal["none", "lora", "all"] = "none"
    """Which biases of the backbone train too: none, those of the layers with an update, or all."""
    b_learning_rate_ratio: Positive = 1.0
    """B's learning rate over A's (LoRA+, https://arxiv.org/abs/2402.12354, whose authors use 16)."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head, where it is not `learning_rate`; `{of_learning_rate: 0.1}` is a tenth of it."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """A and B of each target; raises a StudyError where one matches no layer or is narrower than the rank."""
        paths = self._layers(spec)
        for path in paths:
            width = min(spec.linears[path])
            if self.rank > width:
                raise StudyError(
                    f"methods: {self.method}'s rank {self.rank} exceeds the width of {path}, {width}; "
                    f"a rank from 1 to {width} can be used."
                )
        if self.freeze_a and self.b_learning_rate_ratio != 1:
            raise StudyError(
                f"methods: {self.method}'s b_learning_rate_ratio is B's rate over A's, and with freeze_a A does not "
                "train; leave one of them out, and set learning_rate."
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise StudyError(f"methods: {self.method}'s init orthogonal needs an even rank, not {self.rank}.")
        updates = (
            LowRank(
                path,
                *spec.linears[path],
                rank=self.rank,
                scale=self.scale,
                dropout=self.dropout,
                trains_a=not self.freeze_a,
                b_rate=self.b_learning_rate_ratio,
                init=self.init,
            )
            for path in paths
        )
        return self.with_head(spec, hooks=(*updates, *self._biases(spec, paths)))

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    def _layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Paths of the linear layers that get an update, in the backbone's order."""
        return targeted_layers(spec, self.targets, self.layers, self.method)

    def _biases(self, spec: ModelSpec, paths: tuple[str, ...]) -> Iterator[Hook]:
        chosen = {"none": (), "lora": tuple(f"{path}.bias" for path in paths), "all": spec.biases}[self.bias]
        for name in spec.biases:
            if name in chosen:
                path, _, own = name.rpartition(".")
                yield TrainBias(path, spec.tensors[name][0], own)

    def suits(self, spec: ModelSpec) -> bool:
        """Whether no linear layer is narrower than the rank."""
        return self.rank <= min(map(min, spec.linears.values()))

    def notes(self, spec: ModelSpec) -> Iterator[str]:
        """That targets which are one layer in this backbone are adapted together."""
        return notes_on_targets(spec, self.targets, self.method)

    @property
    def pack_order(self) -> tuple[Any, ...]:
        """Runs of one rank, dropout and targets side by side: their factors are one tensor."""
        factors = (self.rank, self.dropout, self.targets, self.layers, self.init, self.freeze_a, self.bias)
        others = (self.scaling, self.alpha, self.b_learning_rate_ratio, self.learning_rate)
        return (self.method, *factors, *others, self.head, self.head_learning_rate or 0.0)

    def merge(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """The update added to the weights that it is for."""
        merged = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
        for layer in self._layers(spec):
            path = f"{spec.prefix}.{layer}"
            update = state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
            if f"{path}.lora_A.initial" in state:
                update = update - state[f"{path}.lora_B.initial"] @ state[f"{path}.lora_A.initial"]
            merged[f"{path}.weight"] = weights[f"{path}.weight"] + self.scale * update
        return merged

    def peft_config(self, peft: Any, spec: ModelSpec, **shared: Any) -> Any:
        """As `peft.LoraConfig`: of twice the rank where the factors did not begin at zero; see `peft_state`."""
        times = 2 if self.init in ("pissa", "olora") else 1
        rank = times * self.rank
        return peft.LoraConfig(
            r=rank,
            lora_alpha=self.scale * rank,
            lora_dropout=self.dropout,
            target_modules=[f"{spec.prefix}.{layer}" for layer in self._layers(spec)],
            bias="lora_only" if self.bias == "lora" else self.bias,
            **shared,
        )

    def peft_state(self, state: Mapping[str, Tensor], spec: ModelSpec) -> Mapping[str, Tensor]:
        """What the factors began as is subtracted by twice the rank, as peft converts PiSSA to LoRA."""
        import torch

        found = dict(state)
        for layer in self._layers(spec):
            path = f"{spec.prefix}.{layer}"
            if f"{path}.bias" in found:  # peft moves the layer itself
                found[f"{path}.base_layer.bias"] = found.pop(f"{path}.bias")
            if f"{path}.lora_A.initial" in found:
                for factor, sign, axis in (("A", 1, 0), ("B", -1, 1)):
                    parts = found[f"{path}.lora_{factor}.weight"], sign * found.pop(f"{path}.lora_{factor}.initial")
                    found[f"{path}.lora_{factor}.weight"] = torch.cat(parts, axis)
        return found
