"""Head only: the backbone stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from manytune.methods.adaptation import Adaptation
from manytune.methods.base import Method
from manytune.utils.fields import Positive, refused

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec


class Head(Method):
    """Train the head on top of the frozen backbone."""

    title = "head-only training"
    short_title = "Head only"
    group = "the head alone"
    color = "purple"
    pack_kind = "head"  # no gradient flows through the backbone, so packs with others would compute it for nothing
    exports = ("transformers", "onnx")

    method: Literal["head"] = "head"
    """Train the head only; the backbone stays as it is."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    head: Annotated[
        Literal["full", "bias"],
        refused({"frozen": "it must be full or bias, since with a frozen head nothing would train"}),
    ] = "full"
    """Which parameters of the head train: all of them, or its biases."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """The head alone."""
        return self.with_head(spec)
