"""The attention of packed batches, registered with transformers under the name `manytune`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from manytune.packing.buckets import attend
from manytune.packing.context import Context
from manytune.packing.dropout import Drop

NAME = "manytune"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    pack: Context,
    pack_site: str = "attention",
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of every token to the tokens of its own sequence.

    Args:
        module: The attention module that calls.
        query: [1, heads, T, d].
        key: [1, heads, T, d].
        value: [1, heads, T, d].
        attention_mask: None: the layout says what belongs together.
        scaling: Factor on the scores; d ** -0.5 by default.
        dropout: Probability of dropping a weight; 0 while evaluating.
        sliding_window: Tokens nearer than this see each other, as flash attention counts it; None: all of a sequence.
        pack: The forward pass; it reaches this function as a keyword argument of the model's forward.
        pack_site: Name of the site for keyed dropout; its calls are counted over the layers.

    Returns:
        [1, T, heads, d] and None for the weights.
    """
    layout = pack.layout
    assert layout is not None
    heads, tokens, width = query.shape[1:]
    site = pack.site(pack_site)
    drop = None if dropout == 0 or pack.keys is None else Drop(pack.keys.tokens, site, dropout)
    q, k, v = (x.transpose(1, 2).reshape(tokens, heads * width) for x in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    out = attend(q, k, v, layout, heads, scale, drop, None if sliding_window is None else sliding_window - 1)
    return out.view(1, tokens, heads, width), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout says which tokens see each other; no mask tensor is made."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
