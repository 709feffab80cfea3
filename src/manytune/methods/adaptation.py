"""What a method trains, as data that needs no torch: hooks on modules of the backbone, any of which may be combined.

With all hooks, a linear layer W, b computes of its input x

    x' = input_scale * x
    y  = output_scale * (x' W + bias + scale * drop(x') A B)

where the norms of W + scale * A B may train (`LowRank.magnitude`), or A and B be frozen and shared (`SharedLowRank`);
and a LayerNorm gain * normed + bias. A bottleneck stands behind any module: it makes y + act(y D + d) U + u of the
module's output y; or it adds what it makes of a norm's output to the norm's input, and the sum is normed again.
`packing` turns hooks into the tensors of a bank and applies them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from manytune.methods.projections import Projections
    from manytune.models.spec import ModelSpec

TensorKind = Literal["backbone", "bias", "adapter", "head"]
"""The part of a parameter count that a tensor belongs to."""

Init = Literal["pretrained", "zeros", "ones", "kaiming", "hook"]
"""A tensor's initial values: `pretrained`, those of the backbone, or zeros where it has none; `kaiming`, uniform with
a = sqrt(5), keyed by the run's seed; `hook`, as the hook's own setting says."""

LowRankInit = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"]
"""How the factors of a low-rank update begin, as peft's `init_lora_weights` names them (`kaiming` is its default).

With `pissa` (https://arxiv.org/abs/2404.02948) they are the largest singular values and vectors of the weight, with
`olora` (https://arxiv.org/abs/2406.01775) the first columns of its QR decomposition; in both the frozen weight loses
what they begin as, so that a run starts as the base model."""


@dataclass(frozen=True)
class HookTensor:
    """A tensor that a hook trains."""

    name: str  # in the module of the unpacked model, such as `lora_A.weight`
    shape: tuple[int, ...]  # in the unpacked model; of a matrix (out, in)
    init: Init
    kind: TensorKind
    decays: bool  # whether weight decay applies
    rate: float = 1.0  # its learning rate, as a multiple of the run's
    trains: bool = True  # False: it stays as it begins

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Hook(ABC):
    """A change to what one module computes."""

    stream: ClassVar[str] = ""  # the first part of the key of random initial values
    path: str  # of the module inside the backbone

    @property
    @abstractmethod
    def tensors(self) -> tuple[HookTensor, ...]:
        """What trains."""

    @property
    def linear(self) -> tuple[int | None, int | None] | None:
        """The (out, in) of the linear layer that the hook needs, None for any width; None where any module will do."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its tensors inside the backbone."""
        return tuple(f"{self.path}.{tensor.name}" if self.path else tensor.name for tensor in self.tensors)


@dataclass(frozen=True)
class TrainBias(Hook):
    """The bias of a linear layer or norm trains; where the layer has none, a new one starts at zero."""

    size: int  # width of the layer's output
    name: str = "bias"  # of the parameter in the module

    @property
    def tensors(self) -> tuple[HookTensor, ...]:
        """The bias, as the layer has it or zero."""
        return (HookTensor(self.name, (self.size,), "pretrained", "bias", decays=False),)


@dataclass(frozen=True)
class TrainGain(Hook):
    """The gain of a LayerNorm, which transformers calls its weight, trains."""

    size: int  # width of the norm's output

    @property
    def tensors(self) -> tuple[HookTensor, ...]:
        """The gain, as the norm has it."""
        return (HookTensor("weight", (self.size,), "pretrained", "backbone", decays=False),)


@dataclass(frozen=True)
class _ChannelScale(Hook):
    """Each channel of a linear layer's input or output is multiplied by a trained factor, which starts at 1."""

    size: int  # how many channels there are
    name: str = ""  # of the tensor in the unpacked model
    decays: bool = False  # whether weight decay applies; it pulls towards 0, which switches the channel off

    @property
    def tensors(self) -> tuple[HookTensor, ...]:
        """The factors, one for each channel."""
        return (HookTensor(self.name, (self.size,), "ones", "adapter", self.decays),)


@dataclass(frozen=True)
class ScaleInput(_ChannelScale):
    """Each channel of a linear layer's input is multiplied by a trained factor, which starts at 1."""

    name: str = "input_scale"

    @property
    def linear(self) -> tuple[int | None, int | None]:
        """A layer with this input width."""
        return None, self.size


@dataclass(frozen=True)
class ScaleOutput(_ChannelScale):
    """Each channel of a linear layer's output, bias included, is multiplied by a trained factor, which starts at 1."""

    name: str = "output_scale"

    @property
    def linear(self) -> tuple[int | None, int | None]:
        """A layer with this output width."""
        return self.size, None


@dataclass(frozen=True)
class LowRank(Hook):
    """A low-rank update of a linear layer (LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    y = x W + b + scale * drop(x) A B, with A [in, rank] and B [rank, out]. Where A B does not begin at zero, scale * x
    A0 B0 is subtracted, with the factors as they began: the weight is shared with other runs, so it stays as it is.

    With `magnitude` (DoRA: Liu et al. 2024, https://arxiv.org/abs/2402.09353) a trained vector m [out] is the norm of
    each output channel's weights V = W + scale * A B: with g = m / |V|, where |V| passes no gradient on,
    y = x W + b + (g - 1) * drop(x) W + g * scale * drop(x) A B. It starts as the norms of W, so that g is 1.
    """

    stream = "lora"
    inputs: int  # width of the layer's input
    outputs: int  # width of its output
    rank: int  # r, the width of the update
    scale: float  # what the update is multiplied by
    dropout: float = 0.0  # probability that a channel of the update's input is dropped while training
    trains_a: bool = True  # False: A stays as it is drawn
    b_rate: float = 1.0  # B's learning rate, as a multiple of the run's
    init: LowRankInit = "kaiming"
    magnitude: bool = False  # whether the norms of the output channels' weights train too

    def __post_init__(self) -> None:
        """Raise a ValueError for norms of weights that have lost what the factors begin as."""
        if self.magnitude and self.init in ("pissa", "olora"):
            raise ValueError(f"a magnitude trains beside factors whose product begins at zero, not {self.init}")

    @property
    def tensors(self) -> tuple[HookTensor, ...]:
        """A and B, then the magnitude; where A B does not begin at zero, both as they began too."""
        shapes = (self.rank, self.inputs), (self.outputs, self.rank)
        trained: tuple[HookTensor, ...] = (
            HookTensor("lora_A.weight", shapes[0], "hook", "adapter", decays=True, trains=self.trains_a),
            HookTensor("lora_B.weight", shapes[1], "hook", "adapter", decays=True, rate=self.b_rate),
        )
        if self.magnitude:  # decay would pull the pretrained weights themselves towards zero
            trained += (HookTensor("lora_magnitude_vector", (self.outputs,), "hook", "adapter", decays=False),)
        if self.init not in ("pissa", "olora"):
            return trained
        names = ("lora_A.initial", "lora_B.initial")
        return trained + tuple(
            HookTensor(name, shape, "hook", "adapter", decays=False, trains=False)
            for name, shape in zip(names, shapes, strict=True)
        )

    @property
    def linear(self) -> tuple[int | None, int | None]:
        """A layer of these widths."""
        return self.outputs, self.inputs


@dataclass(frozen=True)
class SharedLowRank(Hook):
    """A low-rank update by frozen random factors that many layers and runs share; two vectors train.

    y = x W + b + lambda_b * ((lambda_d * (drop(x) A)) B), with A and B the first rows and columns of `projections`
    that the layer needs (VeRA: Kopiczko et al. 2024, https://arxiv.org/abs/2310.11454). lambda_b starts at zero.
    """

    inputs: int  # width of the layer's input
    outputs: int  # width of its output
    projections: Projections
    d_initial: float = 0.1  # what lambda_d starts at
    dropout: float = 0.0  # probability that a channel of the update's input is dropped while training

    @property
    def tensors(self) -> tuple[HookTensor, ...]:
        """lambda_b [out] and lambda_d [rank]."""
        return (
            HookTensor("vera_lambda_b", (self.outputs,), "hook", "adapter", decays=True),
            HookTensor("vera_lambda_d", (self.projections.rank,), "hook", "adapter", decays=True),
        )

    @property
    def linear(self) -> tuple[int | None, int | None]:
        """A layer of these widths."""
        return self.outputs, self.inputs


@dataclass(frozen=True)
class Bottleneck(Hook):
    """A small network behind a module: y + act(y D + d) U + u (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751).

    D [size, width] is drawn; d, U [width, size] and u start at zero, so that a run starts as the base model. With
    `renorms` the module is a norm of s, and what the network makes of y is added to s, which is normed again:
    norm(s + act(y D + d) U + u) with y = norm(s) (Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247).
    """

    stream = "bottleneck"
    size: int  # width of the module's output, which is a tensor or a tuple that begins with it
    width: int  # width of the bottleneck
    activation: str = "relu"  # its name in transformers
    name: str = "adapter"  # of the network in the unpacked model; its layers are `down` and `up`
    renorms: bool = False  # whether it adds to the input of the norm that it stands behind

    @property
    def tensors(self) -> tuple[HookTensor, ...]:
        """Both layers: D and d, U and u."""
        down, up = f"{self.name}.down", f"{self.name}.up"
        return (
            HookTensor(f"{down}.weight", (self.width, self.size), "kaiming", "adapter", decays=True),
            HookTensor(f"{down}.bias", (self.width,), "zeros", "adapter", decays=False),
            HookTensor(f"{up}.weight", (self.size, self.width), "zeros", "adapter", decays=True),
            HookTensor(f"{up}.bias", (self.size,), "zeros", "adapter", decays=False),
        )


@dataclass(frozen=True)
class Weight:
    """A tensor of the backbone that trains in place."""

    name: str  # inside the backbone
    rate: float = 1.0  # its learning rate, as a multiple of the run's
    # Standard deviation of the normal distribution that its values are drawn from anew, 0 for zeros, None: they are the
    # pretrained ones
    std: float | None = None
    mean: float = 0.0  # of that distribution


@dataclass(frozen=True)
class Adaptation:
    """What one run trains."""

    weights: tuple[Weight, ...] = ()  # tensors of the backbone that train in place; then there are no hooks
    hooks: tuple[Hook, ...] = ()  # on modules of the backbone
    head: tuple[str, ...] = ()  # names of the head's tensors that train
    head_rate: float = 1.0  # their learning rate, as a multiple of the run's

    def __post_init__(self) -> None:
        """Raise a ValueError where two hooks of a module have one kind or name, or stand beside weights that train."""
        keys = Counter(name for hook in self.hooks for name in hook.names)
        keys += Counter(f"{type(h).__name__} of {h.path}" for h in self.hooks if not isinstance(h, TrainBias))
        if twice := [key for key, count in keys.items() if count > 1]:
            raise ValueError(f"hooks that stand more than once: {', '.join(twice)}")
        if self.weights and self.hooks:
            raise ValueError("where the backbone's own weights train there can be no hooks")

    @property
    def biases(self) -> tuple[str, ...]:
        """Names of the biases that train by hooks, in the backbone."""
        return tuple(name for hook in self.hooks if isinstance(hook, TrainBias) for name in hook.names)

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the backbone's other tensors that train: weights in place, and gains by hooks."""
        gains = (name for hook in self.hooks if isinstance(hook, TrainGain) for name in hook.names)
        return (*(weight.name for weight in self.weights), *gains)

    @property
    def adapters(self) -> dict[str, int]:
        """Path of a module of the backbone → the parameters that hooks add to it."""
        found: Counter[str] = Counter()
        for hook in self.hooks:
            trained = (tensor for tensor in hook.tensors if tensor.kind == "adapter" and tensor.trains)
            found[hook.path] += sum(tensor.size for tensor in trained)
        return dict(+found)


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a run has and trains; `trainable` is the sum of the four parts that follow it."""

    total: int  # all parameters of the model, adapters included
    trainable: int
    backbone: int  # trained tensors of the backbone: weights with their biases, or gains of norms
    bias: int  # biases that train by themselves
    adapter: int  # what else hooks add, such as the factors of a low-rank update
    head: int  # trained tensors of the head


def count_parameters(spec: ModelSpec, adaptation: Adaptation) -> ParameterCount:
    """Count a run's parameters from shapes alone."""
    sizes = {name: math.prod(shape) for name, shape in spec.tensors.items()}
    head_sizes = {name: math.prod(shape) for name, shape in spec.head.shapes().items()}
    trained = {"backbone": sum(sizes[weight.name] for weight in adaptation.weights), "bias": 0, "adapter": 0}
    added = 0
    for hook in adaptation.hooks:
        for name, tensor in zip(hook.names, hook.tensors, strict=True):
            trained[tensor.kind] += tensor.size if tensor.trains else 0
            added += 0 if name in sizes else tensor.size
    trained["head"] = sum(head_sizes[name] for name in adaptation.head)
    total = sum(sizes.values()) + sum(head_sizes.values()) + added
    return ParameterCount(total=total, trainable=sum(trained.values()), **trained)
