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
    group = "some of the backbone's parameters"
    color = "vermilion"
    reference_dash = "dot"
    exports = ("transformers", "onnx")
    written_if_set = frozenset({"biases", "head_learning_rate"})

    method: Literal["bitfit"] = "bitfit"
    """Train the backbone's biases only."""
    biases: Literal["all", "query-and-ffn"] = "all"
    """Which biases train: all, or those of the query and of the first layer of the feed-forward network, the small
    variant of the paper."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten to fifty times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head, where it is not `learning_rate`; `{of_learning_rate: 0.1}` is a tenth of it."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """The chosen biases of the backbone; raises a StudyError where it has none of them."""
        if not self.suits(spec):
            raise StudyError(
                "methods: bitfit trains the backbone's biases, and this backbone has none. "
                "Use another method, or a backbone with biases (RoBERTa and BERT have them)."
            )
        hooks = []
        for tensor in spec.biases:
            path, _, name = tensor.rpartition(".")
            if self.biases == "all" or self._is_in_small_variant(path, spec):
                hooks.append(TrainBias(path, spec.tensors[tensor][0], name))
        if not hooks:
            raise StudyError(
                "methods: bitfit's biases query-and-ffn: this backbone's query and feed-forward layers have none. "
                "Use all."
            )
        return self.with_head(spec, hooks=hooks)

    @staticmethod
    def _is_in_small_variant(path: str, spec: ModelSpec) -> bool:
        """Whether a module is a query projection, or the widening layer of the feed-forward network."""
        inputs, outputs = spec.linears.get(path, (0, 0))
        is_query = spec.fused is None and f".{path}".endswith(f".{spec.targets['query']}")
        return is_query or (
            outputs > inputs and not path.endswith(f".{spec.fused}") and spec.layer_of(path) is not None
        )

    def suits(self, spec: ModelSpec) -> bool:
        """Whether the backbone has biases."""
        return bool(spec.biases)
