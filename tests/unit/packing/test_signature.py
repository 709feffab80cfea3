"""What a compiled kernel takes: the same in Python and in C, and nothing else gets as far as C."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manytune.packing.dropout import Drop
from manytune.packing.kernels import AdamWTensor, AdamWUpdate
from manytune.packing.kernels import compiled as module
from manytune.packing.kernels.compiled import KERNELS, CompiledKernels
from manytune.packing.kernels.signature import AdamWArgs, DropArgs, Pointer, Signature

SOURCE = "".join(
    Path(module.__file__).with_name(name).read_text(encoding="utf-8") for name in ("kernels.cpp", "products.cpp")
)
CTYPES = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int": ctypes.c_int32,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
ELEMENTS = {
    "T": "T",
    "f32": "float",
    "f64": "double",
    "i64": "int64_t",
    "Drop": "DropArgs",
    "AdamWArgs": "AdamWArgs",
}


@pytest.fixture
def compiled(native: CompiledKernels) -> CompiledKernels:
    """Arguments are checked the same way whatever the width of vectors."""
    return native


def declared(text: str) -> list[tuple[str, str]]:
    """Type and name of each of C's parameters or fields."""
    return [
        (re.sub(r"\s+", " ", kind), name)
        for kind, name in re.findall(r"((?:const )?\w+[*&]?)\s*(\w+)\s*(?:[,;]|$)", text)
    ]


def ctype(declaration: str) -> Any:
    return ctypes.c_void_p if declaration[-1] in "*&" else CTYPES[declaration]


def c_function(name: str) -> list[tuple[str, str]]:
    found = re.findall(rf"^const char\* {name}\((.*?)\) {{$", SOURCE, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    return declared(found[0])


def element(pointer: Pointer) -> str:
    """The C type that a signature stands for; a struct or a tensor that is not written is const."""
    reference = "&" if pointer.kind == "Drop" else "*"
    return ("" if pointer.written else "const ") + ELEMENTS[pointer.kind] + reference


def test_every_function_of_the_library_has_a_signature() -> None:
    exported = set(re.findall(r"^EXPORT(?:_F32)?\((\w+)\)", SOURCE, re.MULTILINE))
    assert len(exported) == 17
    assert KERNELS.keys() == exported
    # And each exported function can say that an index is out of range.
    assert set(re.findall(r"^const char\* (\w+)\(", SOURCE, re.MULTILINE)) == exported


@pytest.mark.parametrize("name", KERNELS)
def test_a_signature_is_that_of_the_function(name: str) -> None:
    signature = Signature(name, KERNELS[name])
    function = c_function(name)
    assert [(parameter, ctype(kind)) for kind, parameter in function] == signature.parameters()
    kinds = {parameter: kind for kind, parameter in function}
    assert {pointer.name: kinds[pointer.name] for pointer in signature.pointers} == {
        pointer.name: element(pointer) for pointer in signature.pointers
    }


@pytest.mark.parametrize("struct", [DropArgs, AdamWArgs])
def test_a_struct_has_the_fields_of_the_other_language(struct: type[ctypes.Structure]) -> None:
    (body,) = re.findall(rf"^struct {struct.__name__} {{$(.*?)^}};", SOURCE, re.DOTALL | re.MULTILINE)
    fields = declared(re.sub(r"//.*", "", body))
    assert len(fields) >= 5
    assert [(name, ctype(kind)) for kind, name in fields] == list(struct._fields_)


SIZES = {
    "queries": 6,
    "rows": 6,
    "hidden": 8,
    "width": 8,
    "inputs": 8,
    "outputs": 5,
    "rank": 3,
    "runs": 2,
    "sequences": 2,
    "longest": 4,
    "count": 1,
    "heads": 2,
    "offsets": 7,
}
NUMBERS = {"scale": 0.5, "epsilon": 1e-5, "first_only": 0}
INDICES = {"starts": [0, 2], "lengths": [2, 4], "bounds": [0, 2, 6]}
DTYPES = {"f32": torch.float32, "i64": torch.int64, "f64": torch.float64}
NAMES = [name for name in KERNELS if name != "adamw"]


class Call:
    """A call of a kernel, right in everything until a test changes that."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.signature = Signature(name, KERNELS[name])
        self.dtype = dtype if any(pointer.kind == "T" for pointer in self.signature.pointers) else torch.float32
        self.given: dict[str, Any] = {}
        for pointer in self.signature.pointers:
            shape = [SIZES[dim.size] * dim.factor + dim.offset for dim in pointer.dims]
            if pointer.kind == "Drop":
                self.given[pointer.name] = Drop(torch.zeros(shape[0], dtype=torch.int32), 1, 0.1)
            elif pointer.name in INDICES:
                self.given[pointer.name] = torch.tensor(INDICES[pointer.name])
            else:
                kind = dtype if pointer.kind == "T" else DTYPES[pointer.kind]
                self.given[pointer.name] = torch.zeros(shape, dtype=kind)
        self.numbers = [NUMBERS[name] for name, _ in self.signature.numbers]
        needed = [dim for pointer in self.signature.pointers for dim in pointer.dims if not pointer.optional]
        plain = {dim.size for dim in needed if dim[1:] == (1, 0, False)}
        self.sizes = {name: SIZES[name] for name in self.signature.sizes if name not in plain}

    def make(self, compiled: CompiledKernels) -> None:
        kernel = compiled._kernels[self.signature.name]
        kernel(self.dtype, *self.given.values(), *self.numbers, **self.sizes)

    def is_refused(self, compiled: CompiledKernels, argument: str) -> None:
        written = {p.name: self.given[p.name] for p in self.signature.pointers if p.written}
        before = {name: tensor.clone() for name, tensor in written.items() if isinstance(tensor, Tensor)}
        with pytest.raises(ValueError, match=rf"^kernel {self.signature.name}, argument {argument}: "):
            self.make(compiled)
        for name, tensor in before.items():
            if tensor.device.type == "cpu":
                assert torch.equal(written[name], tensor)


def longer(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], x.shape[-1] + 1)


def more_rows(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0] + 1, *x.shape[1:])


def deeper(x: Tensor) -> Tensor:
    return x[None]


def of_another_type(x: Tensor) -> Tensor:
    return x.to(torch.float16 if x.dtype.is_floating_point else torch.int16)


def elsewhere(x: Tensor) -> Tensor:
    return x.to("meta")


def spread(x: Tensor) -> Tensor:
    """Elements twice as far apart."""
    return x.new_zeros(*x.shape, 2)[..., 0]


CHANGES: list[Callable[[Tensor], Any]] = [longer, more_rows, deeper, of_another_type, elsewhere, spread, lambda _: None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_fits_is_made(compiled: CompiledKernels, name: str, dtype: torch.dtype) -> None:
    call = Call(name, dtype)
    call.make(compiled)
    for pointer in call.signature.pointers:
        if pointer.optional:
            call.given[pointer.name] = None
    call.make(compiled)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("<>"))
@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_does_not_fit_is_refused(
    compiled: CompiledKernels, name: str, change: Callable[[Tensor], Any]
) -> None:
    """Each argument in turn. The first one with a size says what it is, so a later one may be named instead."""
    tried = 0
    for pointer in Call(name).signature.pointers:
        call = Call(name)
        value = call.given[pointer.name]
        changed = change(value.keys if isinstance(value, Drop) else value)
        if changed is None and pointer.optional:
            continue
        if (name, pointer.name, change) == ("segment_sums", "x", more_rows):
            continue  # rows behind those of the last run are allowed
        call.given[pointer.name] = Drop(changed, 1, 0.1) if isinstance(value, Drop) and changed is not None else changed
        sets_sizes = change in (longer, more_rows) and pointer.name != "bounds"
        call.is_refused(compiled, r"\w+" if sets_sizes else pointer.name)
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("name", [name for name in NAMES if "strided" in KERNELS[name]])
def test_rows_may_lie_apart_and_not_in_each_other(compiled: CompiledKernels, name: str) -> None:
    for pointer in Call(name).signature.pointers:
        if not pointer.strided:
            continue
        call = Call(name)
        rows, width = call.given[pointer.name].shape
        call.given[pointer.name] = torch.zeros(rows, width + 3)[:, 2:-1]
        call.make(compiled)
        call.given[pointer.name] = torch.zeros(rows * width).as_strided((rows, width), (width - 1, 1))
        call.is_refused(compiled, pointer.name)


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("bounds", [0, 2, 7]),
        ("bounds", [-1, 2, 6]),
        ("bounds", [0, 7, 6]),
        ("bounds", [3, 2, 6]),
        ("run_of", 2),
        ("run_of", -1),
        ("starts", [0, 6]),
        ("starts", [-1, 2]),
        ("lengths", [2, 5]),
        ("lengths", [0, 4]),
        ("lengths", [2, 2**62]),
    ],
)
def test_an_index_out_of_range_is_refused(compiled: CompiledKernels, argument: str, values: Any) -> None:
    tried = 0
    for name in NAMES:
        call = Call(name)
        if argument in call.given:
            call.given[argument][-1 if isinstance(values, int) else slice(None)] = torch.tensor(values)
            call.is_refused(compiled, argument)
            tried += 1
    assert tried >= 2


@pytest.mark.parametrize("name", ["pad", "unpad_add"])
def test_a_run_of_more_rows_than_are_padded_is_refused(compiled: CompiledKernels, name: str) -> None:
    call = Call(name)
    call.given["bounds"] = torch.tensor([0, 1, 6])
    call.is_refused(compiled, "bounds")


@pytest.mark.parametrize("name", ["attention_forward", "attention_backward"])
def test_attention_refuses_heads_and_queries_that_do_not_fit(compiled: CompiledKernels, name: str) -> None:
    for heads in (0, 3, -2):
        call = Call(name)
        call.given |= dict.fromkeys(call.given.keys() & {"position_bias", "position_grad"})
        call.sizes["heads"] = heads
        call.is_refused(compiled, "heads")
    call = Call(name)
    call.numbers[1] = 1  # one query a sequence, and here it is one a token
    call.is_refused(compiled, "q")


@pytest.mark.parametrize("name", ["lora_forward", "lora_backward"])
def test_lora_refuses_a_rank_that_its_sums_have_no_room_for(
    compiled: CompiledKernels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "rank", compiled._max_rank + 1)
    Call(name).is_refused(compiled, "a")


def test_a_dtype_without_a_variant_is_refused(compiled: CompiledKernels) -> None:
    with pytest.raises(ValueError, match=r"kernel drop has no variant for torch\.float16"):
        Call("drop", torch.float16).make(compiled)


def test_a_refusal_says_what_came_and_what_was_wanted(compiled: CompiledKernels) -> None:
    call = Call("gelu_forward")
    call.given["bias"] = torch.zeros(3, 8)
    expected = (
        "kernel gelu_forward, argument bias: got torch.float32 [3, 8] with strides [8, 1] on cpu; wanted "
        "`bias: f32 [runs|1, width]` on cpu, where T = torch.float32, runs = 2, rows = 6, width = 8"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        call.make(compiled)


def adamw_tensor(**changes: Any) -> AdamWTensor:
    """A tensor of two runs, 12 numbers each, or with a sparse gradient that one run has of two rows of four."""
    if "touched" in changes:
        rows = changes.pop("rows", torch.tensor([[1, 3]]))
        grad = torch.sparse_coo_tensor(rows, torch.ones(2, 3), (4, 3), check_invariants=False)
        changes = {"grad": grad._coalesced_(True), **changes}
    runs = 1 if "touched" in changes else 2
    fields = {name: torch.zeros(runs, 4, 3) for name in ("value", "grad", "exp_avg", "exp_avg_sq")}
    return AdamWTensor(**{"first": 0, "value_bf16": None, "decays": True, "touched": None, **fields, **changes})


def adamw(compiled: CompiledKernels, tensor: AdamWTensor, runs: int = 2) -> None:
    update = AdamWUpdate(1, 1e-3, weight_decay=0.1, max_grad_norm=1.0)
    compiled.adamw_([adamw_tensor(), tensor], [update] * runs)


TOUCHED = torch.zeros(4, dtype=torch.uint8)


def test_steps_that_fit_are_made(compiled: CompiledKernels) -> None:
    adamw(compiled, adamw_tensor())
    adamw(compiled, adamw_tensor(value_bf16=torch.zeros(2, 4, 3, dtype=torch.bfloat16)))
    adamw(compiled, adamw_tensor(touched=TOUCHED.clone()))


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        *((name, {name: torch.zeros(2, 3, 4)}) for name in ("grad", "exp_avg", "exp_avg_sq")),
        *((name, {name: torch.zeros(2, 4, 3, device="meta")}) for name in ("value", "grad", "exp_avg", "exp_avg_sq")),
        *((name, {name: torch.zeros(3, 4, 2).transpose(0, 2)}) for name in ("value", "grad", "exp_avg", "exp_avg_sq")),
        ("grad", {"grad": torch.zeros(2, 4, 3, dtype=torch.float16)}),
        ("exp_avg", {"exp_avg": torch.zeros(2, 4, 3, dtype=torch.bfloat16)}),
        ("value_bf16", {"value_bf16": torch.zeros(2, 4, 3)}),
        ("tensors", {"first": 1}),
        ("tensors", {"first": -1}),
        ("touched", {"touched": torch.zeros(5, dtype=torch.uint8)}),
        ("touched", {"touched": torch.zeros(4)}),
        ("exp_avg", {"touched": TOUCHED, "exp_avg": torch.zeros(1, 3, 4)}),
        ("value", {"touched": TOUCHED, "value": torch.zeros(1, 12)}),
        ("rows", {"touched": TOUCHED, "rows": torch.tensor([[1, 4]])}),
        ("rows", {"touched": TOUCHED, "rows": torch.tensor([[-1, 3]])}),
        ("rows", {"touched": TOUCHED, "rows": torch.tensor([[3, 1]])}),
        ("rows", {"touched": TOUCHED, "rows": torch.tensor([[1, 1]])}),
    ],
)
def test_a_step_of_a_tensor_that_does_not_fit_is_refused(
    compiled: CompiledKernels, argument: str, changes: dict[str, Any]
) -> None:
    tensor = adamw_tensor(**changes)
    with pytest.raises(ValueError, match=rf"^kernel adamw, argument {argument}: "):
        adamw(compiled, tensor)
    if tensor.value.device.type == "cpu":
        assert (tensor.value == 0).all()


def test_a_sparse_gradient_is_one_runs(compiled: CompiledKernels) -> None:
    state = {name: torch.zeros(2, 4, 3) for name in ("value", "exp_avg", "exp_avg_sq")}
    with pytest.raises(ValueError, match=r"^kernel adamw, argument tensors: "):
        adamw(compiled, adamw_tensor(touched=TOUCHED, **state))
