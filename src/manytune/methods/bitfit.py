"""BitFit: the backbone's biases train (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from manytune.methods.adaptation import Adaptation, TrainBias
from manytune.methods.base import HeadMode, Method
from manytune.utils.errors import StudyError
from manytune.utils.fields import Positive

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec


class BitFit(Method):
    """Train the biases of the backbone and nothing else in it (Ben Zaken et al. 2022)."""

    title = "BitFit"
    paper = "https://arxiv.org/abs/2106.10199"
    color = "vermilion"
    reference_dash = "dot"
    exports = ("transformers", "onnx")

    method: Literal["bitfit"] = "bitfit"
    """Train the backbone's biases only."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten to fifty times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """All biases of the backbone; raises a StudyError where it has none."""
        if not self.suits(spec):
            raise StudyError(
                "methods: bitfit trains the backbone's biases, and this backbone has none. "
                "Use another method, or a backbone with biases (RoBERTa and BERT have them)."
            )
        hooks = []
        for tensor in spec.biases:
            path, _, name = tensor.rpartition(".")
            hooks.append(TrainBias(path, spec.tensors[tensor][0], name))
        return Adaptation(hooks=tuple(hooks), head=self.trained_head(spec.head))

    def suits(self, spec: ModelSpec) -> bool:
        """Whether the backbone has biases."""
        return bool(spec.biases)
