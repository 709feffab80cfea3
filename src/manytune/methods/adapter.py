"""Bottleneck adapters: small networks inside the frozen backbone (Houlsby et al. 2019, Pfeiffer et al. 2020).

https://arxiv.org/abs/1902.00751, https://arxiv.org/abs/2005.00247
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from manytune.methods.adaptation import Adaptation, Bottleneck
from manytune.methods.base import Axis, HeadMode, Method
from manytune.utils.errors import StudyError
from manytune.utils.fields import Count, Positive

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec


class Adapter(Method):
    """Train bottleneck networks inside the layers (Houlsby et al. 2019; Pfeiffer et al. 2020).

    A(y) = act(yD + d)U + u, whose inner width is the backbone's divided by `reduction_factor`. They stand where the
    adapters library puts those of `double_seq_bn` and `seq_bn`. With x the input of a sub-layer and h its output,
    houlsby computes norm(x + h + A(h)) behind attention and behind the feed-forward, and pfeiffer
    norm(x + h + A(norm(x + h))) behind the feed-forward alone. Where norms stand before the sub-layers (ModernBERT),
    these are x + h + A(h) and x + h + A(x + h).

    U starts at zero, so that a run starts as the base model, and D is drawn as the first factor of LoRA is (the
    library's `mam_adapter`). Houlsby et al. draw both from a normal distribution with a deviation of 0.01, the library
    by default with one of 0.02, which starts near the base model.
    """

    title = "Adapter"
    paper = "https://arxiv.org/abs/1902.00751"
    group = "added networks"
    color = "brown"
    axis = Axis("reduction_factor", "adapter reduction factor", "reduction=", 2, "reduction")
    grid = MappingProxyType({"kind": ("pfeiffer", "houlsby"), "reduction_factor": (16,)})
    exports = ("onnx",)

    method: Literal["adapter"] = "adapter"
    """Train small bottleneck networks inside the layers of the frozen backbone."""
    kind: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    """Where they stand: behind the feed-forward (pfeiffer), or behind attention and the feed-forward (houlsby)."""
    reduction_factor: Count = 16
    """The backbone's width divided by the one of the bottleneck, which is rounded down."""
    activation: Literal["relu", "gelu", "silu", "tanh"] | None = None
    """The function inside; null is the adapters library's choice, relu for pfeiffer and silu (swish) for houlsby."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head, where it is not `learning_rate`; `{of_learning_rate: 0.1}` is a tenth of it."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """D, d, U, u of each place; raises a StudyError where there is no such place or no width is left."""
        paths = self._places(spec)
        if not paths or not spec.hidden:
            raise StudyError(
                "methods: adapter stands behind the sub-layers of a layer, and it is not known which modules these "
                "are in this backbone. Use another method, or a backbone of a family that `manytune models` lists."
            )
        if self.reduction_factor > spec.hidden:
            raise StudyError(
                f"methods: adapter's reduction_factor {self.reduction_factor} leaves nothing of the backbone's width, "
                f"{spec.hidden}; a factor from 1 to {spec.hidden} can be used."
            )
        width = spec.hidden // self.reduction_factor
        hooks = (
            Bottleneck(path, spec.hidden, width, self._function, renorms=self.kind == "pfeiffer" and path in spec.norms)
            for path in paths
        )
        return self.with_head(spec, hooks=hooks)

    @property
    def _function(self) -> str:
        return self.activation or {"pfeiffer": "relu", "houlsby": "silu"}[self.kind]

    @property
    def pack_order(self) -> tuple[Any, ...]:
        """Runs of one kind, width and activation side by side."""
        return (
            self.method,
            self.kind,
            self.reduction_factor,
            self._function,
            self.learning_rate,
            self.head,
            self.head_learning_rate or 0.0,
        )

    def _places(self, spec: ModelSpec) -> tuple[str, ...]:
        """Paths of the modules that they stand behind."""
        if self.kind == "pfeiffer":
            return spec.layer_ends
        return spec.attention_ends + spec.feed_forward_ends if spec.attention_ends and spec.feed_forward_ends else ()

    def suits(self, spec: ModelSpec) -> bool:
        """Whether there is a place for them, and something left of the width."""
        return bool(self._places(spec)) and self.reduction_factor <= spec.hidden

    @property
    def adapter_label(self) -> str:
        """The kind and the size."""
        return f"{self.kind} {super().adapter_label}"
