"""(IA)³: activations are rescaled by trained vectors (Liu et al. 2022, https://arxiv.org/abs/2205.05638)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import StrictBool

from manytune.methods.adaptation import Adaptation, ScaleInput, ScaleOutput
from manytune.methods.base import HeadMode, Method
from manytune.utils.errors import StudyError
from manytune.utils.fields import Positive

if TYPE_CHECKING:
    from torch import Tensor

    from manytune.models.spec import ModelSpec

_NAME = "ia3_l"  # of the factors, as in peft


class Ia3(Method):
    """Scale keys, values and inner feed-forward activations (Liu et al. 2022).

    A trained factor for each channel, which starts at 1: y = l · (xW + b) for keys and values, y = (l · x)W + b for the
    layer that narrows the feed-forward's inner activations x.
    """

    title = "(IA)³"
    paper = "https://arxiv.org/abs/2205.05638"
    group = "scales of activations"
    color = "orange"
    exports = ("peft", "transformers", "onnx")

    method: Literal["ia3"] = "ia3"
    """Train vectors that scale activations of the frozen backbone: keys, values, and the feed-forward's."""
    feed_forward: StrictBool = True
    """Whether the feed-forward's inner activations are scaled as well as keys and values."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some hundred times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head, where it is not `learning_rate`; `{of_learning_rate: 0.1}` is a tenth of it."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """A factor for each channel that is scaled; raises a StudyError where the backbone has no keys or values."""
        outputs, inputs = self._layers(spec)
        hooks = (
            *(ScaleOutput(path, spec.linears[path][1], _NAME) for path in outputs),
            *(ScaleInput(path, spec.linears[path][0], _NAME) for path in inputs),
        )
        return self.with_head(spec, hooks=hooks)

    def _layers(self, spec: ModelSpec) -> tuple[list[str], list[str]]:
        """Paths of the linear layers whose outputs are scaled, and of those whose inputs are.

        The latter are the layers that narrow the feed-forward's inner activations: those of an encoder layer, which
        stands in a numbered list, with fewer outputs than inputs.
        """
        outputs = [path for path in spec.linears if path.endswith(self._ends(spec))]
        if not outputs:
            names = sorted({path.rpartition(".")[2] for path in spec.linears})
            raise StudyError(
                "methods: ia3 scales keys and values, and no linear layer of this backbone is known to compute them; "
                f"its linear layers are called: {', '.join(names)}. Use a method whose targets can be any of them."
            )
        narrowing = (path for path, (wide, narrow) in spec.linears.items() if wide > narrow and path not in outputs)
        inputs = [path for path in narrowing if spec.layer_of(path) is not None]
        return outputs, inputs if self.feed_forward else []

    @staticmethod
    def _ends(spec: ModelSpec) -> tuple[str, ...]:
        return tuple(f".{spec.targets[word]}" for word in ("key", "value"))

    def suits(self, spec: ModelSpec) -> bool:
        """Whether it is known which layers compute keys and values."""
        return any(path.endswith(self._ends(spec)) for path in spec.linears)

    def notes(self, spec: ModelSpec) -> Iterator[str]:
        """That queries are scaled too where they are one layer with keys and values."""
        if spec.fused is not None:
            yield f"query, key and value are one layer, {spec.fused}; ia3 scales all of its outputs, queries too."

    def merge(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """The factors multiplied into weights and biases: of outputs into rows, of inputs into columns."""
        merged = {name: tensor for name, tensor in state.items() if not name.endswith(f".{_NAME}")}
        outputs, inputs = self._layers(spec)
        for path in (f"{spec.prefix}.{layer}" for layer in outputs):
            factors = state[f"{path}.{_NAME}"]
            merged[f"{path}.weight"] = weights[f"{path}.weight"] * factors[:, None]
            if f"{path}.bias" in weights:
                merged[f"{path}.bias"] = weights[f"{path}.bias"] * factors
        for path in (f"{spec.prefix}.{layer}" for layer in inputs):
            merged[f"{path}.weight"] = weights[f"{path}.weight"] * state[f"{path}.{_NAME}"]
        return merged

    def peft_config(self, peft: Any, spec: ModelSpec, **shared: Any) -> Any:
        """As `peft.IA3Config`."""
        outputs, inputs = ([f"{spec.prefix}.{layer}" for layer in layers] for layers in self._layers(spec))
        return peft.IA3Config(target_modules=[*outputs, *inputs], feedforward_modules=inputs, **shared)

    def peft_state(self, state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """The factors as peft has them: of outputs a column, of inputs a row."""
        inputs = {f"{spec.prefix}.{layer}.{_NAME}" for layer in self._layers(spec)[1]}
        shapes = {name: (1, -1) if name in inputs else (-1, 1) for name in state if name.endswith(f".{_NAME}")}
        return {name: tensor.reshape(shapes.get(name, tensor.shape)) for name, tensor in state.items()}
