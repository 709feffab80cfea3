"""Full fine-tuning: every parameter of the backbone and the head trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from manytune.methods.adaptation import Adaptation, Weight
from manytune.methods.base import Method
from manytune.methods.targets import lowest_of
from manytune.utils.errors import StudyError
from manytune.utils.fields import Layers, Positive, WholeNumber, refused

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec


class Full(Method):
    """Train every parameter, the backbone and the head."""

    title = "full fine-tuning"
    short_title = "Full"
    paper = "https://arxiv.org/abs/1810.04805"
    group = "the backbone's weights"
    color = "blue"
    reference_dash = "dash"
    pack_kind = "full"
    exports = ("transformers", "onnx")
    written_if_set = frozenset({"layers", "layerwise_decay", "reinit_top", "head_learning_rate"})

    method: Literal["full"] = "full"
    """Train every parameter of the backbone and the head."""
    layers: Layers = "all"
    """Which of the encoder's layers train: all, or the last ones, such as `top 4`; then embeddings stay frozen too."""
    layerwise_decay: Annotated[Positive, Field(le=1)] = 1.0
    """Factor of the learning rate from each layer to the one below it, from the head down to the embeddings, as
    ELECTRA's authors use it (https://arxiv.org/abs/2003.10555): 0.8 or 0.9 for encoders of base size."""
    reinit_top: WholeNumber = 0
    """How many of the last layers, with the pooler, begin with fresh weights instead of the pretrained ones
    (https://arxiv.org/abs/2006.05987)."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    head: Annotated[
        Literal["full"],
        refused(dict.fromkeys(("bias", "frozen"), "it must be full, since this method trains all of the head")),
    ] = "full"
    """Which parameters of the head train: all of them."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head, where it is not `learning_rate`; `{of_learning_rate: 10}` is ten times it."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """Everything, or the last layers; raises a StudyError where the encoder has fewer than the settings say."""
        return self.with_head(spec, weights=self._weights(spec))

    def _weights(self, spec: ModelSpec) -> Iterator[Weight]:
        lowest = 0 if self.layers == "all" else lowest_of(self.layers, spec, self.method)
        for name in ("layerwise_decay", "reinit_top") if spec.passes > 1 else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise StudyError(f"methods: full's {name}: this backbone's layers are one and the same; leave it out.")
        fresh = spec.depth - self.reinit_top
        if fresh < 0:
            raise StudyError(
                f"methods: full's reinit_top {self.reinit_top} is more than the encoder's layers, {spec.depth}."
            )
        if fresh < lowest:
            raise StudyError(
                f"methods: full's reinit_top {self.reinit_top} reaches layers that stay frozen with layers "
                f"`{self.layers}`; they would never be trained. Use a smaller reinit_top, or more layers."
            )
        for name, shape in spec.tensors.items():
            layer = spec.layer_of(name)
            # Counted from the embeddings, 0, to what stands behind all layers.
            level = spec.depth + 1 if spec.is_behind_layers(name) else 0 if layer is None else layer + 1
            if self.layers != "all" and level <= lowest:
                continue
            rate = self.layerwise_decay ** (spec.depth + 1 - level)
            if self.reinit_top and level > fresh:
                # As transformers begins them: biases at 0, gains of norms at 1, and weights normal around 0.
                is_gain = len(shape) == 1 and name.endswith(".weight")
                std = spec.head.initializer_range if len(shape) > 1 else 0.0
                yield Weight(name, rate, std, float(is_gain))
            else:
                yield Weight(name, rate)
