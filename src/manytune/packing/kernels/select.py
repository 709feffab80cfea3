"""Which kernels a pack uses."""

from __future__ import annotations

import os

import torch

from manytune.packing.kernels.base import Kernels
from manytune.packing.kernels.compiled import compiled_kernels
from manytune.packing.kernels.reference import ReferenceKernels


def choose_kernels(device: torch.device) -> Kernels:
    """The compiled kernels on a CPU with a C++ compiler, else the plain ones.

    The environment variable MANYTUNE_KERNELS=plain asks for the plain ones everywhere. The two agree to rounding.
    """
    if device.type == "cpu" and os.environ.get("MANYTUNE_KERNELS", "auto") != "plain":
        return compiled_kernels() or ReferenceKernels()
    return ReferenceKernels()


def kernel_path(device: torch.device) -> str:
    """`compiled` or `plain`: what a pack on this device would use."""
    return choose_kernels(device).name
