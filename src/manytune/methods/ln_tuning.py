"""LayerNorm tuning: the norms of the backbone train (Zhao et al. 2023, https://arxiv.org/abs/2312.11420)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import StrictBool

from manytune.methods.adaptation import Adaptation, Hook, TrainBias, TrainGain
from manytune.methods.base import HeadMode, Method
from manytune.utils.errors import StudyError
from manytune.utils.fields import Positive

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.models.spec import ModelSpec


class LnTuning(Method):
    """Train the gains and biases of the backbone's norms (Zhao et al. 2023).

    All norms of the backbone, the one of its embeddings too. peft's LNTuningConfig has no default for encoders: it
    trains the norms that its `target_modules` name.
    """

    title = "LayerNorm tuning"
    short_title = "LN tuning"
    paper = "https://arxiv.org/abs/2312.11420"
    group = "some of the backbone's parameters"
    color = "indigo"
    exports = ("peft", "transformers", "onnx")

    method: Literal["ln-tuning"] = "ln-tuning"
    """Train the gains and biases of the backbone's norms only."""
    biases: StrictBool = True
    """Whether the norms' biases train as well as their gains; ModernBERT's norms have none."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten to fifty times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head, where it is not `learning_rate`; `{of_learning_rate: 0.1}` is a tenth of it."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """The gain of each norm, and its bias if it has one; raises a StudyError where there are no norms."""
        if not spec.norms:
            raise StudyError("methods: ln-tuning trains the backbone's norms, and this backbone has none.")
        hooks: list[Hook] = []
        for path in spec.norms:
            size = spec.tensors[f"{path}.weight"][0]
            hooks.append(TrainGain(path, size))
            if self.biases and f"{path}.bias" in spec.tensors:
                hooks.append(TrainBias(path, size))
        return self.with_head(spec, hooks=hooks)

    def suits(self, spec: ModelSpec) -> bool:
        """Whether the backbone has norms."""
        return bool(spec.norms)

    def peft_config(self, peft: Any, spec: ModelSpec, **shared: Any) -> Any:
        """As `peft.LNTuningConfig`, whose adapter holds all of each norm."""
        return peft.LNTuningConfig(target_modules=[f"{spec.prefix}.{path}" for path in spec.norms], **shared)

    def peft_state(self, state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """The norms by the names of the copies that peft makes of them."""
        paths = {f"{spec.prefix}.{path}" for path in spec.norms}
        found = {}
        for name, tensor in state.items():
            path, _, parameter = name.rpartition(".")
            found[f"{path}.ln_tuning_layers.{parameter}" if path in paths else name] = tensor
        return found
