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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from manytune.packing.dropout import Drop, channel_keys, threshold_of

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

    _pointers = ("value", "exp_avg", "exp_avg_sq", "grad", "value_bf16", "rows", "touched", "rates")
    _numbers = ("first", "runs", "size", "width", "found", "grad_is_bf16", "decays")
    _fields_ = (*((name, ctypes.c_void_p) for name in _pointers), *((name, ctypes.c_int64) for name in _numbers))


_NO_DROP = ctypes.byref(DropArgs(kept=1.0))


class Dim(NamedTuple):
    """A length of factor * size + offset; or 1, if `or_one`."""

    size: str
    factor: int
    offset: int
    or_one: bool


@dataclass(frozen=True, slots=True)
class Pointer:
    """A parameter of a signature that C gets as a pointer."""

    name: str  # as in C
    kind: str  # a key of `_DTYPES`, `T`, or the name of a struct
    dtype: torch.dtype | None  # of a tensor or of the keys of a `Drop`; None for `T`
    is_tensor: bool  # rather than a struct
    written: bool  # whether the kernel writes it
    optional: bool  # whether it may be None
    strided: bool  # whether its rows may lie further apart than they are long
    has_stride: bool  # whether its row stride is passed too
    dims: tuple[Dim, ...]  # the first one alone of a shape that ends with `...`
    text: str  # all that the signature says of it


class CallCheck(NamedTuple):
    """What a check finds."""

    misfit: int | None  # the index of the first pointer that does not fit
    sizes: dict[str, Any]  # by name, as far as they were known then
    # For each parameter of C up to the numbers; an address is None, or the keys of the channels that dropout hashes.
    values: list[Any]


class Signature:
    """What a kernel takes: its pointers, sizes and numbers."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.numbers: list[tuple[str, Any]] = []  # name and ctypes type of each
        self.pointers: list[Pointer] = []
        for argument in (" ".join(part.split()) for part in text.split(";")):
            match = _ARGUMENT.fullmatch(argument)
            assert match is not None, argument
            parameter, kind, marks, shape, strided = match.groups()
            if kind in _NUMBERS:
                self.numbers.append((parameter, _NUMBERS[kind]))
                continue
            dims = tuple(
                Dim(size, int(factor or 1), int(offset or 0), bool(or_one))
                for factor, size, offset, or_one in _DIM.findall(shape)
            )
            self.pointers.append(
                Pointer(
                    parameter,
                    kind,
                    torch.int32 if kind == "Drop" else _DTYPES.get(kind),
                    is_tensor=kind == "T" or kind in _DTYPES,
                    written="!" in marks,
                    optional="?" in marks,
                    strided=bool(strided),
                    has_stride=bool(strided) or dims[0].or_one,
                    dims=dims,
                    text=argument,
                )
            )
        # In the order of their first use.
        self.sizes = tuple(dict.fromkeys(dim.size for pointer in self.pointers for dim in pointer.dims))
        # Where each pointer stands among C's parameters.
        self._positions = [0, *accumulate(1 + pointer.has_stride for pointer in self.pointers)][:-1]
        # A model's layers make the same calls but for the addresses. Checking each form of call once takes a third off
        # the time of a call: most calls of a step were seen before.
        self._checked = lru_cache(maxsize=256)(self._check)

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

        `given` has a tensor, `Drop`, array of structs or None for each pointer, then the numbers; `sizes` those that no
        tensor has for certain, by name.

        Raises:
            ValueError: An argument does not fit.
        """
        pointers = given[: len(self.pointers)]
        check = self._checked(dtype, tuple(map(_form, self.pointers, pointers)), **sizes)
        if check.misfit is not None:
            self._refuse(self.pointers[check.misfit], pointers[check.misfit], dtype, check.sizes)
        values = [*check.values, *given[len(pointers) :]]
        for pointer, position, x in zip(self.pointers, self._positions, pointers, strict=True):
            if x is not None:
                values[position] = x.data_ptr() if pointer.is_tensor else _struct(x, values[position])
        return values

    def _check(self, dtype: torch.dtype, forms: Sequence[Any], **sizes: Any) -> CallCheck:
        """Whether arguments of these forms fit, for activations of a dtype and with the given sizes."""
        values: list[Any] = []
        for index, (pointer, form) in enumerate(zip(self.pointers, forms, strict=True)):
            if not _fits(pointer, form, dtype, sizes):
                return CallCheck(index, sizes, [])
            value = None
            if pointer.kind == "Drop":
                width = [sizes[dim.size] for dim in pointer.dims[1:]]
                value = _NO_DROP if form is None else channel_keys(*width, torch.device("cpu")) if width else None
            values.append(value)
            if pointer.has_stride:
                values.append(0 if form is None else _row_stride(pointer, form))
        return CallCheck(None, sizes, [*values, *(sizes[size] for size in self.sizes)])

    def _refuse(self, pointer: Pointer, found: Any, dtype: torch.dtype, sizes: dict[str, Any]) -> NoReturn:
        found = found.keys if isinstance(found, Drop) else found
        given = repr(found)
        if isinstance(found, Tensor):
            strides = list(found.stride()) if found.layout is torch.strided else found.layout
            given = f"{found.dtype} {list(found.shape)} with strides {strides} on {found.device}"
        known = ", ".join(f"{name} = {size}" for name, size in {"T": dtype, **sizes}.items())
        raise ValueError(
            f"kernel {self.name}, argument {pointer.name}: got {given}; wanted `{pointer.text}` on cpu, where {known}"
        )


def _form(pointer: Pointer, x: Any) -> Any:
    """What a check looks at: None, the length of an array, or a tensor's dtype, device, shape and layout."""
    if x is None:
        return None
    if not pointer.is_tensor:
        if pointer.kind == "AdamWArgs":
            return len(x)
        x = x.keys
    return x.dtype, x.is_cpu, tuple(x.shape), x.stride() if pointer.strided else x.is_contiguous()


def _fits(pointer: Pointer, form: Any, dtype: torch.dtype, sizes: dict[str, Any]) -> bool:
    """Whether an argument of this form fits; sizes that no argument before it had are added to `sizes`."""
    if form is None:
        return pointer.optional
    if pointer.kind == "AdamWArgs":
        sizes[pointer.dims[0].size] = form
        return True
    found, is_cpu, shape, layout = form
    if found is not (pointer.dtype or dtype) or not is_cpu:
        return False
    if pointer.text.endswith("...]"):
        if sizes.setdefault("...", shape) != shape:
            return False
        shape = shape[:1]
    dims = pointer.dims[:1] if pointer.kind == "Drop" else pointer.dims  # the keys are one for each row
    if len(shape) != len(dims):
        return False
    for (size, factor, offset, or_one), length in zip(dims, shape, strict=True):
        if sizes.setdefault(size, length) * factor + offset != length and not (or_one and length == 1):
            return False
    if not pointer.strided:
        return bool(layout)  # whether it is contiguous
    distance, step = layout
    return bool(step == 1 and (distance >= shape[1] or shape[0] <= 1))


def _row_stride(pointer: Pointer, form: Any) -> int:
    """Elements from one row to the next; 0 for a row that all runs share."""
    *_, (rows, width), layout = form
    return int(layout[0]) if pointer.strided else 0 if rows == 1 else width


def _struct(x: Any, channels: Tensor | None) -> Any:
    """What C gets for a `Drop` of these channels' keys, or for an array of structs."""
    if not isinstance(x, Drop):
        return ctypes.byref(x)
    address = None if channels is None else channels.data_ptr()
    return ctypes.byref(DropArgs(x.keys.data_ptr(), address, x.site & 0xFFFFFFFF, threshold_of(x.p), 1.0 / (1.0 - x.p)))


class Kernel:
    """A compiled kernel, which is called with checked arguments."""

    def __init__(self, library: ctypes.CDLL, name: str, text: str) -> None:
        """Look it up; raises a ValueError where the library does not have it."""
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
