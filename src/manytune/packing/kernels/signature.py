"""Calls of compiled kernels, each checked against a signature before C reads a pointer.

C knows neither the shape nor the type behind a pointer, so a wrong call would corrupt memory or compute nonsense. A
signature states what a kernel takes, in the order of its C parameters:

    x: T [rows, width] strided; bias: f32 [runs|1, width]; drop: Drop [rows, width]; out: T! [rows, width]; eps: float

    T                       the dtype of activations, fp32 or bf16: the kernel has a variant for each
    f32!, f32?              the kernel writes it; it may be None
    [rows, width]           the shape, contiguous; a name stands for one size throughout the signature
    [runs+1], [3*hidden]    computed from a size
    [runs|1, width]         one row for each run, or one that all runs share
    [runs, ...]             further dimensions, the same ones wherever this is written
    strided                 the rows may lie further apart than they are long
    Drop [rows, width]      keyed dropout of rows; without a width, of attention weights
    AdamWArgs [count]       an array of structs
    float, double, int32, int64   numbers, after everything else

The C function's parameters are: every pointer, followed by its row stride (`x_ld`, in elements; 0 for a shared row)
where it is strided or may be shared; every size, in the order of first use; the numbers; the number of threads.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

_DTYPES: dict[str, Any] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
_NUMBERS: dict[str, Any] = {
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
}
_ARGUMENT = re.compile(r"(\w+): (\w+)([!?]*)(?: \[([^]]+)\])?( strided)?")
_DIM = re.compile(r"(?:(\d)\*)?(\w+)(?:\+(\d))?(\|1)?")


class DropArgs(ctypes.Structure):
    """`DropArgs` of kernels.cpp."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("channels", ctypes.c_void_p),
        ("site", ctypes.c_uint32),
        ("threshold", ctypes.c_int32),
        ("kept", ctypes.c_float),
    )


class AdamWArgs(ctypes.Structure):
    """`AdamWArgs` of kernels.cpp."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("exp_avg", ctypes.c_void_p),
        ("exp_avg_sq", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("value_bf16", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("touched", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("runs", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("found", ctypes.c_int64),
        ("grad_is_bf16", ctypes.c_int64),
        ("decays", ctypes.c_int64),
    )


_NO_DROP = ctypes.byref(DropArgs(kept=1.0))


class Dim(NamedTuple):
    """A length of factor * size + offset; or 1, if `or_one`."""

    size: str
    factor: int
    offset: int
    or_one: bool

    @property
    def plain(self) -> bool:
        """Whether the length is the size itself."""
        return self[1:] == (1, 0, False)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A parameter of a signature that C gets as a pointer.

    Attributes:
        name: As in C.
        kind: A key of `_DTYPES`, `T`, or the name of a struct.
        dtype: Of a tensor; None for `T`.
        written: Whether the kernel writes it.
        optional: Whether it may be None.
        strided: Whether its rows may lie further apart than they are long.
        has_stride: Whether its row stride is passed too.
        dims: The first one alone of a shape that ends with `...`.
        expected: Gives the shape, from the sizes by name, where earlier arguments have them all.
        text: All that the signature says of it.
    """

    name: str
    kind: str
    dtype: torch.dtype | None
    written: bool
    optional: bool
    strided: bool
    has_stride: bool
    dims: tuple[Dim, ...]
    expected: Callable[[dict[str, Any]], Any] | None
    text: str


class Signature:
    """What a kernel takes.

    Attributes:
        name: The kernel's.
        pointers: In order.
        sizes: Names of sizes, in the order of their first use.
        numbers: Name and ctypes type of each.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.numbers: list[tuple[str, Any]] = []
        self.pointers: list[Pointer] = []
        known: set[str] = set()
        for argument in (" ".join(part.split()) for part in text.split(";")):
            match = _ARGUMENT.fullmatch(argument)
            assert match is not None, argument
            own, kind, marks, shape, strided = match.groups()
            if kind in _NUMBERS:
                self.numbers.append((own, _NUMBERS[kind]))
                continue
            dims = tuple(
                Dim(size, int(factor or 1), int(offset or 0), bool(or_one))
                for factor, size, offset, or_one in _DIM.findall(shape)
            )
            sizes = ["..."] if "..." in shape else [dim.size for dim in dims]
            # Most tensors have a shape that earlier ones determine: it is compared as a whole, which is quicker.
            determined = (
                known.issuperset(sizes) and all(dim.plain for dim in dims) and (len(dims) > 1 or "..." in sizes)
            )
            self.pointers.append(
                Pointer(
                    own,
                    kind,
                    _DTYPES.get(kind),
                    written="!" in marks,
                    optional="?" in marks,
                    strided=bool(strided),
                    has_stride=bool(strided) or dims[0].or_one,
                    dims=dims,
                    expected=itemgetter(*sizes) if determined else None,
                    text=argument,
                )
            )
            known.update(sizes)
        self.sizes = tuple(dict.fromkeys(dim.size for pointer in self.pointers for dim in pointer.dims))

    def parameters(self) -> list[tuple[str, Any]]:
        """Name and ctypes type of each parameter of the C function."""
        found: list[tuple[str, Any]] = []
        for pointer in self.pointers:
            found.append((pointer.name, ctypes.c_void_p))
            if pointer.has_stride:
                found.append((f"{pointer.name}_ld", ctypes.c_int64))
        return [*found, *((size, ctypes.c_int64) for size in self.sizes), *self.numbers, ("threads", ctypes.c_int32)]

    def c_values(self, dtype: torch.dtype, given: Sequence[Any], sizes: dict[str, Any]) -> list[Any]:
        """What C gets for each parameter but the last.

        Args:
            dtype: Of activations.
            given: A tensor, `Drop`, array of structs or None for each pointer; then the numbers.
            sizes: Those that no tensor has for certain, by name; completed.

        Raises:
            ValueError: An argument does not fit.
        """
        values: list[Any] = []
        for pointer, x in zip(self.pointers, given, strict=False):
            if x is None or (pointer.dtype is None and pointer.kind != "T"):
                values += self._no_tensor(pointer, x, dtype, sizes)
                continue
            if x.dtype is not (pointer.dtype or dtype) or not x.is_cpu:
                self._refuse(pointer, x, dtype, sizes)
            if pointer.expected is None:
                self._enter_sizes(pointer, x, dtype, sizes)
            elif x.shape != pointer.expected(sizes):
                self._refuse(pointer, x, dtype, sizes)
            values.append(x.data_ptr())
            if pointer.strided:
                distance, step = x.stride()
                if step != 1 or (distance < x.shape[1] and x.shape[0] > 1):
                    self._refuse(pointer, x, dtype, sizes)
                values.append(distance)
            elif not x.is_contiguous():
                self._refuse(pointer, x, dtype, sizes)
            elif pointer.has_stride:
                values.append(0 if x.shape[0] == 1 else x.shape[1])
        values += [sizes[size] for size in self.sizes]
        values += given[len(self.pointers) :]
        return values

    def _enter_sizes(self, pointer: Pointer, x: Tensor, dtype: torch.dtype, sizes: dict[str, Any]) -> None:
        """Check a shape length by length, and enter the sizes that this tensor is the first to have."""
        shape = x.shape
        if pointer.text.endswith("...]"):
            sizes["..."] = shape
            shape = shape[:1]
        if len(shape) != len(pointer.dims):
            self._refuse(pointer, x, dtype, sizes)
        for (size, factor, offset, or_one), length in zip(pointer.dims, shape, strict=True):
            if sizes.setdefault(size, length) * factor + offset != length and not (or_one and length == 1):
                self._refuse(pointer, x, dtype, sizes)

    def _no_tensor(self, pointer: Pointer, x: Any, dtype: torch.dtype, sizes: dict[str, Any]) -> tuple[Any, ...]:
        """What C gets for None, a `Drop` or an array of structs."""
        if pointer.kind == "AdamWArgs":
            sizes[pointer.dims[0].size] = len(x)
            return (ctypes.byref(x),)
        if x is None:
            if not pointer.optional:
                self._refuse(pointer, x, dtype, sizes)
            if pointer.kind == "Drop":
                return (_NO_DROP,)
            return (None, 0) if pointer.has_stride else (None,)
        keys, rows, *width = x.keys, *(sizes[dim.size] for dim in pointer.dims)
        if keys.dtype is not torch.int32 or not keys.is_cpu or keys.shape != (rows,) or not keys.is_contiguous():
            self._refuse(pointer, keys, dtype, sizes)
        # What the struct points to lives as long as `x`.
        channels = x.channels(*width).data_ptr() if width else None
        return (ctypes.byref(DropArgs(keys.data_ptr(), channels, x.site & 0xFFFFFFFF, x.threshold, x.kept)),)

    def _refuse(self, pointer: Pointer, found: Any, dtype: torch.dtype, sizes: Mapping[str, Any]) -> NoReturn:
        given = repr(found)
        if isinstance(found, Tensor):
            strides = list(found.stride()) if found.layout is torch.strided else found.layout
            given = f"{found.dtype} {list(found.shape)} with strides {strides} on {found.device}"
        known = ", ".join(f"{name} = {size}" for name, size in {"T": dtype, **sizes}.items())
        raise ValueError(
            f"kernel {self.name}, argument {pointer.name}: got {given}; wanted `{pointer.text}` on cpu, where {known}"
        )


class Kernel:
    """A compiled kernel, which is called with checked arguments."""

    def __init__(self, library: ctypes.CDLL, name: str, text: str) -> None:
        """Look it up.

        Raises:
            ValueError: The library does not have it.
        """
        self.signature = Signature(name, text)
        prototype = ctypes.CFUNCTYPE(ctypes.c_char_p, *(kind for _, kind in self.signature.parameters()))
        of_activations = any(pointer.kind == "T" for pointer in self.signature.pointers)
        self._variants: dict[torch.dtype, Any] = {}
        for suffix in ("f32", "bf16") if of_activations else ("f32",):
            address = ctypes.c_void_p.in_dll(library, f"{name}_{suffix}").value
            assert address is not None
            self._variants[_DTYPES[suffix]] = prototype(address)

    def __call__(self, dtype: torch.dtype, *arguments: Any, **sizes: int) -> None:
        """Call the variant for activations of a dtype; see `Signature.c_values`.

        Raises:
            ValueError: There is no such variant, an argument does not fit, or a value in one is out of range. No
                pointer was used then, and nothing was written.
        """
        variant = self._variants.get(dtype)
        if variant is None:
            raise ValueError(f"kernel {self.signature.name} has no variant for {dtype}")
        fault = variant(*self.signature.c_values(dtype, arguments, sizes), torch.get_num_threads())
        if fault is not None:
            raise ValueError(f"kernel {self.signature.name}, argument {fault.decode()}: a value is out of range")
