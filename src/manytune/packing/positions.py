"""Attention with a bias by relative position, which transformers' modules compute for padded batches alone.

One table serves all layers: what is added to a score depends on the head and on the key's place less the query's. It is
laid out by that difference once a pass, [heads, 2 M - 1] for sequences of up to M tokens, so that what a query's scores
are added is a slice of it, and kernels know nothing of buckets. T5's table would do the same. DeBERTa's would not: its
bias is a product with the query or the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manytune.models.families import LayerNames
from manytune.packing.buckets import attend
from manytune.packing.context import Context


class PositionBias(nn.Module):
    """The table, and which of its rows belongs to which difference of places."""

    buckets: Tensor  # [2 M - 1] int64, the row for a query's place less a key's of -(M - 1) to M - 1

    def __init__(self, weight: nn.Parameter, bucket: Callable[[Tensor], Tensor], most: int) -> None:
        """Of a table [rows, heads]; `bucket` has the rows of keys' places less queries', for M = `most`."""
        super().__init__()
        self.weight = weight
        rows = bucket(torch.arange(most - 1, -most, -1))
        self.register_buffer("buckets", rows.to(weight.device), persistent=False)
        self._laid_out: Tensor | None = None  # of a table that does not train

    def forward(self) -> Tensor:
        """[heads, 2 M - 1] fp32, as `AttentionCall` takes it."""
        if self.weight.requires_grad:
            return self.weight[self.buckets].T.contiguous()
        if self._laid_out is None:
            self._laid_out = self.weight[self.buckets].T.contiguous()
        return self._laid_out


class PositionedAttention(nn.Module):
    """A layer's attention up to the product behind it, in the place of transformers' module of the same parts."""

    def __init__(self, layer: nn.Module, names: LayerNames, context: Context, heads: int) -> None:
        super().__init__()
        inner = f"{names.attention}."
        self.parts = tuple(path.removeprefix(inner) for path in (names.query, names.key, names.value, names.attn_out))
        for path in (*self.parts, names.attention_dropout.removeprefix(inner)):
            self.add_module(path, layer.get_submodule(inner + path))
        self.dropout_name = names.attention_dropout.removeprefix(inner)
        self.context, self.heads = context, heads

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """[1, T, H] of [1, T, H]; the mask and bias that transformers' layer hands on are not looked at."""
        context = self.context
        assert context.layout is not None
        q, k, v = (self.get_submodule(path)(hidden)[0] for path in self.parts[:3])
        drop = context.drop("attention", float(self.get_submodule(self.dropout_name).p))  # type: ignore[arg-type]
        scale = (q.shape[1] // self.heads) ** -0.5
        out = attend(q, k, v, context.layout, self.heads, scale, drop, position_bias=context.position_bias)
        return (self.get_submodule(self.parts[3])(out[None]),)
