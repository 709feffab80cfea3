"""An encoder layer of BERT's, RoBERTa's or MPNet's kind for a pack of runs: one autograd node, forward and backward.

    q, k, v  = x W_q + b_q, x W_k + b_k, x W_v + b_v         [T, H] each
    attn_out = attention(q, k, v) W_o + b_o                  [T, H]
    u        = norm1(x + drop(attn_out))                     [T, H]
    y        = norm2(u + drop(gelu(u W_1 + b_1) W_2 + b_2))  [T, H], inside [T, 4 H]

Each product also gets the runs' low-rank updates and scales; `SubLayerEnd` computes u and y where runs train gains or
bottlenecks there. The residuals x, u and y are fp32; products read a copy in the activations' dtype (`hidden`), which
the kernel that makes a residual makes too. What this saves over transformers' own modules: everything between two
products is one kernel, biases are added where their sum is read anyway, q, k and v are one product, the gradients of a
tensor with several uses add up inside a product or kernel, and the last layer computes nothing for tokens that no head
looks at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manytune.models.families import LayerNames
from manytune.packing.context import Context
from manytune.packing.hooks import ModuleHooks
from manytune.packing.kernels import AttentionCall, NormCall, Segments
from manytune.packing.linear import run_rows
from manytune.packing.products import Product
from manytune.packing.sublayer_end import SubLayerEnd
from manytune.packing.updates import Use, scale_runs_, with_tensors

_QKV = ("query", "key", "value")
_LINEARS = (
    *_QKV,
    "attn_out",
    "fc1",
    "fc2",
)  # attn_out: the product behind attention; fc1, fc2: the feed-forward network


def served_kinds(names: LayerNames) -> dict[str, set[str]]:
    """Path in a layer → the kinds of hooks there that a `PackedLayer` applies; others need transformers' modules."""
    linears = {getattr(names, name): {"biases", "low_rank", "output_scales"} for name in _QKV}
    linears |= {getattr(names, name): {*linears[names.query], "input_scales"} for name in ("attn_out", "fc1", "fc2")}
    norms = {names.norm1: {"biases", "gains", "serial"}, names.norm2: {"biases", "gains", "serial"}}
    return linears | norms | {names.dropout1: {"serial"}, names.dropout2: {"serial"}}


class PackedLayer:
    """One layer of the encoder, made of the packed modules of transformers' layer."""

    def __init__(
        self,
        layer: nn.Module,
        names: LayerNames,
        context: Context,
        hooks: Mapping[str, ModuleHooks],
        *,
        heads: int,
        last: bool,
    ) -> None:
        """Take over a `BertLayer`, or one built like it, whose linear layers and norms are packed already.

        `hooks` are those of all modules of the encoder, by path.
        """
        part = layer.get_submodule
        self.context = context
        self.last = last  # whether only each sequence's first token is wanted
        self.heads = heads
        self.linears: dict[str, Any] = {name: part(getattr(names, name)) for name in _LINEARS}  # `PackedLinear`s
        self.scale = (len(self.linears["query"].weight) // heads) ** -0.5
        self.norms: dict[str, Any] = {name: part(getattr(names, name)) for name in ("norm1", "norm2")}
        self.attention_dropout = float(part(names.attention_dropout).p)  # type: ignore[arg-type]
        self.dropouts: dict[str, Any] = {"norm1": part(names.dropout1), "norm2": part(names.dropout2)}
        self.ends = {
            name: SubLayerEnd(hooks[self.dropouts[name].path], norm, context) for name, norm in self.norms.items()
        }
        self.products = self._products()

    def __call__(self, residual: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output from its input `residual` [T, H] fp32 and `hidden`, its copy in the activations' dtype.

        Returns the same two of the output, [T, H] each; of the last layer [S, H], each sequence's first token.
        """
        # Autograd must see every tensor that could get a gradient as an argument of its own.
        tensors: dict[str, Tensor] = {}
        for name, linear in self.linears.items():
            tensors[f"{name}.weight"] = linear.weight
            tensors[f"{name}.bias"] = run_rows(linear.bias, linear.hooks.biases, self.context)
            for kind, scales in (("output", linear.hooks.output_scales), ("input", linear.hooks.input_scales)):
                if scales:
                    tensors[f"{name}.{kind}_scale"] = run_rows(1.0, scales, self.context)
            if linear.hooks.output_scales:
                tensors[f"{name}.bias"] = tensors[f"{name}.bias"] * tensors[f"{name}.output_scale"]
            tensors |= {f"{name}.update.{index}": one for index, one in enumerate(linear.update_tensors())}
        for name, norm in self.norms.items():
            tensors[f"{name}.weight"] = norm.weight
            tensors[f"{name}.bias"] = run_rows(norm.bias, norm.hooks.biases, self.context)
            if self.ends[name].is_needed:
                tensors |= {f"{name}.end.{index}": each for index, each in enumerate(self.ends[name].parameters())}
        if self.context.position_bias is not None:
            tensors["position_bias"] = self.context.position_bias
        arithmetic = _LayerArithmetic(self, tuple(tensors), hidden.dtype)
        out: tuple[Tensor, Tensor] = _LayerNode.apply(arithmetic, residual, hidden, *tensors.values())
        return out

    def _products(self) -> dict[str, Product]:
        """By name. W_q, W_k and W_v become views of one matrix and one product; in the last layer q has its own."""
        weights = {name: linear.weight for name, linear in self.linears.items()}
        joined = torch.cat([weights[name].detach() for name in _QKV])  # [3 H, H]
        for name, part in zip(_QKV, joined.chunk(3), strict=True):
            weights[name].data = part
        width = len(weights["query"])
        together = {"query": joined[:width], "key_value": joined[width:]} if self.last else {"joined": joined}
        frozen = not weights["query"].requires_grad
        apart = {name: weights[name] for name in _LINEARS if name not in _QKV}
        return {
            name: Product(weight, self.context.kernels, frozen=frozen) for name, weight in (together | apart).items()
        }


class _LayerNode(torch.autograd.Function):
    """A layer and its derivative, n rows behind attention: T, or S in the last layer."""

    @staticmethod
    def forward(
        ctx: Any, layer: _LayerArithmetic, residual: Tensor, hidden: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        layer.tensors = dict(zip(layer.names, tensors, strict=True))
        kernels = layer.kernels
        queries = layer.query_rows(hidden)  # [n, H]
        residual = layer.query_rows(residual)  # [n, H]
        q, k, v = layer.project_qkv(hidden, queries)  # [n, H], [T, H], [T, H]
        attn = kernels.attention(layer.attention(q, k, v))  # [n, H]
        attn_out = layer.product("attn_out", attn)  # [n, H]
        u, u_hidden, *end1 = layer.end("norm1", attn_out, layer.tensors["attn_out.bias"], residual)  # [n, H] twice
        fc1 = layer.product("fc1", u_hidden)  # [n, 4 H]
        active = kernels.gelu(fc1, layer.tensors["fc1.bias"], layer.rows)  # [n, 4 H]
        fc2 = layer.product("fc2", active)  # [n, H]
        y, y_hidden, *end2 = layer.end("norm2", fc2, layer.tensors["fc2.bias"], u)  # [n, H] twice
        keep_active = ctx.needs_input_grad[3 + layer.names.index("fc2.weight")] or bool(layer.uses["fc2"])
        keep_active = keep_active or "fc2.input_scale" in layer.tensors
        # Inputs go through autograd's keeping; what is made here is held directly, and let go of in backward.
        ctx.save_for_backward(hidden, *tensors)
        ctx.made = q, k, v, attn, u_hidden, end1, fc1, active if keep_active else None, end2
        ctx.layer = layer
        layer.tensors = {}
        return y, y_hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_hidden: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, *tensors = ctx.saved_tensors
        layer: _LayerArithmetic = ctx.layer
        q, k, v, attn, u_hidden, end1, fc1, active, end2 = ctx.made
        ctx.made = ctx.layer = None
        layer.tensors = dict(zip(layer.names, tensors, strict=True))
        layer.needs = {name for name, need in zip(layer.names, ctx.needs_input_grad[3:], strict=True) if need}
        needs_input_grad = ctx.needs_input_grad[1]
        kernels = layer.kernels

        # The kernels turn it into the residual's in place. Only the last layer's may be held by others, by the head;
        # that of another layer is a sum over the uses of its output, which autograd has just made.
        grad = grad.clone(memory_format=torch.contiguous_format) if layer.last else grad
        grad, grad_fc2 = layer.end_grad("norm2", grad, grad_hidden, *end2)
        grad_fc1 = layer.product_grad("fc2", grad_fc2, active)
        grad_fc1 = kernels.gelu_grad_(grad_fc1, fc1, layer.tensors["fc1.bias"], layer.rows)
        grad_u = layer.product_grad("fc1", grad_fc1, u_hidden)
        grad, grad_attn_out = layer.end_grad("norm1", grad, grad_u, *end1)
        grad_attn = layer.product_grad("attn_out", grad_attn_out, attn)
        grad_hidden = layer.project_qkv_grad(grad_attn, q, k, v, hidden, needs_input_grad)
        grads = tuple(layer.grads.get(name) for name in layer.names)
        if not needs_input_grad:
            return None, None, None, *grads
        if layer.last:
            grad = grad.new_zeros(hidden.shape).index_copy_(0, layer.starts, grad)
        return None, grad, grad_hidden, *grads


class _LayerArithmetic:
    """The pieces of one layer's arithmetic in one forward pass and the backward pass that follows."""

    def __init__(self, layer: PackedLayer, names: tuple[str, ...], dtype: torch.dtype) -> None:
        """Look at the batch of the layer's context; dropout sites are keyed as transformers' modules would key them."""
        context = layer.context
        assert context.layout is not None
        self.layer, self.names, self.dtype = layer, names, dtype  # `names` are those of the layer's tensors
        self.kernels, self.layout = context.kernels, context.layout
        self.last, self.starts = layer.last, context.layout.starts
        self.tensors: dict[str, Tensor] = {}  # by name, while a pass runs
        self.needs: set[str] = set()  # names of the tensors that need a gradient
        self.grads: dict[str, Tensor] = {}  # their gradients, as they are computed
        self.differentiates = torch.is_grad_enabled()
        self.unscaled: dict[str, Tensor] = {}  # outputs of linear layers before they were scaled
        self.tokens = context.segments
        self.attention_drop = context.drop("attention", layer.attention_dropout)
        self.uses: dict[str, list[Use]] = {name: layer.linears[name].uses() for name in ("key", "value")}
        if layer.last:
            context.rows = "sequences"
        self.uses |= {name: linear.uses() for name, linear in layer.linears.items() if name not in self.uses}
        self.drops = {name: context.drop(module.path, module.p) for name, module in layer.dropouts.items()}
        self.rows = context.segments  # behind attention: each run's tokens, or its sequences in the last layer

    def query_rows(self, x: Tensor) -> Tensor:
        """[n, H]: of [T, H], the rows whose output is wanted."""
        return x.index_select(0, self.starts) if self.last else x

    def product(self, name: str, x: Tensor) -> Tensor:
        """[n, out]: x [n, in] times the weight, plus low-rank updates; the bias is left to whoever reads the sum."""
        x = self._scaled_input(name, x)
        y = self.layer.products[name].forward(x)
        self._add_updates(name, y, x)
        self._scale_output_(name, y, self.rows)
        return y

    def product_grad(self, name: str, grad: Tensor, x: Tensor | None) -> Tensor:
        """The gradient of x; those of the layer's own tensors are noted. `x` is needed for weights, updates, scales."""
        if f"{name}.output_scale" in self.tensors or any(use.scales for use in self.uses[name]):
            grad = grad.clone()  # it may be the residual's gradient too
        self._through_output(name, grad, self.rows)
        grad_x = self.layer.products[name].backward(grad)
        self._note_grads(name, grad, None if x is None else self._scaled_input(name, x), grad_x)
        if (factors := self.tensors.get(f"{name}.input_scale")) is not None:
            assert x is not None
            self.grads[f"{name}.input_scale"] = self.kernels.segment_sums(grad_x.float() * x, self.rows)
            scale_runs_(grad_x, factors, self.rows, self.kernels)
        return grad_x

    def project_qkv(self, hidden: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q [n, H], k and v [T, H] without their biases."""
        products = self.layer.products
        if self.last:
            q = products["query"].forward(queries)
            k, v = products["key_value"].forward(hidden).chunk(2, 1)
        else:
            q, k, v = products["joined"].forward(hidden).chunk(3, 1)
        for name, y, x in (("query", q, queries), ("key", k, hidden), ("value", v, hidden)):
            self._add_updates(name, y, x)
            self._scale_output_(name, y, self.rows if name == "query" else self.tokens)
        return q, k, v

    def project_qkv_grad(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, needs_input_grad: bool
    ) -> Tensor | None:
        """The gradient of `hidden`, if it is needed; those of the projections' own tensors are noted."""
        width, products = hidden.shape[1], self.layer.products
        # The gradients of q, k and v lie side by side, so that one product takes them all to the input.
        if self.last:
            dq = torch.empty_like(q)
            joined = hidden.new_empty(len(hidden), 2 * width)
            dk, dv = joined.chunk(2, 1)
        else:
            joined = hidden.new_empty(len(hidden), 3 * width)
            dq, dk, dv = joined.chunk(3, 1)
        of_positions = "position_bias" in self.needs
        by_place = self.kernels.attention_grad(self.attention(q, k, v), grad, dq, dk, dv, of_positions=of_positions)
        if by_place is not None:
            self.grads["position_bias"] = by_place
        for name, own, rows in (("query", dq, self.rows), ("key", dk, self.tokens), ("value", dv, self.tokens)):
            self._through_output(name, own, rows)
        grad_hidden = grad_queries = None
        if needs_input_grad:
            grad_hidden = products["key_value" if self.last else "joined"].backward(joined)
            grad_queries = products["query"].backward(dq) if self.last else grad_hidden
        if "query.weight" in self.needs and not self.last:
            found = self.kernels.weight_grad(joined, hidden).chunk(3)
            self.grads |= {f"{name}.weight": part for name, part in zip(_QKV, found, strict=True)}
        self._note_grads("query", dq, self.query_rows(hidden), grad_queries)
        self._note_grads("key", dk, hidden, grad_hidden)
        self._note_grads("value", dv, hidden, grad_hidden)
        if self.last and grad_hidden is not None and grad_queries is not None:
            grad_hidden.index_copy_(0, self.starts, grad_hidden.index_select(0, self.starts) + grad_queries)
        return grad_hidden

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> AttentionCall:
        """The attention over these projections, their biases [R or 1, 3 H] side by side."""
        biases = [self.tensors[f"{name}.bias"] for name in _QKV]
        runs = max(len(bias) for bias in biases)
        bias = torch.cat([bias.expand(runs, -1) for bias in biases], 1)
        layer = self.layer
        by_place = self.tensors.get("position_bias")
        drop, last = self.attention_drop, self.last
        return AttentionCall(self.layout, layer.heads, q, k, v, bias, layer.scale, drop, last, by_place)

    def norm_call(self, name: str) -> NormCall:
        """One of the two norms, with the dropout before it."""
        gain, shift = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return NormCall(self.rows, self.drops[name], gain, shift, self.layer.norms[name].eps)

    def end(self, name: str, y: Tensor, bias: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        """The output of a sub-layer [n, H] in fp32, the same in the activations' dtype, and what `end_grad` needs."""
        end = self.layer.ends[name]
        if not end.is_needed:
            return self.kernels.residual_norm(y, bias, residual, self.norm_call(name))
        out, kept = end.forward(y, bias, residual, self.drops[name], graph=self.differentiates)
        return out, out.to(self.dtype, copy=True), *kept

    def end_grad(self, name: str, grad: Tensor, grad_hidden: Tensor | None, *kept: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the residual and of y; those of the norm's own tensors, and of bottlenecks, are noted."""
        end = self.layer.ends[name]
        if end.is_needed:
            grad, grad_y, *grads = end.backward(kept, grad, grad_hidden)
            self.grads |= {f"{name}.end.{index}": each for index, each in enumerate(grads)}
            return grad, grad_y
        normed, rstd = kept
        if self.needs & {f"{name}.bias", f"{name}.weight"}:
            shift, gain = self.kernels.norm_sums(grad, grad_hidden, normed, self.rows)
            self.grads[f"{name}.bias"] = shift
            if f"{name}.weight" in self.needs:
                self.grads[f"{name}.weight"] = gain[0]
        return self.kernels.residual_norm_grad(grad, grad_hidden, normed, rstd, self.norm_call(name), self.dtype)

    def _pairs(self, name: str) -> list[tuple[Use, Sequence[Tensor]]]:
        """The uses of a linear layer's updates, each with its tensors."""
        count = sum(use.count for use in self.uses[name])
        return list(with_tensors(self.uses[name], [self.tensors[f"{name}.update.{index}"] for index in range(count)]))

    def _scaled_input(self, name: str, x: Tensor) -> Tensor:
        """X [n, in] times the runs' scales of a linear layer's input, if it has any."""
        factors = self.tensors.get(f"{name}.input_scale")
        return x if factors is None else scale_runs_(x.clone(), factors, self.rows, self.kernels)

    def _scale_output_(self, name: str, y: Tensor, segments: Segments) -> None:
        """Multiply a linear layer's output [n, out] by the runs' scales, if it has any; the bias has been already."""
        if (factors := self.tensors.get(f"{name}.output_scale")) is not None:
            if self.differentiates:
                self.unscaled[name] = y.clone()
            scale_runs_(y, factors, segments, self.kernels)

    def _add_updates(self, name: str, y: Tensor, x: Tensor) -> None:
        for use, own in self._pairs(name):
            use.add_(y, x, own, self.kernels)

    def _through_output(self, name: str, grad: Tensor, segments: Segments) -> None:
        """Note the gradients of a linear layer's bias and output scales; `grad` becomes that of the frozen product."""
        if (factors := self.tensors.get(f"{name}.output_scale")) is not None:
            self.grads[f"{name}.bias"] = self.kernels.segment_sums(grad, segments)
            products = grad.float() * self.unscaled.pop(name)
            self.grads[f"{name}.output_scale"] = self.kernels.segment_sums(products, segments)
            scale_runs_(grad, factors, segments, self.kernels)
        elif f"{name}.bias" in self.needs:
            self.grads[f"{name}.bias"] = self.kernels.segment_sums(grad, segments)
        for use, own in self._pairs(name):
            use.scale_grad_(grad, own, self.kernels)

    def _note_grads(self, name: str, grad: Tensor, x: Tensor | None, grad_x: Tensor | None) -> None:
        """Note the gradients of a linear layer's weight and updates; an update's is added to `grad_x` too."""
        if f"{name}.weight" in self.needs and f"{name}.weight" not in self.grads:
            assert x is not None
            self.grads[f"{name}.weight"] = self.kernels.weight_grad(grad, x)
        found: list[Tensor] = []
        for use, own in self._pairs(name):
            assert x is not None
            found += use.grads(grad, x, own, grad_x, self.kernels)
        self.grads |= {f"{name}.update.{index}": one for index, one in enumerate(found)}
