"""Full fine-tuning: every parameter of the backbone and the head trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from manytune.methods.adaptation import Adaptation
from manytune.methods.base import Method
from manytune.utils.fields import Positive, refused

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec


class Full(Method):
    """Train every parameter, the backbone and the head."""

    title = "full fine-tuning"
    short_title = "Full"
    paper = "https://arxiv.org/abs/1810.04805"
    color = "blue"
    reference_dash = "dash"
    pack_kind = "full"
    exports = ("transformers", "onnx")

    method: Literal["full"] = "full"
    """Train every parameter of the backbone and the head."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    head: Annotated[
        Literal["full"],
        refused(dict.fromkeys(("bias", "frozen"), "it must be full, since this method trains all of the head")),
    ] = "full"
    """Which parameters of the head train: all of them."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """Everything."""
        return Adaptation(weights=True, head=self.trained_head(spec.head))
