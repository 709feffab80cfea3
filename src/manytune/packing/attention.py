"""Attention over token-flat batches, registered with transformers under the name `manytune`.

Only attention needs sequences apart from one another. Tokens are regrouped into buckets of sequences padded to
the same length, where a sequence's bucket depends on its own length alone; padding reads zeros and is masked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from manytune.packing.context import Context
from manytune.packing.dropout import attention_dropout_scale
from manytune.packing.layout import Bucket, Layout

__all__ = ["NAME", "packed_attention"]

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
        pack: The forward pass; it reaches this function as a keyword argument of the model's forward.
        pack_site: Name of the site for keyed dropout; its calls are counted over the layers.

    Returns:
        [1, T, heads, d] and None for the weights.
    """
    layout = pack.layout
    assert layout is not None
    heads, tokens, width = query.shape[1:]
    scale = width**-0.5 if scaling is None else scaling
    q, k, v = (_to_slots(x, layout) for x in (query, key, value))
    site = pack.site(pack_site)
    outputs = []
    for bucket in layout.buckets:
        q_part, k_part, v_part = (_bucket_view(x, bucket, heads) for x in (q, k, v))
        if dropout > 0 and pack.keys is not None:
            last = bucket.first + bucket.sequences * bucket.length
            shape = (bucket.sequences, heads, bucket.length)
            drop = attention_dropout_scale(pack.keys.slots[bucket.first : last], site, shape, dropout, query.dtype)
            out = _explicit(q_part, k_part, v_part, bucket.mask, scale, drop)
        else:
            out = F.scaled_dot_product_attention(q_part, k_part, v_part, attn_mask=bucket.mask, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(-1, heads * width))
    slots = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _Flatten.apply(slots, layout).view(1, tokens, heads, width), None


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, drop: Tensor) -> Tensor:
    """Attention written out, [S, heads, L, d]: SDPA would draw its dropout from the global generator."""
    scores = torch.matmul(q * scale, k.mT)
    if mask is not None:
        # Added, not filled in: filling by a mask that is broadcast is several times slower.
        scores.add_(torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf")))
    return torch.matmul(scores.softmax(-1) * drop, v)


def _to_slots(x: Tensor, layout: Layout) -> Tensor:
    """[1, heads, T, d] → [N, heads * d]."""
    heads, tokens, width = x.shape[1:]
    slots: Tensor = _Regroup.apply(x.transpose(1, 2).reshape(tokens, heads * width), layout)
    return slots


def _bucket_view(slots: Tensor, bucket: Bucket, heads: int) -> Tensor:
    """A bucket's slots as [S, heads, L, d]."""
    part = slots[bucket.first : bucket.first + bucket.sequences * bucket.length]
    return part.view(bucket.sequences, bucket.length, heads, -1).transpose(1, 2)


def _gather(tokens: Tensor, layout: Layout) -> Tensor:
    """[T, c] → [N, c]; padding slots hold zeros, whatever the tokens hold."""
    return tokens.index_select(0, layout.slot_token).index_fill_(0, layout.slot_padding, 0)


class _Regroup(torch.autograd.Function):
    """Tokens to slots. Each token has one slot, so the way back is a gather too, not an addition by index."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return _gather(tokens, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.layout.token_slot), None


class _Flatten(torch.autograd.Function):
    """Slots to tokens: the adjoint of `_Regroup`."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return slots.index_select(0, layout.token_slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.layout), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout says which tokens see each other; no mask tensor is made."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
