"""VeRA: a low-rank update by shared frozen factors (Kopiczko et al. 2024, https://arxiv.org/abs/2310.11454)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from manytune.methods.adaptation import Adaptation, SharedLowRank
from manytune.methods.base import Axis, HeadMode, Method
from manytune.methods.projections import Projections
from manytune.methods.targets import notes_on_targets, targeted_layers
from manytune.utils.fields import Fraction, LayerNames, Layers, Positive, Seed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from manytune.models.spec import ModelSpec


class Vera(Method):
    """Train two vectors a layer beside random factors that are frozen and shared by all layers (Kopiczko et al. 2024).

    y = xW + b + lambda_b · ((lambda_d · (drop(x) · A)) · B), with lambda_d of width `rank`.
    """

    title = "VeRA"
    paper = "https://arxiv.org/abs/2310.11454"
    group = "low-rank updates"
    color = "sky"
    axis = Axis("rank", "VeRA rank", "r=", 2, "vera-rank")
    grid = MappingProxyType({"rank": (256, 1024)})
    exports = ("peft", "transformers", "onnx")

    method: Literal["vera"] = "vera"
    """Train two vectors beside chosen linear layers of the frozen backbone, around random factors that stay frozen."""
    rank: Annotated[int, Field(strict=True, ge=1, le=2**16)] = 256
    """Width of lambda_d, and of the frozen factors; it may exceed the layers' widths and costs few parameters."""
    d_initial: Positive = 0.1
    """What lambda_d starts at; lambda_b starts at zero."""
    projection_seed: Seed = 0
    """Seed of the frozen factors. It is not the run's seed, so that runs of all seeds share them."""
    dropout: Fraction = 0.0
    """Probability with which an element of the update's input is zeroed in training; at least 0, below 1."""
    targets: LayerNames = ("query", "value")
    """Names of the linear layers that get an update, or the last parts of their names, or all-linear for every one of
    the backbone; a list of lists compares several sets."""
    layers: Layers = "all"
    """Which of the encoder's layers get updates: all, or the last ones, such as `top 4`."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten times those of LoRA."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head, where it is not `learning_rate`; `{of_learning_rate: 0.1}` is a tenth of it."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """The vectors of each target; raises a StudyError where one matches no layer."""
        projections = self._projections(spec)
        hooks = (
            SharedLowRank(path, *spec.linears[path], projections, self.d_initial, self.dropout)
            for path in self._layers(spec)
        )
        return self.with_head(spec, hooks=hooks)

    def _layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Paths of the linear layers that get an update, in the backbone's order."""
        return targeted_layers(spec, self.targets, self.layers, self.method)

    def _projections(self, spec: ModelSpec) -> Projections:
        """The factors, as wide as the widest of the layers needs them."""
        inputs, outputs = zip(*(spec.linears[path] for path in self._layers(spec)), strict=True)
        return Projections(self.projection_seed, self.rank, max(inputs), max(outputs))

    def notes(self, spec: ModelSpec) -> Iterator[str]:
        """That targets which are one layer in this backbone are adapted together."""
        return notes_on_targets(spec, self.targets, self.method)

    @property
    def pack_order(self) -> tuple[Any, ...]:
        """Runs of one shape side by side: their vectors are one tensor."""
        shape = (self.rank, self.projection_seed, self.dropout, self.targets, self.layers, self.d_initial)
        return (self.method, *shape, self.learning_rate, self.head, self.head_learning_rate or 0.0)

    def merge(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """The update added to the weights that it is for."""
        merged = {name: tensor for name, tensor in state.items() if ".vera_" not in name}
        factors = self._projections(spec).draw()
        for layer in self._layers(spec):
            path, (inputs, outputs) = f"{spec.prefix}.{layer}", spec.linears[layer]
            lambda_b, lambda_d = state[f"{path}.vera_lambda_b"], state[f"{path}.vera_lambda_d"]
            a, b = (lambda_d.new_tensor(factor) for factor in factors)
            update = (lambda_b[:, None] * b[:outputs]) @ (lambda_d[:, None] * a[:, :inputs])
            merged[f"{path}.weight"] = weights[f"{path}.weight"] + update
        return merged

    def peft_config(self, peft: Any, spec: ModelSpec, **shared: Any) -> Any:
        """As `peft.VeraConfig`, whose adapter holds the frozen factors."""
        return peft.VeraConfig(
            r=self.rank,
            d_initial=self.d_initial,
            projection_prng_key=self.projection_seed,
            save_projection=True,
            vera_dropout=self.dropout,
            target_modules=[f"{spec.prefix}.{layer}" for layer in self._layers(spec)],
            **shared,
        )

    def peft_shared(self, spec: ModelSpec) -> Mapping[str, NDArray[Any]]:
        """The frozen factors."""
        return dict(zip(("vera_A", "vera_B"), self._projections(spec).draw(), strict=True))
