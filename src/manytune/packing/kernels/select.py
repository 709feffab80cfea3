"""Which kernels a pack uses."""

from __future__ import annotations

import os
from functools import cache

import torch

from manytune.packing.dropout import Drop
from manytune.packing.kernels.base import Kernels
from manytune.packing.kernels.build import kernel_problems
from manytune.packing.kernels.compiled import compiled_kernels
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.utils.hardware import has_avx512
from manytune.utils.text import shortened


def choose_kernels(device: torch.device) -> Kernels:
    """The compiled kernels on a CPU with a C++ compiler, Triton's on a GPU of NVIDIA, else the plain ones.

    The environment variable MANYTUNE_KERNELS=plain asks for the plain ones everywhere, `triton` for Triton's on a CPU
    too (where TRITON_INTERPRET=1 has to be set), and MANYTUNE_KERNEL_TARGET for compiled ones of another width than the
    processor's own (`build.kernel_target`). All agree to rounding.
    """
    wanted = os.environ.get("MANYTUNE_KERNELS", "auto")
    on_gpu = device.type == "cuda" and wanted != "plain" and triton_problem(device) is None
    if on_gpu or wanted == "triton":
        from manytune.packing.kernels.triton import TritonKernels  # takes a while, and is not there everywhere

        return TritonKernels()
    if device.type == "cpu" and wanted != "plain":
        return compiled_kernels() or ReferenceKernels()
    return ReferenceKernels()


@cache
def triton_problem(device: torch.device) -> str | None:
    """Why Triton's kernels cannot be used on a GPU, seen by one small launch; None where they can."""
    try:
        from manytune.packing.kernels.triton import TritonKernels

        keys = torch.zeros(1, dtype=torch.int32, device=device)
        TritonKernels().drop(torch.ones(1, 16, device=device), Drop(keys, 1, 0.5))
        torch.cuda.synchronize(device)
    except Exception as error:  # no package, no C compiler, no headers of Python, or a GPU that Triton does not know
        return (
            f"Triton's kernels cannot be used on this GPU ({type(error).__name__}: {shortened(str(error))}), so plain "
            "operations of torch are, which take several times as long. Triton comes with torch's builds for CUDA, and "
            "needs a C compiler and Python's headers (on Debian: apt install gcc python3-dev)."
        )
    return None


def problems(device: torch.device) -> list[str]:
    """What keeps a pack on this device from the kernels that it could have, and how to mend it."""
    if device.type != "cuda" or os.environ.get("MANYTUNE_KERNELS") == "plain":
        return kernel_problems()
    return [problem] if (problem := triton_problem(device)) else []


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
