"""Attention over token-flat batches in torch.

Only attention needs sequences apart from one another. Tokens are regrouped into buckets of sequences padded to
the same length, where a sequence's bucket depends on its own length alone; padding reads zeros and is masked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manytune.packing.dropout import Drop, attention_dropout_scale
from manytune.packing.layout import Bucket, Layout, barrier


def attend(
    q: Tensor,  # [T, heads * d]
    k: Tensor,  # [T, heads * d]
    v: Tensor,  # [T, heads * d]
    layout: Layout,  # which tokens belong together
    heads: int,  # number of heads
    scale: float,  # factor on the scores
    drop: Drop | None,  # of the weights, keyed by the queries' tokens; None while evaluating
    window: int | None = None,  # tokens farther apart than this do not see each other; None: all of a sequence do
    position_bias: Tensor | None = None,  # [heads, 2 M - 1], added to scores; see `AttentionCall`
) -> Tensor:
    """[T, heads * d]: every token's weighted sum of the values of its own sequence."""
    # SDPA would draw its dropout from the global generator, and on a GPU its gradient adds up in an order of chance.
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    written_out = drop is not None or position_bias is not None or (trains and q.device.type != "cpu")
    slots = [_Regroup.apply(x, layout, True) for x in (q, k, v)]
    keys = None if drop is None else drop.keys[layout.slots.slot_token]
    outputs = []
    for bucket in layout.slots.buckets:
        span = slice(bucket.first, bucket.first + bucket.sequences * bucket.length)
        shape = bucket.sequences, bucket.length, heads, -1
        q_part, k_part, v_part = (x[span].view(shape).transpose(1, 2) for x in slots)  # [S, heads, L, d]
        near = _near(bucket, window, q.device)
        if written_out:
            added = bucket.barrier if near is None else barrier(near)
            if position_bias is not None:
                by_place = _by_place(position_bias, bucket.length)
                added = by_place if added is None else by_place + added
            factors = None
            if drop is not None and keys is not None:
                sizes = bucket.sequences, heads, bucket.length
                factors = attention_dropout_scale(keys[span], drop.site, sizes, drop.p, torch.float32)
            out = _attend(q_part, k_part, v_part, scale, added, factors)
        else:
            mask = bucket.mask if near is None else near
            out = F.scaled_dot_product_attention(q_part, k_part, v_part, attn_mask=mask, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(-1, q.shape[1]))
    flat: Tensor = _Regroup.apply(outputs[0] if len(outputs) == 1 else torch.cat(outputs), layout, False)
    return flat


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, added: Tensor | None, factors: Tensor | None) -> Tensor:
    """[S, heads, L, d]: attention written out, with scores and softmax in fp32 as in SDPA.

    `added` is broadcast over the scores [S, heads, L, L], `factors` are dropout's of the weights.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q.to(dtype) * scale, k.to(dtype).mT)
    if added is not None:  # not filled in: filling by a mask that is broadcast is several times slower
        scores.add_(added)
    weights = scores.softmax(-1)
    return torch.matmul((weights if factors is None else weights * factors).to(v.dtype), v)


def _by_place(position_bias: Tensor, length: int) -> Tensor:
    """[heads, L, L] of [heads, 2 M - 1]; of slots beyond M, which are padding, that of the farthest place."""
    most = (position_bias.shape[1] + 1) // 2
    place = torch.arange(length, device=position_bias.device)
    offsets = place[:, None] - place[None, :] + most - 1
    return position_bias[:, offsets.clamp_(0, 2 * most - 2)]


def _near(bucket: Bucket, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees in a window, broadcast to [S, 1, L, L]; None where it is those of the bucket's mask.

    A padding query sees every token of its sequence: with none in its window the softmax would give NaN, which a
    gradient of zero does not wipe out.
    """
    if window is None or window >= bucket.length - 1:
        return None
    place = torch.arange(bucket.length, device=device)
    near = (place[:, None] - place[None, :]).abs() <= window
    return near if bucket.mask is None else bucket.mask & (near | ~bucket.mask.mT)


def _gather(tokens: Tensor, layout: Layout) -> Tensor:
    """[T, c] → [N, c]; padding slots hold zeros, whatever the tokens hold."""
    return tokens.index_select(0, layout.slots.slot_token).index_fill_(0, layout.slots.slot_padding, 0)


def _rows(slots: Tensor, layout: Layout) -> Tensor:
    """[N, c] → [T, c]; padding rows get zeros."""
    return F.pad(slots.index_select(0, layout.slots.token_slot), (0, 0, 0, layout.rows - layout.tokens))


class _Regroup(torch.autograd.Function):
    """Tokens to slots, or back. Each token has one slot, so both ways are gathers, not additions by index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, to_slots: bool) -> Tensor:
        ctx.layout, ctx.to_slots = layout, to_slots
        return _gather(x, layout) if to_slots else _rows(x, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _rows(grad, ctx.layout) if ctx.to_slots else _gather(grad, ctx.layout), None, None
