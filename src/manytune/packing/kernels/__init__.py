"""The fused work of an encoder layer: one set of functions, compiled for CPUs and in plain torch for any device."""

from manytune.packing.kernels.base import AttentionCall, Kernels, LoraCall, Segments, Step, Stepped
from manytune.packing.kernels.build import kernel_problems
from manytune.packing.kernels.select import choose_kernels, kernel_path

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
