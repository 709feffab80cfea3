"""Kernels in C++, called through ctypes: the library has a plain C interface and shares torch's OpenMP threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from manytune.packing.dropout import Drop
from manytune.packing.kernels.base import (
    AdamWTensor,
    AdamWUpdate,
    AttentionCall,
    LoraCall,
    NormCall,
    Segments,
    UnrecordedKernels,
)
from manytune.packing.kernels.batched_lora import padded_lora, padded_lora_grad
from manytune.packing.kernels.build import kernel_target, load_library
from manytune.packing.kernels.signature import AdamWArgs, Kernel, Signature
from manytune.utils.hardware import has_avx512

_ATTENTION = """
    q: T [queries, hidden] strided; k: T [rows, hidden] strided; v: T [rows, hidden] strided;
    bias: f32 [runs|1, 3*hidden]; starts: i64 [sequences]; lengths: i64 [sequences]; run_of: i64 [sequences];
    drop: Drop? [rows]; position_bias: f32? [heads, offsets]"""
_LORA = """
    x: T [rows, inputs] strided; a: f32 [runs, inputs, rank]; b: f32 [runs, rank, outputs]; scale: f32 [runs];
    drop: Drop? [rows, inputs]"""
KERNELS = {
    "attention_forward": f"""{_ATTENTION}; out: T! [queries, hidden] strided;
        scale: float; first_only: int32""",
    "attention_backward": f"""{_ATTENTION}; grad: T [queries, hidden] strided;
        dq: T! [queries, hidden] strided; dk: T! [rows, hidden] strided; dv: T! [rows, hidden] strided;
        position_grad: f32!? [sequences, heads, offsets]; scale: float; first_only: int32""",
    "residual_norm_forward": """
        y: T [rows, width]; bias: f32 [runs|1, width]; residual: f32 [rows, width]; run_of: i64 [rows];
        drop: Drop? [rows, width]; norm_weight: f32 [width]; norm_bias: f32 [runs|1, width];
        normed: f32! [rows, width]; rstd: f32! [rows]; out: f32! [rows, width]; hidden: T! [rows, width];
        epsilon: float""",
    "residual_norm_backward": """
        grad: f32! [rows, width]; grad_hidden: T? [rows, width]; normed: f32 [rows, width]; rstd: f32 [rows];
        norm_weight: f32 [width]; drop: Drop? [rows, width]; grad_y: T! [rows, width]""",
    "norm_sums": """
        grad: f32 [rows, width]; grad_hidden: T? [rows, width]; normed: f32 [rows, width];
        grad_bias: f32! [runs, width]; grad_weight: f32! [runs, width]; bounds: i64 [runs+1]""",
    "segment_sums": "x: T [rows, width] strided; sums: f32! [runs, width]; bounds: i64 [runs+1]",
    "gelu_forward": "x: T [rows, width]; bias: f32 [runs|1, width]; run_of: i64 [rows]; out: T! [rows, width]",
    "gelu_backward": "grad: T! [rows, width]; x: T [rows, width]; bias: f32 [runs|1, width]; run_of: i64 [rows]",
    "pad": """
        x: T [rows, width] strided; drop: Drop? [rows, width]; padded: T! [runs, longest, width];
        bounds: i64 [runs+1]""",
    "unpad_add": """
        padded: T [runs, longest, width]; y: T! [rows, width] strided; drop: Drop? [rows, width];
        bounds: i64 [runs+1]""",
    "lora_forward": f"{_LORA}; y: T! [rows, outputs] strided; xa: f32! [rows, rank]; bounds: i64 [runs+1]",
    "lora_backward": f"""{_LORA}; grad: T [rows, outputs] strided; xa: f32 [rows, rank];
        grad_x: T!? [rows, inputs] strided; grad_a: f32! [runs, inputs, rank]; grad_b: f32! [runs, rank, outputs];
        bounds: i64 [runs+1]""",
    "drop": "x: T [rows, width]; drop: Drop [rows, width]; out: T! [rows, width]",
    "product_forward": "x: f32 [rows, inputs] strided; weight: f32 [outputs, inputs]; y: f32! [rows, outputs]",
    "product_backward": "grad: f32 [rows, outputs] strided; weight: f32 [outputs, inputs]; grad_x: f32! [rows, inputs]",
    "product_weight_grad": """
        grad: f32 [rows, outputs] strided; x: f32 [rows, inputs] strided; grad_weight: f32! [outputs, inputs]""",
    "adamw": "tensors: AdamWArgs [count]; updates: f64 [runs, settings]",
}
"""What each function of kernels.cpp and products.cpp takes; see `signature`."""

_MOMENTS = "exp_avg: f32! [runs, ...]; exp_avg_sq: f32! [runs, ...]"
_DENSE = Signature(
    "adamw",
    f"value: f32! [runs, ...]; {_MOMENTS}; grad: T [runs, ...]; value_bf16: bf16!? [runs, ...]; rates: f64? [runs]",
)
_SPARSE = Signature(
    "adamw",
    """value: f32! [runs, count, width]; exp_avg: f32! [runs, count, width]; exp_avg_sq: f32! [runs, count, width];
    grad: f32 [found, width]; rows: i64 [found]; touched: u8! [count]; rates: f64? [runs]""",
)


class CompiledKernels(UnrecordedKernels):
    """The functions of kernels.cpp and products.cpp; see `Kernels` for what they compute."""

    def __init__(self, library: ctypes.CDLL) -> None:
        target = kernel_target()
        self.name = "compiled" if target == "native" else f"compiled for {target}"
        self.lanes = ctypes.c_int64.in_dll(library, "lanes").value  # fp32 numbers in a vector
        # With AVX2 they are faster than those of torch's libraries; with AVX-512 results are to stay as they were.
        self.multiplies = self.lanes == 8 and not has_avx512()
        self._kernels = {name: Kernel(library, name, text) for name, text in KERNELS.items()}
        # Up to this rank, LoRA's products are kernels; above it, matrix products proper are faster.
        self._max_rank = ctypes.c_int64.in_dll(library, "lora_max_rank").value

    def attention(self, call: AttentionCall) -> Tensor:
        out = torch.empty(call.q.shape, dtype=call.q.dtype)
        _clear_tail(call, out)
        self._attend("attention_forward", call, out)
        return out

    def attention_grad(
        self, call: AttentionCall, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, *, of_positions: bool = False
    ) -> Tensor | None:
        _clear_tail(call, dq, dk, dv)
        by_sequence = None
        if of_positions and call.position_bias is not None:
            by_sequence = torch.zeros(len(call.layout.starts), *call.position_bias.shape)
        self._attend("attention_backward", call, grad, dq, dk, dv, by_sequence)
        return None if by_sequence is None else by_sequence.sum(0)

    def _attend(self, name: str, call: AttentionCall, *rest: Tensor | None) -> None:
        layout = call.layout
        given = (call.q, call.k, call.v, call.bias, layout.starts, layout.lengths, layout.sequence_run, call.drop)
        offsets = 0 if call.position_bias is None else call.position_bias.shape[1]
        sizes = {"runs": layout.runs, "heads": call.heads, "offsets": offsets}
        self._kernels[name](call.q.dtype, *given, call.position_bias, *rest, call.scale, call.first_only, **sizes)

    def residual_norm(
        self, y: Tensor, bias: Tensor, residual: Tensor, norm: NormCall
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normed, out = torch.empty(y.shape), torch.empty(y.shape)
        rstd, hidden = torch.empty(len(y)), torch.empty_like(y)
        segments, made = norm.segments, (normed, rstd, out, hidden)
        given = (y, bias, residual, segments.runs, norm.drop, norm.weight, norm.bias)
        self._kernels["residual_norm_forward"](y.dtype, *given, *made, norm.epsilon, runs=len(segments))
        return out, hidden, normed, rstd

    def residual_norm_grad(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, rstd: Tensor, norm: NormCall, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        grad_y = torch.empty(grad.shape, dtype=dtype)
        given = (grad, grad_hidden, normed, rstd, norm.weight, norm.drop)
        self._kernels["residual_norm_backward"](dtype, *given, grad_y)
        return grad, grad_y

    def norm_sums(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        grad_bias, grad_weight = (torch.empty(len(segments), grad.shape[1]) for _ in range(2))
        dtype = torch.float32 if grad_hidden is None else grad_hidden.dtype
        self._kernels["norm_sums"](dtype, grad, grad_hidden, normed, grad_bias, grad_weight, segments.tensor)
        return grad_bias, grad_weight

    def segment_sums(self, x: Tensor, segments: Segments) -> Tensor:
        sums = torch.empty(len(segments), x.shape[1])
        self._kernels["segment_sums"](x.dtype, x, sums, segments.tensor)
        return sums

    def gelu(self, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        out = torch.empty_like(x)
        self._kernels["gelu_forward"](x.dtype, x, bias, segments.runs, out, runs=len(segments))
        return out

    def gelu_grad_(self, grad: Tensor, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        self._kernels["gelu_backward"](x.dtype, grad, x, bias, segments.runs, runs=len(segments))
        return grad

    def pad(self, x: Tensor, segments: Segments, drop: Drop | None) -> Tensor:
        padded = torch.empty(len(segments), segments.longest, x.shape[1], dtype=x.dtype)
        self._kernels["pad"](x.dtype, x, drop, padded, segments.tensor)
        return padded

    def unpad_add_(self, y: Tensor, padded: Tensor, segments: Segments, drop: Drop | None) -> None:
        self._kernels["unpad_add"](y.dtype, padded, y, drop, segments.tensor)

    def lora_(self, y: Tensor, call: LoraCall) -> Tensor:
        rank = call.a.shape[2]
        if rank > self._max_rank:
            return padded_lora(self, y, call)
        xa = torch.empty(call.segments.bounds[-1], rank)
        self._lora("lora_forward", call, call.segments.of(y), xa)
        return xa

    def lora_grad(self, grad: Tensor, xa: Tensor, call: LoraCall, grad_x: Tensor | None) -> tuple[Tensor, Tensor]:
        if call.a.shape[2] > self._max_rank:
            return padded_lora_grad(self, grad, xa, call, grad_x)
        grad_a, grad_b = torch.empty(call.a.shape), torch.empty(call.b.shape)
        own = call.segments.of
        self._lora("lora_backward", call, own(grad), xa, None if grad_x is None else own(grad_x), grad_a, grad_b)
        return grad_a, grad_b

    def _lora(self, name: str, call: LoraCall, *rest: Tensor | None) -> None:
        call = call.own()
        a, b, scale = call.a.contiguous(), call.b.contiguous(), call.scale.contiguous()
        self._kernels[name](call.x.dtype, call.x, a, b, scale, call.drop, *rest, call.segments.tensor)

    def drop(self, x: Tensor, drop: Drop) -> Tensor:
        out = torch.empty_like(x)
        self._kernels["drop"](x.dtype, x, drop, out)
        return out

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self._multiplies(x):
            return torch.mm(x, weight.t())
        y = torch.empty(len(x), len(weight))
        self._kernels["product_forward"](torch.float32, x, weight, y)
        return y

    def product_grad(self, grad: Tensor, weight: Tensor) -> Tensor:
        if not self._multiplies(grad):
            return torch.mm(grad, weight)
        grad_x = torch.empty(len(grad), weight.shape[1])
        self._kernels["product_backward"](torch.float32, grad, weight, grad_x)
        return grad_x

    def weight_grad(self, grad: Tensor, x: Tensor) -> Tensor:
        if not self._multiplies(grad):
            return torch.mm(grad.t(), x)
        grad_weight = torch.empty(grad.shape[1], x.shape[1])
        self._kernels["product_weight_grad"](torch.float32, grad, x, grad_weight)
        return grad_weight

    def _multiplies(self, x: Tensor) -> bool:
        return self.multiplies and x.dtype == torch.float32

    def adamw_(
        self,
        tensors: Sequence[AdamWTensor],
        updates: Sequence[AdamWUpdate],
        settings: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> None:
        structs = (AdamWArgs * len(tensors))(*map(_adamw_args, tensors))
        rows = [(u.number, u.rate, *u.betas, u.epsilon, u.weight_decay, u.max_grad_norm) for u in updates]
        self._kernels["adamw"](torch.float32, structs, torch.tensor(rows, dtype=torch.float64))


def _adamw_args(tensor: AdamWTensor) -> AdamWArgs:
    """The C struct; what it points into lives as long as `tensor`."""
    grad, state = tensor.grad, (tensor.value, tensor.exp_avg, tensor.exp_avg_sq)
    if grad.is_sparse:
        assert tensor.value_bf16 is None
        indexed = (*state, grad.values(), grad.indices()[0], tensor.touched, tensor.rates)
        *pointers, rows, touched, rates, runs, count, width, found = _SPARSE.c_values(torch.float32, indexed, {})
        sizes = (runs, count * width, width, found)
        return AdamWArgs(*pointers, None, rows, touched, rates, tensor.first, *sizes, 0, tensor.decays)
    is_bf16 = grad.dtype is torch.bfloat16
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    *pointers, rates, runs = _DENSE.c_values(dtype, (*state, grad, tensor.value_bf16, tensor.rates), {})
    size = tensor.value.numel() // runs
    return AdamWArgs(*pointers, None, None, rates, tensor.first, runs, size, 1, 0, is_bf16, tensor.decays)


def _clear_tail(call: AttentionCall, *made: Tensor) -> None:
    """Zero the rows that are no tokens; in the last layer q and the output have none of these."""
    for rows in made:
        if rows.shape[0] == call.layout.rows:
            rows[call.layout.tokens :] = 0


@cache
def compiled_kernels() -> CompiledKernels | None:
    """The compiled kernels, or None where there are none that can be used; `kernel_problems` says why."""
    return load_library(CompiledKernels)
