"""The attention of packed batches, registered with transformers under the name `manytune`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from manytune.packing.buckets import attend
from manytune.packing.context import Context

NAME = "manytune"


def packed_attention(
    module: nn.Module,  # the attention module that calls
    query: Tensor,  # [1, heads, T, d]
    key: Tensor,  # [1, heads, T, d]
    value: Tensor,  # [1, heads, T, d]
    attention_mask: None,  # None: the layout says what belongs together
    *,
    scaling: float | None = None,  # factor on the scores; d ** -0.5 by default
    dropout: float = 0.0,  # probability of dropping a weight; 0 while evaluating
    # tokens nearer than this see each other, as flash attention counts it; None: all of a sequence
    sliding_window: int | None = None,
    pack: Context,  # the forward pass; it reaches this function as a keyword argument of the model's forward
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of every token to the tokens of its own sequence: [1, T, heads, d], and None for the weights."""
    layout = pack.layout
    assert layout is not None
    heads, tokens, width = query.shape[1:]
    drop = pack.drop("attention", dropout)  # whose calls are counted over the layers
    q, k, v = (x.transpose(1, 2).reshape(tokens, heads * width) for x in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    out = attend(q, k, v, layout, heads, scale, drop, None if sliding_window is None else sliding_window - 1)
    return out.view(1, tokens, heads, width), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # the layout says which tokens see each other
