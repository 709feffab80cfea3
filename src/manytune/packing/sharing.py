"""A model's module tree anew, over the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Container
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.models.loading import Backbone
from manytune.models.spec import layer_number


def is_in_layers(path: str) -> bool:
    """Whether a module is part of one of the encoder's layers, which stand in a numbered list.

    What is not, such as a projection of the embeddings or a pooler, works in fp32.
    """
    return layer_number(path) is not None


def on_device(backbone: Backbone, device: torch.device) -> Backbone:
    """The backbone with its tensors on a device, in fp32: every pack that is built there shares them."""
    if device.type == "cpu":
        return backbone
    whole = shared(backbone.whole, (), torch.float32, device)
    return replace(backbone, whole=whole, model=whole.base_model)


def shared(
    model: PreTrainedModel, trained: Container[str], dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A new module tree over the same tensors; over tensors of its own where they train: their paths in the backbone.

    Frozen matrices of the layers are cast to `dtype`, for products; not embeddings, of which few rows are read at a
    time, nor biases and norms, which add up in fp32.
    """
    products = {
        id(module.weight)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and is_in_layers(path)
    }
    own = {id(tensor) for name, tensor in model.base_model.named_parameters() if name in trained}
    memo: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        trains = id(tensor) in own
        wanted = dtype if id(tensor) in products and not trains else tensor.dtype
        new = tensor.detach().to(device, wanted, copy=trains)
        memo[id(tensor)] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
    return copy.deepcopy(model, memo)
