"""The machine: the device and precision to use, its description, and how much memory was held."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from manytune.utils.devices import check_device
from manytune.utils.errors import StudyError
from manytune.utils.files import boot_id

_AVAILABLE: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA, a variable of oneDNN, with which its bf16 products are no faster than fp32 ones."""

_NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory"),  # torch's allocators and Triton
    *("_status_alloc_failed", "allocation_failed", "cudaerrormemoryallocation", "cuda_error_out_of_memory"),
    # cuBLAS makes its handle, and with it its memory, at a process's first product.
    "cublas_status_not_initialized when calling `cublascreate",
)
"""What says that an allocation failed, in small letters: texts of torch, and names of CUDA's libraries."""

_LOST_DEVICE = (
    *("device-side assert", "illegal memory access", "misaligned address", "launch failure", "illegal instruction"),
    *("invalid program counter", "hardware stack error", "uncorrectable ecc error", "launch timed out"),
    *("unknown error", "_status_execution_failed"),
)
"""What says that a GPU serves this process no more, in small letters; of errors that speak of CUDA."""

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "datasets")


def choose_device(name: str, option: str = "--device") -> torch.device:
    """The device `auto`, `cpu`, `cuda`, `cuda:1`, … or `mps`; a StudyError about `option` if it is not here."""
    check_device(name, option)
    if name == "auto":
        name = next(device for device, available in _AVAILABLE.items() if available())
    kind, _, number = name.partition(":")
    if not _AVAILABLE[kind]() or (number and int(number) >= torch.cuda.device_count()):
        here = ", ".join(device for device, available in _AVAILABLE.items() if available())
        raise StudyError(f"{option}: {name} is not available on this machine; available are: auto, {here}.")
    return torch.device("cuda:0" if name == "cuda" else name)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the backbone's computations; `auto` is bf16 where `device` multiplies in it faster than in fp32."""
    if precision == "auto" and device.type == "cuda":
        fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif precision == "auto" and device.type == "cpu":
        able = torch.cpu.get_capabilities()
        fast_bf16 = not _onednn_is_limited() and (able.get("avx512_bf16") or able.get("amx_bf16"))
    else:
        fast_bf16 = precision == "bf16"
    return torch.bfloat16 if fast_bf16 else torch.float32


def _onednn_is_limited() -> bool:
    """Whether the user keeps oneDNN, which does the products, from the instructions for bf16, though they are there."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    return limit in _WITHOUT_BF16


def use_exact_products() -> None:
    """Have torch compute products of fp32 in fp32, and add up those of bf16 in fp32, on every device of this process.

    Whatever the environment or the program says: results must not depend on it. TF32 would round what is multiplied to
    10 bits. cuDNN's attention is left out, because it plans anew for every shape of a batch.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # it is stronger than what torch asks for, and read at the first product
    with warnings.catch_warnings(action="ignore"):  # some versions of torch call these names deprecated
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    # The newer names of the same settings, for those who have set them: torch refuses to read a mixture of both.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.fp32_precision = "ieee"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def has_avx512() -> bool:
    """Whether torch computes with AVX-512 here: the processor has it, and ATEN_CPU_CAPABILITY does not forbid it."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def describe(device: torch.device) -> dict[str, Any]:
    """Facts about the machine for provenance; what cannot be found out is None."""
    return {
        "device": device.type,
        **_accelerator(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def gpu_note() -> str | None:
    """What a user of a GPU should know of how far manytune has been tried on one; None where there is none."""
    if not torch.cuda.is_available():
        return None
    return (
        f"GPU: {torch.cuda.get_device_name()}. manytune's kernels have been compared with its CPU kernels on one H100 "
        "and agree; whole studies and speed have not been measured on a GPU (docs/performance.md)."
    )


def _accelerator(device: torch.device) -> dict[str, Any]:
    """The GPU, and what drives it."""
    if device.type != "cuda":
        return {"accelerator": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "accelerator": properties.name,
        "accelerator_memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "triton": _version("triton"),
    }


def accelerator_arithmetic(device: torch.device) -> str | None:
    """What decides how a GPU adds up: "NVIDIA H100 80GB HBM3, CUDA 13.0, triton 3.6.0"; None of other devices."""
    if device.type != "cuda":
        return None
    triton = _version("triton")
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return ", ".join([torch.cuda.get_device_name(device), runtime, *([f"triton {triton}"] if triton else [])])


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that a result depends on."""
    found = {package: _version(package) for package in ("manytune", *_PACKAGES)}
    installed = {package: version for package, version in found.items() if version is not None}
    return {"python": platform.python_version(), **installed}


@cache  # every record holds them, and finding them takes longer than writing one
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the source tree that this package runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[3]  # src/manytune/utils/hardware.py
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a training step frees, for the next step; other C libraries are left as they are.

    By default glibc gives the top of the heap back to the system and takes it again page by page: a step of a pack of
    eight then had 6,700 page faults and took 5 % longer.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_memory() -> None:
    """Have glibc give the freed memory back to the system that `keep_freed_memory` keeps."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken: of the GPU, else of the machine, swap left aside."""
    if device.type == "cuda":
        # What torch keeps serves the next tensor, but for what recorded steps write to when they are taken again.
        segments = [each for each in torch.cuda.memory_snapshot() if each["device"] == (device.index or 0)]
        kept = [each for each in segments if tuple(each["segment_pool_id"]) == (0, 0)]
        spare = sum(each["total_size"] - each["allocated_size"] for each in kept)
        return torch.cuda.mem_get_info(device)[0] + int(spare)
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What torch raises on a CPU is a RuntimeError like any other, and so is what CUDA's libraries report.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def has_lost_device(error: BaseException) -> bool:
    """Whether after this error the GPU refuses whatever this process asks of it, so that only a fresh one can go on."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    speaks_of_cuda = "cuda" in text or "cublas" in text or "cudnn" in text
    return isinstance(error, torch.AcceleratorError) or (
        speaks_of_cuda and any(words in text for words in _LOST_DEVICE)
    )


def let_go_of_memory(device: torch.device) -> None:
    """Free what nothing refers to, also in the GPU's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def oom_kills() -> str | None:
    """How often the system has killed processes of this one's group because memory ran out; None if not known.

    The text begins with the id of the machine's start: counts of different starts cannot be compared.
    """
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    mounts = [(Path("/sys/fs/cgroup", kind), group) for _, kind, group in groups if kind in ("", "memory")]  # v2 and v1
    # In a container, the process's own group may be mounted as the root.
    folders = [folder for root, group in mounts for folder in (root / group.lstrip("/"), root)]
    files = [folder / name for folder in folders for name in ("memory.events", "memory.oom_control")]
    count = next((count for file in files if (count := _figure(file, "oom_kill")) is not None), None)
    boot = boot_id()
    return None if boot is None or count is None else f"{boot} {count}"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


class PeakMemory:
    """The most memory held at once since this was made: of the GPU, else of the process (resident set).

    The process's part that every pack has, such as libraries and the backbone, counts; what was freed before does not.
    Linux lets a process reset its own high-water mark; where it cannot, as on macOS, the figure is None rather than one
    of the whole life of the process, which would be the same for every pack.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._measured = True
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            else:
                give_back_memory()  # else what an earlier pack has freed would count, as `keep_freed_memory` keeps it
                Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._measured = False

    def bytes(self) -> int | None:
        """The figure so far, in bytes."""
        if not self._measured:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        kilobytes = _figure(Path("/proc/self/status"), "VmHWM:")
        return None if kilobytes is None else int(kilobytes) * 1024


def _figure(path: Path, name: str) -> str | None:
    """The number behind a name, in a file with a name and a number on each line."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((word[1] for word in words if word[:1] == [name]), None)


def _driver() -> str | None:
    """The version of the kernel module that drives NVIDIA's GPUs, such as "580.82.07"."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip() or None
    except OSError:
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
