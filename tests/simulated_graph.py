"""CUDA graphs on a CPU: what a step asks of torch and of Triton is noted while it is recorded, and done again later.

As on a GPU, a replay works on the very memory of the recording, and what the host read or chose then stays as it was.
While a graph is recorded no kernel of Triton runs, so nothing that a step updates changes.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["SimulatedGraph", "simulate_graphs", "triton_launches"]


class SimulatedGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []  # function, arguments, named ones, what came of it
        self.replays = 0
        self._noting = ExitStack()

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        self._noting.enter_context(triton_launches(lambda *call: self.calls.append((*call, [None]))))
        self._noting.enter_context(_Noting(self))

    def capture_end(self) -> None:
        self._noting.close()

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for call, args, named, before in self.calls:
            for old, new in zip(before, tree_leaves(call(*args, **named)), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class _Noting(TorchDispatchMode):
    def __init__(self, graph: SimulatedGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number is read while a step is recorded"
        out = func(*args, **kwargs or {})
        self._graph.calls.append((func, args, kwargs or {}, tree_leaves(out)))
        return out


@contextmanager
def triton_launches(instead: Any) -> Iterator[None]:
    """Has every launch of a Triton kernel call `instead(launch, args, named)`; `launch(*args, **named)` does it."""
    from triton.runtime.interpreter import GridExecutor

    original = GridExecutor.__call__

    def launched(self: Any, *args: Any, **named: Any) -> None:
        instead(types.MethodType(original, self), args, named)

    GridExecutor.__call__ = launched
    try:
        yield
    finally:
        GridExecutor.__call__ = original


class _Stream:
    """Stands in for `torch.cuda.Stream`: on a CPU what is asked first is done first."""

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


def simulate_graphs(patch: Any) -> None:
    """Put the stand-ins in the places of torch's own, by pytest's monkeypatch."""
    patch.setattr(torch.cuda, "CUDAGraph", SimulatedGraph)
    patch.setattr(torch.cuda, "Stream", _Stream)
    patch.setattr(torch.cuda, "current_stream", _Stream)
    patch.setattr(torch.cuda, "stream", nullcontext)
    patch.setattr(torch.cuda, "graph_pool_handle", object)
