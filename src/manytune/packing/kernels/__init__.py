"""The fused work of an encoder layer: one set of functions, compiled for CPUs and in plain torch for any device."""

from manytune.packing.kernels.base import (
    AdamWTensor,
    AdamWUpdate,
    AttentionCall,
    Kernels,
    LoraCall,
    NormCall,
    Segments,
    adamw_settings,
)
from manytune.packing.kernels.build import kernel_problems
from manytune.packing.kernels.select import arithmetic, choose_kernels, kernel_path, problems

__all__ = [
    "AdamWTensor",
    "AdamWUpdate",
    "AttentionCall",
    "Kernels",
    "LoraCall",
    "NormCall",
    "Segments",
    "adamw_settings",
    "arithmetic",
    "choose_kernels",
    "kernel_path",
    "kernel_problems",
    "problems",
]
