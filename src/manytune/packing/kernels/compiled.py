"""Kernels in C++, called through ctypes: the library has a plain C interface and shares torch's OpenMP threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from manytune.packing.dropout import Drop
from manytune.packing.kernels.base import AttentionCall, LoraCall, Segments, Step, Stepped
from manytune.packing.kernels.batched_lora import padded_lora, padded_lora_grad
from manytune.packing.kernels.build import load_library

__all__ = ["Compiled", "compiled_library"]

_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "i": ctypes.c_int32,
    "u": ctypes.c_uint32,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}
_SIGNATURES = {
    "attention_forward": "ppli",
    "attention_backward": "pplplppli",
    "residual_norm_forward": "pplppppplfllppppi",
    "residual_norm_backward": "ppppppllpi",
    "norm_sums": "ppppllppi",
    "segment_sums": "plpllpi",
    "gelu_forward": "pplpllpi",
    "gelu_backward": "ppplplli",
    "pad": "plplllppi",
    "unpad_add": "pplllppli",
    "lora_forward": "pplplpi",
    "lora_backward": "pplplpplppi",
    "drop": "ppllpi",
}
"""The arguments of each function of kernels.cpp that has a variant a type; the last is the number of threads."""
_ADAMW = "plplldddddi"


class _Drop(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("channels", ctypes.c_void_p),
        ("site", ctypes.c_uint32),
        ("threshold", ctypes.c_int32),
        ("kept", ctypes.c_float),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v")),
        ("q_ld", ctypes.c_int64),
        ("kv_ld", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("bias_ld", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("starts", "lengths", "runs")),
        ("drop", _Drop),
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "width")),
        ("first_only", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class _Lora(ctypes.Structure):
    _fields_ = (
        ("bounds", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("runs", "in", "out", "rank")),
        *((name, ctypes.c_void_p) for name in ("a", "b", "scale")),
        ("drop", _Drop),
    )


class _Stepped(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("value", "mean", "square", "grad", "low", "rows", "touched")),
        *((name, ctypes.c_int64) for name in ("first", "runs", "size", "width", "found", "grad_low", "decays")),
    )


@cache
def compiled_library() -> ctypes.CDLL | None:
    """The compiled functions, or None where there are none that can be used; `kernel_problems` says why."""
    return load_library(_has_all)


def _has_all(library: ctypes.CDLL) -> bool:
    """Whether it has every function that is called."""
    try:
        Compiled(library)
    except ValueError:
        return False
    return True


def _function(library: ctypes.CDLL, pointer: str, signature: str) -> Callable[..., None]:
    address = ctypes.c_void_p.in_dll(library, pointer).value
    assert address is not None
    return ctypes.CFUNCTYPE(None, *(_TYPES[letter] for letter in signature))(address)


class Compiled:
    """The functions of kernels.cpp; see `Kernels` for what they compute."""

    name = "compiled"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {
            (name, dtype): _function(library, f"{name}_{suffix}", signature)
            for name, signature in _SIGNATURES.items()
            for dtype, suffix in _SUFFIXES.items()
        }
        self._adamw = _function(library, "adamw_pointer", _ADAMW)
        # Up to this rank, LoRA's products are kernels; above it, matrix products proper are faster.
        self._most_rank = ctypes.c_int64.in_dll(library, "lora_most_rank").value

    def attention(self, call: AttentionCall) -> Tensor:
        out = torch.empty(call.q.shape, dtype=call.q.dtype)
        _clear_tail(call, out)
        self._call("attention_forward", call.q.dtype, _attention(call), out, out.stride(0))
        return out

    def attention_grad(self, call: AttentionCall, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        _clear_tail(call, dq, dk, dv)
        self._call(
            "attention_backward",
            call.q.dtype,
            _attention(call),
            grad,
            grad.stride(0),
            dq,
            dq.stride(0),
            dk,
            dv,
            dk.stride(0),
        )

    def residual_norm(
        self,
        y: Tensor,
        bias: Tensor,
        residual: Tensor,
        segments: Segments,
        drop: Drop | None,
        gain: Tensor,
        shift: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, width = y.shape
        normed, out = torch.empty(rows, width), torch.empty(rows, width)
        rstd, low = torch.empty(rows), torch.empty_like(y)
        self._call(
            "residual_norm_forward",
            y.dtype,
            y,
            bias,
            _stride(bias),
            residual,
            segments.runs,
            _drop(drop, width),
            gain,
            shift,
            _stride(shift),
            epsilon,
            rows,
            width,
            normed,
            rstd,
            out,
            low,
        )
        return out, low, normed, rstd

    def residual_norm_grad(
        self,
        grad: Tensor,
        grad_low: Tensor | None,
        normed: Tensor,
        rstd: Tensor,
        gain: Tensor,
        drop: Drop | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        rows, width = grad.shape
        grad_y = torch.empty(rows, width, dtype=dtype)
        self._call(
            "residual_norm_backward",
            dtype,
            grad,
            grad_low,
            normed,
            rstd,
            gain,
            _drop(drop, width),
            rows,
            width,
            grad_y,
        )
        return grad, grad_y

    def norm_sums(
        self, grad: Tensor, grad_low: Tensor | None, normed: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        width = grad.shape[1]
        shift, gain = torch.empty(len(segments), width), torch.empty(len(segments), width)
        dtype = torch.float32 if grad_low is None else grad_low.dtype
        self._call("norm_sums", dtype, grad, grad_low, normed, segments.tensor, len(segments), width, shift, gain)
        return shift, gain

    def segment_sums(self, rows: Tensor, segments: Segments) -> Tensor:
        width = rows.shape[1]
        sums = torch.empty(len(segments), width)
        self._call("segment_sums", rows.dtype, rows, rows.stride(0), segments.tensor, len(segments), width, sums)
        return sums

    def gelu(self, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        out = torch.empty_like(x)
        self._call("gelu_forward", x.dtype, x, bias, _stride(bias), segments.runs, *x.shape, out)
        return out

    def gelu_grad_(self, grad: Tensor, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        self._call("gelu_backward", x.dtype, grad, x, bias, _stride(bias), segments.runs, *x.shape)
        return grad

    def pad(self, x: Tensor, segments: Segments, drop: Drop | None) -> Tensor:
        out = torch.empty(len(segments), segments.longest, x.shape[1], dtype=x.dtype)
        self._call("pad", x.dtype, x, x.stride(0), segments.tensor, *out.shape, _drop(drop, x.shape[1]), out)
        return out

    def unpad_add_(self, y: Tensor, padded: Tensor, segments: Segments, drop: Drop | None) -> None:
        width = y.shape[1]
        self._call(
            "unpad_add",
            y.dtype,
            padded,
            segments.tensor,
            *padded.shape,
            _drop(drop, width),
            y,
            y.stride(0),
        )

    def lora_(self, y: Tensor, call: LoraCall) -> Tensor:
        x, rank = call.x, call.a.shape[2]
        if rank > self._most_rank:
            return padded_lora(self, y, call)
        low = torch.empty(len(x), rank)
        struct, _kept = _lora(call)
        self._call("lora_forward", x.dtype, struct, x, x.stride(0), y, y.stride(0), low)
        return low

    def lora_grad(self, grad: Tensor, low: Tensor, call: LoraCall, grad_x: Tensor | None) -> tuple[Tensor, Tensor]:
        x = call.x
        if call.a.shape[2] > self._most_rank:
            return padded_lora_grad(self, grad, low, call, grad_x)
        grad_a, grad_b = torch.empty(call.a.shape), torch.empty(call.b.shape)
        struct, _kept = _lora(call)
        self._call(
            "lora_backward",
            x.dtype,
            struct,
            x,
            x.stride(0),
            grad,
            grad.stride(0),
            low,
            grad_x,
            0 if grad_x is None else grad_x.stride(0),
            grad_a,
            grad_b,
        )
        return grad_a, grad_b

    def drop(self, x: Tensor, drop: Drop) -> Tensor:
        out = torch.empty_like(x)
        self._call("drop", x.dtype, x, _drop(drop, x.shape[1]), *x.shape, out)
        return out

    def adamw_(self, tensors: Sequence[Stepped], step: Step) -> None:
        structs = (_Stepped * len(tensors))(*map(_stepped, tensors))
        rates = torch.tensor(step.rates, dtype=torch.float64)
        self._adamw(
            ctypes.addressof(structs),
            len(structs),
            rates.data_ptr(),
            len(rates),
            step.number,
            *step.betas,
            step.epsilon,
            step.weight_decay,
            step.max_grad_norm,
            torch.get_num_threads(),
        )

    def _call(self, name: str, dtype: torch.dtype, *arguments: Any) -> None:
        plain = [_plain(x) for x in arguments]
        self._functions[name, dtype](*plain, torch.get_num_threads())


def _plain(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return ctypes.addressof(argument) if isinstance(argument, ctypes.Structure) else argument


def _stride(bias: Tensor) -> int:
    """Floats from one run's bias to the next; 0 where all runs share one."""
    return bias.stride(0) if len(bias) > 1 else 0


def _drop(drop: Drop | None, width: int = 0) -> _Drop:
    """The C struct, for rows of `width` channels; what it points into lives as long as `drop`."""
    if drop is None:
        return _Drop(kept=1.0)
    channels = drop.channels(width).data_ptr() if width else None
    return _Drop(drop.keys.data_ptr(), channels, drop.site & 0xFFFFFFFF, drop.threshold, drop.kept)


def _lora(call: LoraCall) -> tuple[_Lora, tuple[Tensor, ...]]:
    """The C struct, and the tensors that it points into."""
    runs, inputs, rank = call.a.shape
    kept = (call.segments.tensor, call.a.contiguous(), call.b.contiguous(), call.scale.contiguous())
    bounds, *pointers = (tensor.data_ptr() for tensor in kept)
    return _Lora(bounds, runs, inputs, call.b.shape[2], rank, *pointers, _drop(call.drop, inputs)), kept


def _stepped(tensor: Stepped) -> _Stepped:
    """The C struct; what it points into lives as long as `tensor`."""
    grad, size = tensor.grad, tensor.value[0].numel()
    rows, found, width = None, 0, 1
    if grad.is_sparse:
        assert tensor.touched is not None
        rows, found, width = grad.indices().data_ptr(), grad.indices().shape[1], size // tensor.value.shape[1]
        grad = grad.values()
    return _Stepped(
        value=tensor.value.data_ptr(),
        mean=tensor.mean.data_ptr(),
        square=tensor.mean_square.data_ptr(),
        grad=grad.data_ptr(),
        low=None if tensor.low is None else tensor.low.data_ptr(),
        rows=rows,
        touched=None if tensor.touched is None else tensor.touched.data_ptr(),
        first=tensor.first,
        runs=len(tensor.value),
        size=size,
        width=width,
        found=found,
        grad_low=grad.dtype == torch.bfloat16,
        decays=tensor.decays,
    )


def _clear_tail(call: AttentionCall, *made: Tensor) -> None:
    """Rows that are no tokens get zeros; in the last layer q and the output have none of these."""
    for rows in made:
        if len(rows) == call.layout.rows:
            rows[call.layout.tokens :] = 0


def _attention(call: AttentionCall) -> _Attention:
    """The C struct; what it points into lives as long as `call`."""
    layout = call.layout
    return _Attention(
        q=call.q.data_ptr(),
        k=call.k.data_ptr(),
        v=call.v.data_ptr(),
        q_ld=call.q.stride(0),
        kv_ld=call.k.stride(0),
        bias=call.bias.data_ptr(),
        bias_ld=_stride(call.bias),
        starts=layout.starts.data_ptr(),
        lengths=layout.lengths.data_ptr(),
        runs=layout.sequence_run.data_ptr(),
        drop=_drop(call.drop),
        sequences=len(layout.starts),
        heads=call.heads,
        width=call.q.shape[1] // call.heads,
        first_only=call.first_only,
        scale=call.scale,
    )
