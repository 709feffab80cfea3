"""Compile kernels.cpp once for this processor, keep the library in the user's cache, and load it.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from manytune.utils.caches import own_folder, read_entry, user_cache, write_entry
from manytune.utils.errors import ManytuneError, StoreError
from manytune.utils.files import temporary

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_OPTIONAL = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())
"""Flags that not every compiler knows; the first set that works is used."""

_COMPILERS = ("g++", "clang++", "c++")
_CPU_LINES = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part", "isa")
"""What /proc/cpuinfo says of a processor's instructions, on x86, ARM and RISC-V."""

_PROBLEMS: list[str] = []


def load_library(has_all: Callable[[ctypes.CDLL], bool]) -> ctypes.CDLL | None:
    """The library of kernels.cpp, compiled unless the user's cache has it whole.

    Args:
        has_all: Whether a library has every function that is called.

    Returns:
        None where there is no compiler, or no library can be made or loaded; `kernel_problems` says why.
    """
    try:
        # CXX may be several words, such as `ccache g++`.
        compiler = shlex.split(os.environ.get("CXX", "")) or [*filter(None, map(shutil.which, _COMPILERS))][:1]
        return _from_cache(compiler, own_folder(user_cache()), has_all) if compiler else None
    except (ManytuneError, OSError, ValueError) as error:
        _PROBLEMS.append(f"The plain kernels are used, which are slower: {str(error).rstrip('.')}.")
        return None


def kernel_problems() -> list[str]:
    """Why the compiled kernels are not used though there is a compiler; each reason is given once a process."""
    said = _PROBLEMS[:]
    _PROBLEMS.clear()
    return said


def _from_cache(compiler: Sequence[str], folder: Path, has_all: Callable[[ctypes.CDLL], bool]) -> ctypes.CDLL:
    """The library of this source, compiler and processor.

    Its content is compared with the digest in its name before it is loaded: a damaged library would end the process.

    Raises:
        OSError: It cannot be compiled, or not be loaded.
    """
    key = hashlib.sha256(
        "\x1f".join((_SOURCE.read_text(encoding="utf-8"), *_identity(compiler), *_FLAGS, _processor())).encode()
    )
    name = f"kernels-{key.hexdigest()[:16]}"
    if (entry := read_entry(folder, name, ".so")) is not None:
        path, content = entry
        if has_all(library := _load(content, path)):
            return library
        with suppress(OSError):
            path.unlink()
    content = _compile(compiler, folder / name)
    path = folder / name
    with suppress(StoreError):
        path = write_entry(folder, name, content, ".so")
    return _load(content, path)


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
    """The library's content, made in a folder beside a path.

    Raises:
        OSError: The compiler cannot be started or fails, or the folder cannot be written.
    """
    with temporary(path, directory=True) as folder:
        made = folder / "made.so"
        for optional in _OPTIONAL:
            command = [*compiler, *_FLAGS, *optional, str(_SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
            if done.returncode == 0 and made.exists() and (content := made.read_bytes()):
                return content
    said = next(iter(done.stderr.decode(errors="replace").strip().splitlines()), "it does not say why")
    raise OSError(f"the compiler {compiler[0]} fails: {said[:200]}")


def _identity(compiler: Sequence[str]) -> Iterator[str]:
    """The compiler's command, and what changes when another one is installed in its place."""
    yield from compiler
    path = shutil.which(compiler[0])
    if path is not None:
        status = os.stat(path)
        yield f"{status.st_size} {status.st_mtime_ns}"


def _processor() -> str:
    """What differs between processors that need different code: machines may share a home folder, and so its cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    told = {line for line in lines if line.startswith(_CPU_LINES)} or set(lines)
    return "\n".join((platform.machine(), *sorted(told)))
