"""Compile kernels.cpp and products.cpp once for this processor, keep the library in the user's cache, and load it.

Compiling takes a few seconds, loading milliseconds. Neither torch's headers nor its build tools are needed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from manytune.utils.caches import own_folder, read_entry, user_cache, write_entry
from manytune.utils.errors import ManytuneError, StoreError, StudyError
from manytune.utils.files import temporary
from manytune.utils.text import listed

_SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "products.cpp")]
_HEADER = Path(__file__).with_name("vectors.h")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_OPTIONAL = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())
"""Flags that not every compiler knows; the first set that works is used."""

_TARGETS = {
    "x86-64-v2": ("ssse3", "sse4_1", "sse4_2", "popcnt"),
    "x86-64-v3": ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt"),
    "x86-64-v4": ("avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl"),
}
"""What MANYTUNE_KERNEL_TARGET may name beside `native`: levels of x86-64, with vectors of 4, 8 and 16 fp32 lanes. Each
needs what those before it need and these instructions, as torch names them."""

_COMPILERS = ("g++", "clang++", "c++")
_CPU_LINES = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part", "isa")
"""What /proc/cpuinfo says of a processor's instructions, on x86, ARM and RISC-V."""

_PROBLEMS: list[str] = []

Used = TypeVar("Used")


def load_library(use: Callable[[ctypes.CDLL], Used]) -> Used | None:
    """What `use` makes of the library of these sources, which is compiled unless the user's cache has it whole.

    `use` raises a ValueError where the library lacks a function. None where there is no compiler, or no library can be
    made or loaded; `kernel_problems` says why.

    Raises:
        StudyError: MANYTUNE_KERNEL_TARGET names what is unknown, or what this processor cannot run.
    """
    target = kernel_target()
    try:
        # CXX may be several words, such as `ccache g++`.
        compiler = shlex.split(os.environ.get("CXX", "")) or [*filter(None, map(shutil.which, _COMPILERS))][:1]
        return _from_cache(compiler, target, own_folder(user_cache()), use) if compiler else None
    except (ManytuneError, OSError, ValueError) as error:
        _PROBLEMS.append(f"The plain kernels are used, which are slower: {str(error).rstrip('.')}.")
        return None


def kernel_problems() -> list[str]:
    """Why the compiled kernels are not used though there is a compiler; each reason is given once a process."""
    problems = _PROBLEMS[:]
    _PROBLEMS.clear()
    return problems


def kernel_target() -> str:
    """What the kernels are compiled for: this very processor, or the level that MANYTUNE_KERNEL_TARGET names.

    Raises:
        StudyError: It names what is unknown, or what this processor cannot run.
    """
    target = os.environ.get("MANYTUNE_KERNEL_TARGET") or "native"
    if target == "native":
        return target
    able = torch.cpu.get_capabilities()
    known = _TARGETS if able.get("architecture") == "x86_64" else {}
    usable, lacking = ["native"], list[str]()
    for level, needed in known.items():
        lacking += [name for name in needed if not able.get(name)]
        if not lacking:
            usable.append(level)
        if level == target and lacking:
            break
    if target in usable:
        return target
    reason = f"this processor lacks {listed(lacking)}" if target in known else "there is no such target here"
    raise StudyError(
        f"MANYTUNE_KERNEL_TARGET={target}: {reason}. Allowed are: {listed(usable)}; without the variable it is native."
    )


def _from_cache(compiler: Sequence[str], target: str, folder: Path, use: Callable[[ctypes.CDLL], Used]) -> Used:
    """What `use` makes of the library of this source, compiler, target and processor.

    Its content is compared with the digest in its name before it is loaded: a damaged library would end the process.

    Raises:
        OSError: It cannot be compiled, or not be loaded.
        ValueError: It lacks a function though it was just compiled.
    """
    executable = shutil.which(compiler[0])
    status = os.stat(executable) if executable else None  # changes when another compiler is installed in its place
    installed = [] if status is None else [f"{status.st_size} {status.st_mtime_ns}"]
    sources = [path.read_text(encoding="utf-8") for path in (_HEADER, *_SOURCES)]
    parts = (*sources, *compiler, *installed, *_FLAGS, target, _processor())
    key = hashlib.sha256("\x1f".join(parts).encode())
    name = f"kernels-{key.hexdigest()[:16]}"
    if (entry := read_entry(folder, name, ".so")) is not None:
        path, content = entry
        try:
            return use(_load(content, path))
        except ValueError:
            with suppress(OSError):
                path.unlink()
    content = _compile([*compiler, f"-march={target}"], folder / name)
    path = folder / name
    with suppress(StoreError):
        path = write_entry(folder, name, content, ".so")
    return use(_load(content, path))


def _load(content: bytes, path: Path) -> ctypes.CDLL:
    """Load a library from a copy in memory, where the system has memory files.

    Whoever truncates or replaces the file then ends no process that runs it; and its file system may be noexec.
    """
    try:
        handle = os.memfd_create("manytune-kernels")  # left open: a second library must not get this one's name
        with open(handle, "wb", closefd=False) as file:
            file.write(content)
        return ctypes.CDLL(f"/proc/self/fd/{handle}")
    except (AttributeError, OSError):
        return ctypes.CDLL(str(path))


def _compile(compiler: Sequence[str], path: Path) -> bytes:
    """The library's content, made in a folder beside a path; raises an OSError where the compiler or writing fails."""
    with temporary(path, directory=True) as folder:
        made = folder / "made.so"
        for optional in _OPTIONAL:
            command = [*compiler, *_FLAGS, *optional, *map(str, _SOURCES), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
            if done.returncode == 0 and made.exists() and (content := made.read_bytes()):
                return content
    reason = next(iter(done.stderr.decode(errors="replace").strip().splitlines()), "it does not say why")
    raise OSError(f"the compiler {compiler[0]} fails: {reason[:200]}")


def _processor() -> str:
    """What differs between processors that need different code: machines may share a home folder, and so its cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    relevant = {line for line in lines if line.startswith(_CPU_LINES)} or set(lines)
    return "\n".join((platform.machine(), *sorted(relevant)))
