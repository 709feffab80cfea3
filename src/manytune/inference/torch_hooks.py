"""What a run trains beside the weights, as forward hooks of torch's on transformers' own model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from manytune.methods.adaptation import Bottleneck, Hook, LowRank, ScaleInput, ScaleOutput, TrainBias, TrainGain

_ORDER: tuple[type[Hook], ...] = (TrainGain, TrainBias, ScaleInput, LowRank, ScaleOutput, Bottleneck)
"""In the order in which they act on one module; see `methods.adaptation`."""


def add_hooks(model: nn.Module, prefix: str, hooks: tuple[Hook, ...], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let a model do what a run's hooks say, with the run's tensors; returns the tensors of no hook, by name.

    `prefix` is the path of the encoder. Raises ValueError for a hook of DoRA's or VeRA's.
    """
    rest = dict(state)
    for hook in hooks:
        if type(hook) not in _ORDER or (isinstance(hook, LowRank) and hook.magnitude):
            raise ValueError(f"{type(hook).__name__} of {hook.path} is merged into weights, not made a forward hook")
    for hook in sorted(hooks, key=lambda hook: _ORDER.index(type(hook))):
        module = model.get_submodule(f"{prefix}.{hook.path}")
        own = [rest.pop(f"{prefix}.{name}") for name in hook.names]
        match hook:
            case TrainGain() | TrainBias():
                setattr(module, hook.tensors[0].name, nn.Parameter(own[0]))
            case ScaleInput():
                module.register_forward_pre_hook(partial(_scale_input, own[0]))
            case _:
                module.register_forward_hook(partial(_change_output, hook, own))
    return rest


def _scale_input(factors: Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * factors, *inputs[1:])


def _change_output(hook: Hook, own: list[Tensor], module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return _change_output(hook, own, module, inputs, output[0]), *output[1:]
    if isinstance(hook, ScaleOutput):
        return output * own[0]
    if isinstance(hook, LowRank):
        added = linear(linear(inputs[0], own[0]), own[1])
        if len(own) > 2:  # what the factors began as
            added = added - linear(linear(inputs[0], own[2]), own[3])
        return output + hook.scale * added
    assert isinstance(hook, Bottleneck)
    down, down_bias, up, up_bias = own
    added = linear(ACT2FN[hook.activation](linear(output, down, down_bias)), up, up_bias)
    return module.forward(inputs[0] + added) if hook.renorms else output + added
