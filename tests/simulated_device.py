"""A device that computes on the CPU but is another one to torch, and a count of what a device is asked to do.

The tensors of `DEVICE` hold numbers, so what comes out can be compared with the CPU's. An operation that mixes them
with tensors of the CPU fails as on a GPU; operations that wait for the device are counted, not refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

__all__ = ["DEVICE", "DeviceWork", "simulated_device"]

DEVICE = torch.device("lazy", 0)  # a type of device that every build of torch knows, and for which it has no kernels

_COPIES = {"_to_copy", "copy_"}
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
_WAITS |= {"_coalesce", "equal"}
"""What needs a number or a shape that is known on the device alone."""

_NO_LAUNCH = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"),
    *("detach", "alias", "split", "split_with_sizes", "chunk", "as_strided", "unbind", "_reshape_alias", "lift_fresh"),
    *("unfold", "diagonal", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "is_same_size"),
    *("_indices", "_values", "_nnz", "indices", "values", "is_coalesced", "_coalesced_", "set_", "resize_"),
    "_sparse_coo_tensor_with_dims_and_tensors",
}
"""Views, and memory without contents."""


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


class _Literals(TorchFunctionMode):
    """Has torch copy numbers and lists of Python's from the CPU: its own copies are hidden from dispatch modes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type != "cpu":
            whole, index, *value = args
            parts = index if isinstance(index, tuple) else (index,)
            kind = {True: None, False: torch.long}  # of no numbers torch would make floats
            made = tuple(
                torch.tensor(part, dtype=kind[bool(part)]).to(whole.device) if isinstance(part, list) else part
                for part in parts
            )
            return func(whole, made if isinstance(index, tuple) else made[0], *value)
        return func(*args, **kwargs)


@dataclass(eq=False)
class DeviceWork(TorchDispatchMode):
    """Counts what devices other than the CPU are asked to do while it is entered; works for real ones too.

    Kernels that are not torch's, such as Triton's, are not seen.
    """

    launches: Counter[str] = field(default_factory=Counter)  # operation → how often; most are one launch each
    copies: Counter[str] = field(default_factory=Counter)  # "to device" or "to host" → copies that need no waiting
    waits: Counter[str] = field(default_factory=Counter)  # operation → how often the host waits for the device

    def __post_init__(self) -> None:
        super().__init__()
        self._literals = _Literals()

    def __enter__(self) -> Self:
        self._literals.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

    @property
    def blocking(self) -> int:
        """How often the host waits for the device."""
        return self.waits.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        kinds = {tensor.device.type for tensor in (*inputs, *outputs)}
        name = _name(func)
        if not kinds - {"cpu", "meta"}:
            return out
        if name in _COPIES and "cpu" in kinds:
            self._note_copy(name, inputs, outputs, args, kwargs)
        elif name in ("index", "index_put_", "_index_put_impl_") and any(
            each.dtype == torch.bool for each in inputs[1:]
        ):
            self.waits["nonzero"] += 1
        elif name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.waits[name] += 1
        elif name not in _NO_LAUNCH:
            self.launches[name] += 1
        return out

    def _note_copy(self, name: str, inputs: list[Tensor], outputs: list[Tensor], args: Any, kwargs: Any) -> None:
        target = inputs[0] if name == "copy_" else outputs[0]
        way = "to host" if target.device.type == "cpu" else "to device"
        unhurried = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        if unhurried:
            self.copies[way] += 1
        else:
            self.waits[f"copy {way}"] += 1


@contextmanager
def simulated_device() -> Iterator[torch.device]:
    """`DEVICE`, while this lasts; backward passes run in this very thread."""
    with _Literals(), _Simulation(), torch.autograd.set_multithreading_enabled(False):
        yield DEVICE


_OF_SPARSE = {
    Tensor.coalesce: torch.ops.aten._coalesce.default,
    Tensor.to_dense: torch.ops.aten._to_dense.default,
    Tensor.indices: torch.ops.aten.indices.default,
    Tensor.values: torch.ops.aten.values.default,
}


class _DeviceTensor(Tensor):
    """A tensor of `DEVICE`, whose numbers are in `on_cpu`."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> _DeviceTensor:
        options: dict[str, Any] = {"dtype": on_cpu.dtype, "device": DEVICE}
        if on_cpu.layout is torch.strided:
            options |= {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset()}
        made: _DeviceTensor = Tensor._make_wrapper_subclass(cls, on_cpu.shape, **options)
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, _DeviceTensor) and first.on_cpu.is_sparse:  # torch takes it for a strided one
            if func == Tensor.is_sparse.__get__:
                return True
            if func in _OF_SPARSE:
                return _OF_SPARSE[func](*args, **kwargs or {})
        if func is Tensor.data_ptr:
            return args[0].on_cpu.data_ptr()
        if func is Tensor.tolist:  # which torch refuses for classes of tensors
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs or {})
        if func == Tensor.data.__set__:  # torch copies what it knows of a tensor, not its attributes
            args[0].on_cpu = args[1].on_cpu
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"simulated({self.on_cpu!r})"


class _Simulation(TorchDispatchMode):
    """Serves what makes tensors on `DEVICE` without being given one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, computed on the CPU; a RuntimeError where it mixes devices, as torch raises."""
    name = _name(func)
    tensors = _tensors((args, kwargs))
    ours = [tensor for tensor in tensors if isinstance(tensor, _DeviceTensor)]
    wanted = kwargs.get("device")
    on_device = bool(ours) if wanted is None else torch.device(wanted).type == DEVICE.type
    if not ours and not on_device:
        return func(*args, **kwargs)
    # A number on the CPU, a tensor without dimensions, may stand beside tensors of any device.
    strangers = [tensor for tensor in tensors if not isinstance(tensor, _DeviceTensor) and tensor.dim() > 0]
    if ours and strangers and name not in _COPIES:
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {DEVICE} and cpu")
    given: Any = tree_map_only(_DeviceTensor, lambda tensor: tensor.on_cpu, (args, kwargs))
    positional, named = given
    if wanted is not None:
        named["device"] = "cpu"
    out = func(*positional, **named)
    if name == "copy_":
        return args[0]
    if not on_device:
        return out
    made = {id(tensor.on_cpu): tensor for tensor in ours}  # an operation in place gives back what it was given
    return tree_map_only(Tensor, lambda tensor: made[id(tensor)] if id(tensor) in made else _DeviceTensor(tensor), out)
