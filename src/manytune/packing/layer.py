"""An encoder layer of the BERT and RoBERTa families for a pack of runs, forward and backward in one autograd node.

    qkv = x W_qkv + b                 attention(q, k, v)
    u   = LayerNorm(x + drop(attended W_o + b))
    y   = LayerNorm(u + drop(gelu(u W_1 + b) W_2 + b))

The residual stream x, u, y is fp32; products work on a copy of it in the activations' dtype (`low`), which the kernel
that makes the stream makes too. What this saves over transformers' own modules: every element-wise stretch between
two products is one kernel, biases are added where their sum is read anyway, q, k and v are one product, the gradients
of a tensor with several uses add up inside a product or kernel, and of the last layer nothing is computed for tokens
that no head looks at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manytune.packing.context import Context
from manytune.packing.dropout import Drop
from manytune.packing.kernels import AttentionCall, Kernels, Segments
from manytune.packing.layout import Layout
from manytune.packing.linear import LoraUse, PackedLayerNorm, PackedLinear, lora_backward, lora_forward, run_rows
from manytune.packing.products import Product

__all__ = ["PackedLayer"]

_QKV = ("query", "key", "value")
_LINEARS = (*_QKV, "attended", "wide", "narrow")
_NORMS = ("middle", "last")


class PackedLayer:
    """One layer of the encoder, made of the packed modules of transformers' layer.

    Attributes:
        linears: query, key, value, attended (the product after attention), wide and narrow (feed-forward).
        norms: middle and last.
    """

    def __init__(self, layer: Any, context: Context, *, last: bool) -> None:
        """Take over a layer of `encoder.layer` whose linear layers and norms are packed already.

        Args:
            layer: A `BertLayer` or one built like it.
            context: Of the pack.
            last: Whether only each sequence's first token is wanted.
        """
        attention, output = layer.attention, layer.output
        own = attention.self
        self.context = context
        self.last = last
        self.heads: int = own.num_attention_heads
        self.scale: float = own.scaling
        self.linears: dict[str, PackedLinear] = dict(
            zip(
                _LINEARS,
                (own.query, own.key, own.value, attention.output.dense, layer.intermediate.dense, output.dense),
                strict=True,
            )
        )
        self.norms: dict[str, PackedLayerNorm] = {"middle": attention.output.LayerNorm, "last": output.LayerNorm}
        self._attention_drop: float = own.dropout.p
        self._drops = (attention.output.dropout, output.dropout)
        self.products = self._products()

    def __call__(self, stream: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output from its input, each as the fp32 stream and in the activations' dtype.

        Args:
            stream: [T, H] fp32.
            low: [T, H], the same in the activations' dtype.

        Returns:
            [T, H] twice; of the last layer [S, H], each sequence's first token.
        """
        names, tensors = self._tensors()
        call = self._call()
        out: tuple[Tensor, Tensor] = _LayerNode.apply(self, call, names, stream, low, *tensors)
        return out

    def _products(self) -> dict[str, Product]:
        """By name; q, k and v are one matrix of which the modules' own become views, or q apart in the last layer."""
        weights = {name: linear.weight for name, linear in self.linears.items()}
        joined = torch.cat([weights[name].detach() for name in _QKV])
        for name, part in zip(_QKV, joined.chunk(3), strict=True):
            weights[name].data = part
        hidden = len(weights["query"])
        together = {"query": joined[:hidden], "key_value": joined[hidden:]} if self.last else {"joined": joined}
        frozen = not weights["query"].requires_grad
        apart = {name: weights[name] for name in _LINEARS if name not in _QKV}
        return {name: Product(weight, frozen=frozen) for name, weight in (together | apart).items()}

    def _tensors(self) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """Everything that could get a gradient, by name."""
        named: dict[str, Tensor] = {}
        for name, linear in self.linears.items():
            named[f"{name}.weight"] = linear.weight
            named[f"{name}.bias"] = run_rows(linear.bias, linear.biases, self.context)
            named |= {f"{name}.lora.{index}": factor for index, factor in enumerate(linear.factors())}
        for name, norm in self.norms.items():
            named[f"{name}.weight"] = norm.weight
            named[f"{name}.bias"] = run_rows(norm.bias, norm.biases, self.context)
        return tuple(named), tuple(named.values())

    def _call(self) -> _Call:
        """What this forward pass needs to know; sites are keyed as transformers' modules would key them."""
        context = self.context
        layout = context.layout
        assert layout is not None
        keys = context.keys
        tokens = context.segments
        site = context.site("attention")
        drop = None
        if keys is not None and self._attention_drop > 0:
            drop = Drop(keys.tokens, site, self._attention_drop)
        uses = {name: self.linears[name].uses() for name in ("key", "value")}
        if self.last:
            context.rows = "sequences"
        uses |= {name: linear.uses() for name, linear in self.linears.items() if name not in uses}
        drops = [context.drop(module.path, module.p) for module in self._drops]
        return _Call(layout, context.kernels, tokens, context.segments, drop, (drops[0], drops[1]), uses)


@dataclass(frozen=True, eq=False)
class _Call:
    """One forward pass of one layer.

    Attributes:
        layout: The batch.
        kernels: To work with.
        tokens: The tokens of each run.
        rows: The rows of each run after attention: tokens, or sequences in the last layer.
        attention_drop: Of the attention weights.
        drops: Before the two norms.
        uses: Of each linear layer's LoRA updates.
    """

    layout: Layout
    kernels: Kernels
    tokens: Segments
    rows: Segments
    attention_drop: Drop | None
    drops: tuple[Drop | None, Drop | None]
    uses: dict[str, list[LoraUse]]


class _LayerNode(torch.autograd.Function):
    """The arithmetic of a layer and its derivative."""

    @staticmethod
    def forward(
        ctx: Any, layer: PackedLayer, call: _Call, names: tuple[str, ...], stream: Tensor, low: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        own = dict(zip(names, tensors, strict=True))
        work = _Work(layer, call, own, low.dtype)
        kernels, starts = call.kernels, call.layout.starts
        if layer.last:
            asking, stream = low.index_select(0, starts), stream.index_select(0, starts)
        else:
            asking = low
        q, k, v = work.queries_keys_values(low, asking)
        attended = kernels.attention(work.attention(q, k, v))
        y = work.product("attended", attended)
        middle, middle_low, middle_normed, middle_rstd = work.norm(0, y, stream)
        u = work.product("wide", middle_low)
        active = kernels.gelu(u, own["wide.bias"], call.rows)
        y = work.product("narrow", active)
        out, out_low, normed, rstd = work.norm(1, y, middle)
        keep_active = ctx.needs_input_grad[5 + names.index("narrow.weight")] or bool(call.uses["narrow"])
        # Inputs go through autograd's keeping; what is made here is held directly, and let go of in backward.
        ctx.save_for_backward(low, *tensors)
        ctx.saved = (
            q,
            k,
            v,
            attended,
            middle_low,
            middle_normed,
            middle_rstd,
            u,
            active if keep_active else None,
            normed,
            rstd,
        )
        ctx.work, ctx.names = work, names
        work.own = {}
        return out, out_low

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_low: Tensor | None) -> tuple[Tensor | None, ...]:
        low, *tensors = ctx.saved_tensors
        names, work = ctx.names, ctx.work
        work.own = dict(zip(names, tensors, strict=True))
        work.needs = {name for name, need in zip(names, ctx.needs_input_grad[5:], strict=True) if need}
        q, k, v, attended, middle_low, middle_normed, middle_rstd, u, active, normed, rstd = ctx.saved
        ctx.saved = ctx.work = None
        layer, call, kernels = work.layer, work.call, work.call.kernels
        starts = call.layout.starts

        # Made into that of the residual in place: nothing else holds it, unless it comes from the head.
        grad = grad.clone() if layer.last else grad
        grad, grad_y = work.norm_grad(1, grad, grad_low, normed, rstd)
        grad_u = work.product_grad("narrow", grad_y, active)
        assert grad_u is not None
        grad_u = kernels.gelu_grad_(grad_u, u, work.own["wide.bias"], call.rows)
        grad_middle = work.product_grad("wide", grad_u, middle_low)
        grad, grad_y = work.norm_grad(0, grad, grad_middle, middle_normed, middle_rstd)
        grad_attended = work.product_grad("attended", grad_y, attended)
        assert grad_attended is not None
        below = ctx.needs_input_grad[3]
        asking = low.index_select(0, starts) if layer.last else low
        grad_low = work.queries_keys_values_grad(grad_attended, q, k, v, low, asking, below)
        if not below:
            return (None,) * 5 + tuple(work.grads.get(name) for name in names)
        if layer.last:
            grad = grad.new_zeros(low.shape).index_copy_(0, starts, grad)
        return None, None, None, grad, grad_low, *(work.grads.get(name) for name in names)


class _Work:
    """The pieces of a layer's arithmetic, which know its tensors by name."""

    def __init__(self, layer: PackedLayer, call: _Call, own: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.layer = layer
        self.call = call
        self.own = own
        self.dtype = dtype
        self.needs: set[str] = set()
        self.lows: dict[str, list[Tensor]] = {}
        self.grads: dict[str, Tensor] = {}

    def product(self, name: str, x: Tensor) -> Tensor:
        """Product of x with the weight, plus the runs' LoRA updates; the bias is left to whoever reads the sum."""
        y = self.layer.products[name].forward(x)
        self._add_lora(name, y, x)
        return y

    def product_grad(self, name: str, grad: Tensor, x: Tensor | None) -> Tensor | None:
        """The gradient of x; those of the layer's own tensors are noted. `x` is needed for weights and LoRA."""
        grad_x = self.layer.products[name].backward(grad)
        self._own_grads(name, grad, x, grad_x, self.call.rows)
        return grad_x

    def queries_keys_values(self, low: Tensor, asking: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three projections without their biases: of all tokens, queries of those that ask."""
        products = self.layer.products
        if self.layer.last:
            q = products["query"].forward(asking)
            k, v = products["key_value"].forward(low).chunk(2, 1)
        else:
            q, k, v = products["joined"].forward(low).chunk(3, 1)
        for name, y, x in (("query", q, asking), ("key", k, low), ("value", v, low)):
            self._add_lora(name, y, x)
        return q, k, v

    def queries_keys_values_grad(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, low: Tensor, asking: Tensor, below: bool
    ) -> Tensor | None:
        """The gradient of `low`, if something below wants it; those of the projections' tensors are noted."""
        hidden = low.shape[1]
        products = self.layer.products
        if self.layer.last:
            dq = torch.empty_like(q)
            both = low.new_empty(len(low), 2 * hidden)
            dk, dv = both.chunk(2, 1)
        else:
            both = low.new_empty(len(low), 3 * hidden)
            dq, dk, dv = both.chunk(3, 1)
        self.call.kernels.attention_grad(self.attention(q, k, v), grad, dq, dk, dv)
        grad_low = grad_asking = None
        if below:
            grad_low = products["key_value" if self.layer.last else "joined"].backward(both)
            grad_asking = products["query"].backward(dq) if self.layer.last else grad_low
        if "query.weight" in self.needs and not self.layer.last:
            found = torch.mm(both.t(), low).chunk(3)
            self.grads |= {f"{name}.weight": part for name, part in zip(_QKV, found, strict=True)}
        for name, dy, x, dx, segments in (
            ("query", dq, asking, grad_asking, self.call.rows),
            ("key", dk, low, grad_low, self.call.tokens),
            ("value", dv, low, grad_low, self.call.tokens),
        ):
            self._own_grads(name, dy, x, dx, segments)
        if self.layer.last and grad_low is not None and grad_asking is not None:
            starts = self.call.layout.starts
            grad_low.index_copy_(0, starts, grad_low.index_select(0, starts) + grad_asking)
        return grad_low

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> AttentionCall:
        """The attention over these projections, their biases added."""
        layer, call = self.layer, self.call
        bias = _beside([self.own[f"{name}.bias"] for name in _QKV])
        return AttentionCall(call.layout, layer.heads, q, k, v, bias, layer.scale, call.attention_drop, layer.last)

    def norm(self, index: int, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """LayerNorm(residual + drop(y + bias)); see `Kernels.residual_norm`."""
        name, linear = _NORMS[index], ("attended", "narrow")[index]
        gain, shift = self.own[f"{name}.weight"], self.own[f"{name}.bias"]
        epsilon = self.layer.norms[name].eps
        bias, drop = self.own[f"{linear}.bias"], self.call.drops[index]
        return self.call.kernels.residual_norm(y, bias, residual, self.call.rows, drop, gain, shift, epsilon)

    def norm_grad(
        self, index: int, grad: Tensor, grad_low: Tensor | None, normed: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the residual and of y; those of the norm's own tensors are noted."""
        name = _NORMS[index]
        kernels = self.call.kernels
        if f"{name}.bias" in self.needs or f"{name}.weight" in self.needs:
            shift, gain = kernels.norm_sums(grad, grad_low, normed, self.call.rows)
            self.grads[f"{name}.bias"] = shift
            if f"{name}.weight" in self.needs:
                self.grads[f"{name}.weight"] = gain[0]
        gain = self.own[f"{name}.weight"]
        return kernels.residual_norm_grad(grad, grad_low, normed, rstd, gain, self.call.drops[index], self.dtype)

    def _factors(self, name: str) -> list[Tensor]:
        return [self.own[f"{name}.lora.{index}"] for index in range(2 * len(self.call.uses[name]))]

    def _add_lora(self, name: str, y: Tensor, x: Tensor) -> None:
        uses = self.call.uses[name]
        if uses:
            self.lows[name] = lora_forward(y, x, uses, self._factors(name), self.call.kernels)

    def _own_grads(self, name: str, grad: Tensor, x: Tensor | None, grad_x: Tensor | None, segments: Segments) -> None:
        """Gradients of a linear layer's bias, weight and LoRA factors."""
        if f"{name}.bias" in self.needs:
            self.grads[f"{name}.bias"] = self.call.kernels.segment_sums(grad, segments)
        if f"{name}.weight" in self.needs and f"{name}.weight" not in self.grads:
            assert x is not None
            self.grads[f"{name}.weight"] = torch.mm(grad.t(), x)
        uses = self.call.uses[name]
        if uses:
            assert x is not None
            found = lora_backward(grad, x, self.lows[name], uses, self._factors(name), grad_x, self.call.kernels)
            self.grads |= {f"{name}.lora.{index}": one for index, one in enumerate(found)}


def _beside(biases: list[Tensor]) -> Tensor:
    """[R or 1, 3 H]: biases of some runs or shared by all, side by side."""
    runs = max(len(bias) for bias in biases)
    return torch.cat([bias.expand(runs, -1) for bias in biases], 1)
