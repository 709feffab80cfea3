"""Products of many rows with one weight matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from manytune.packing.kernels import Kernels
from manytune.utils.hardware import has_avx512

_ROWS_HINT = 1024
"""The number of rows that a packed layout is chosen for; it serves any number."""


class Product:
    """x W^T and g W for one matrix W.

    A frozen matrix in bf16 on a CPU is kept twice in the layouts that oneDNN wants for the two products, rather
    than laid out again at each call: with MiniLM's shapes this takes products from 400 to 450 GFLOP/s on two cores
    whose ceiling is about 470. Where oneDNN or its packing is not there, the products are torch's own.

    In fp32 with AVX2, products are kernels of ours, which lay out what they read themselves. Without these, on a CPU
    without AVX-512, a frozen matrix is kept transposed too: torch then reads whole rows of it in both products, which
    takes x W^T from 125 to 145 GFLOP/s of 190. oneDNN's layouts gave no more, and need a third copy.
    """

    def __init__(self, weight: Tensor, kernels: Kernels, *, frozen: bool) -> None:
        """Take a matrix [out, in]; unless it is frozen, it may change between products."""
        self.weight = weight.detach()
        self.kernels = kernels
        self._transposed: Tensor | None = None
        self._packed: tuple[Tensor, Tensor] | None = None
        if frozen and _can_pack(weight):
            self._packed = _pack(self.weight), _pack(self.weight.t().contiguous())
        elif frozen and not kernels.multiplies and _reads_rows_faster(weight):
            self._transposed = self.weight.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """X W^T, [n, out], of x [n, in]."""
        if self._packed is not None:
            return _apply(x, self._packed[0])
        if self._transposed is not None:
            return torch.mm(x, self._transposed)
        return self.kernels.product(x, self.weight)

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient of x, g W [n, in], from that of the product [n, out]."""
        if self._packed is not None:
            return _apply(grad, self._packed[1])
        return self.kernels.product_grad(grad, self.weight)


def _reads_rows_faster(weight: Tensor) -> bool:
    """Whether torch multiplies faster by this matrix where it reads whole rows of it."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and not has_avx512()


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN keeps this matrix in a layout of its own."""
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
    return packed


def _apply(x: Tensor, packed: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return y
