"""The table of methods, and what each one's choice comes to in parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manytune.config import Method
from manytune.methods.bitfit import adapt as bitfit
from manytune.methods.full import adapt as full
from manytune.methods.head_only import adapt as head
from manytune.methods.lora import adapt as lora
from manytune.models.spec import ModelSpec
from manytune.packing import Adaptation

__all__ = ["METHODS", "ParameterCount", "adapt", "count_parameters"]

METHODS: dict[str, Callable[[Any, ModelSpec], Adaptation]] = {
    "full": full,
    "bitfit": bitfit,
    "lora": lora,
    "head": head,
}


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a run has and trains; `trainable` is the sum of the four parts below it.

    Attributes:
        total: All parameters of the model, adapters included.
        trainable: Those that train.
        backbone: Trained tensors of the backbone, biases included, where all of it trains.
        bias: Trained biases of the backbone, where nothing else of it trains.
        adapter: LoRA's factors.
        head: Trained tensors of the head.
    """

    total: int
    trainable: int
    backbone: int
    bias: int
    adapter: int
    head: int


def adapt(method: Method, model_spec: ModelSpec) -> Adaptation:
    """What a method trains of a backbone.

    Raises:
        StudyError: The method does not fit the backbone.
    """
    return METHODS[method.method](method, model_spec)


def count_parameters(model_spec: ModelSpec, adaptation: Adaptation) -> ParameterCount:
    """Count a run's parameters from shapes alone."""
    sizes = {name: math.prod(shape) for name, shape in model_spec.tensors.items()}
    head_sizes = {name: math.prod(shape) for name, shape in model_spec.head.shapes().items()}
    adapter = 0
    if adaptation.lora is not None:
        widths = [sum(model_spec.linears[path]) for path in adaptation.lora.targets]
        adapter = adaptation.lora.rank * sum(widths)
    backbone = sum(sizes.values()) if adaptation.weights else 0
    bias = sum(sizes[name] for name in adaptation.biases)
    trained_head = sum(head_sizes[name] for name in adaptation.head)
    return ParameterCount(
        total=sum(sizes.values()) + sum(head_sizes.values()) + adapter,
        trainable=backbone + bias + adapter + trained_head,
        backbone=backbone,
        bias=bias,
        adapter=adapter,
        head=trained_head,
    )
