"""The fused work of an encoder layer: one set of functions, compiled for CPUs and in plain torch for any device."""

from manytune.packing.kernels.base import AttentionCall, Kernels, LoraCall, Segments, Step, Stepped
from manytune.packing.kernels.choice import choose_kernels, kernel_path
from manytune.packing.kernels.library import kernel_problems

__all__ = [
    "AttentionCall",
    "Kernels",
    "LoraCall",
    "Segments",
    "Step",
    "Stepped",
    "choose_kernels",
    "kernel_path",
    "kernel_problems",
]
