"""Which kernels a pack uses."""

from __future__ import annotations

import os

import torch

from manytune.packing.kernels.base import Kernels
from manytune.packing.kernels.compiled import compiled_kernels
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.utils.hardware import has_avx512


def choose_kernels(device: torch.device) -> Kernels:
    """The compiled kernels on a CPU with a C++ compiler, else the plain ones.

    The environment variable MANYTUNE_KERNELS=plain asks for the plain ones everywhere, and MANYTUNE_KERNEL_TARGET for
    compiled ones of another width than the processor's own (`build.kernel_target`). All agree to rounding.
    """
    if device.type == "cpu" and os.environ.get("MANYTUNE_KERNELS", "auto") != "plain":
        return compiled_kernels() or ReferenceKernels()
    return ReferenceKernels()


def arithmetic(device: torch.device, dtype: torch.dtype) -> str:
    """What decides, beside the kernels' source, how a pack on this device adds up: "bfloat16, 16 lanes".

    Two packs of one arithmetic come to the same bits. On a CPU it names the numbers in a vector of compiled kernels,
    and of products in fp32 whether they are kernels, have AVX-512, or read transposed copies (`packing.products`).
    """
    kernels = choose_kernels(device)
    parts = [str(dtype).removeprefix("torch."), *([f"{kernels.lanes} lanes"] if kernels.lanes else [])]
    if device.type == "cpu" and dtype == torch.float32:
        parts.append("own products" if kernels.multiplies else "AVX-512" if has_avx512() else "no AVX-512")
    return ", ".join(parts)


def kernel_path(device: torch.device) -> str:
    """`compiled`, `compiled for x86-64-v3` or the like, or `plain`: what a pack on this device would use."""
    return choose_kernels(device).name
