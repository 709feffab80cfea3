"""LoRA: low-rank updates of chosen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from manytune.methods.adaptation import Adaptation, LowRank
from manytune.methods.base import Axis, HeadMode, Method
from manytune.utils.errors import StudyError
from manytune.utils.fields import Count, Fraction, LayerNames, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.models.spec import ModelSpec


class Lora(Method):
    """Train a low-rank update of chosen linear layers (Hu et al. 2021).

    y = xW + b + (alpha/rank) · drop(x) · A · B, with A and B of width `rank`.
    """

    title = "LoRA"
    paper = "https://arxiv.org/abs/2106.09685"
    color = "green"
    axis = Axis("rank", "LoRA rank", "r=", 2, "rank")
    grid = MappingProxyType({"rank": (2, 8, 64, 256)})
    exports = ("peft", "transformers", "onnx")
    multiples = MappingProxyType({"alpha": "rank"})

    method: Literal["lora"] = "lora"
    """Train a low-rank update beside chosen linear layers of the frozen backbone."""
    rank: Count
    """Columns of A and rows of B: the rank of the update."""
    alpha: Positive = 8.0
    """The update is scaled by alpha/rank; `{of_rank: 2}` is twice the rank, whichever that is."""
    dropout: Fraction = 0.0
    """Probability with which an element of the update's input is zeroed in training; at least 0, below 1."""
    targets: LayerNames = ("query", "value")
    """Names of the linear layers that get an update, or the last parts of their names; a list of lists
    compares several sets."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """A and B of each target; raises a StudyError where one matches no layer or is narrower than the rank."""
        paths = self._layers(spec)
        for path in paths:
            width = min(spec.linears[path])
            if self.rank > width:
                raise StudyError(
                    f"methods: lora's rank {self.rank} exceeds the width of {path}, {width}; "
                    f"a rank from 1 to {width} can be used."
                )
        return Adaptation(
            hooks=tuple(
                LowRank(path, *spec.linears[path], rank=self.rank, alpha=self.alpha, dropout=self.dropout)
                for path in paths
            ),
            head=self.trained_head(spec.head),
        )

    def _layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Paths of the linear layers that get an update, in the backbone's order.

        A target matches every linear layer whose path is the target or ends in "." and the target, as in peft. The
        words query, key and value, where no layer is called so, mean what the backbone's family calls these layers.
        Raises a StudyError where a target matches none.
        """
        found = set()
        for target in self.targets:
            named = (
                {path for path in spec.linears if f".{path}".endswith(f".{name}")}
                for name in (target, spec.targets.get(target, target))
            )
            matches = next(filter(None, named), None)
            if matches is None:
                names = sorted({path.rpartition(".")[2] for path in spec.linears})
                raise StudyError(
                    f"methods: lora's target {target!r} matches no linear layer of the backbone; "
                    f"its linear layers are called: {', '.join(names)}."
                )
            found |= matches
        return tuple(path for path in spec.linears if path in found)

    def suits(self, spec: ModelSpec) -> bool:
        """Whether no linear layer is narrower than the rank."""
        return self.rank <= min(map(min, spec.linears.values()))

    def notes(self, spec: ModelSpec) -> Iterator[str]:
        """That targets which are one layer in this backbone are adapted together."""
        if spec.fused is not None and set(self.targets) & spec.targets.keys():
            yield (
                f"query, key and value are one layer, {spec.fused}; where lora's targets name one of them, "
                "all of that layer is adapted."
            )

    @property
    def pack_order(self) -> tuple[Any, ...]:
        """Runs of one rank, dropout and targets side by side: their factors are one tensor."""
        return (self.method, self.rank, self.dropout, self.targets, self.alpha, self.learning_rate, self.head)

    def merge(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """The update added to the weights that it is for."""
        merged = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
        for layer in self._layers(spec):
            path = f"{spec.prefix}.{layer}"
            update = state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
            merged[f"{path}.weight"] = weights[f"{path}.weight"] + self.alpha / self.rank * update
        return merged

    def peft_config(self, peft: Any, spec: ModelSpec, **shared: Any) -> Any:
        """As `peft.LoraConfig`."""
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=[f"{spec.prefix}.{layer}" for layer in self._layers(spec)],
            **shared,
        )
