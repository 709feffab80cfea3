"""The kernels in Triton, for GPUs of NVIDIA; see `Kernels` for what each function computes.

They draw the reference's masks to the bit and add up in an order that is a run's own. What a grid or a launch depends
on is in `Plan.shape` and in the shapes of tensors: so a step can be recorded for one batch and run again for another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from manytune.packing.dropout import Drop, threshold_of
from manytune.packing.kernels import triton_adamw, triton_attention, triton_lora, triton_rows
from manytune.packing.kernels.base import (
    AdamWTensor,
    AdamWUpdate,
    AttentionCall,
    LoraCall,
    NormCall,
    Segments,
    adamw_settings,
)
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.packing.layout import TILES, Layout
from manytune.packing.transfer import put_all

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in numpy, on tensors of the CPU."""

_CHUNK = 2048
"""Elements that a program of the optimizer updates."""

_LORA_ROWS = 32
"""Rows of a tile of LoRA's products: a run of CoLA has some 180 tokens in a batch of 16 rows."""


_DIAGONALS = 32
"""Differences of places whose position bias a program computes the gradient of."""


class TritonKernels(ReferenceKernels):
    """The functions of the four modules beside this one; what has no kernel there is the reference's."""

    name = "triton"
    fuses = True

    def __init__(self) -> None:
        self._chunks = _ChunkTables()

    def attention(self, call: AttentionCall) -> Tensor:
        out = torch.empty(call.q.shape, dtype=call.q.dtype, device=call.q.device)
        made = (out, out.stride(0))
        self._attend(call, made, triton_attention.attention_tile, {}, [(triton_attention.attention_blocks, made)])
        return out

    def attention_grad(
        self, call: AttentionCall, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, *, of_positions: bool = False
    ) -> Tensor | None:
        _, _, _, tiles, longest = call.layout.plan.shape
        keeps = of_positions and call.position_bias is not None
        shape = (call.layout.rows, call.heads) if keeps or any(tiles[len(_tiles(grad.dtype)) :]) else (0,)
        scratch = tuple(torch.empty(shape, dtype=torch.float32, device=grad.device) for _ in range(2))
        of_grad, of_queries, of_keys = (grad, grad.stride(0)), (dq, dq.stride(0)), (dk, dv, dk.stride(0))
        steps = [
            (triton_attention.attention_blocks_grad_queries, (*of_grad, *of_queries, *scratch)),
            (triton_attention.attention_blocks_grad_keys, (*of_grad, *of_keys, *scratch)),
        ]
        made = (*of_grad, *of_queries, *of_keys, *scratch)
        self._attend(call, made, triton_attention.attention_tile_grad, {"KEEP": keeps}, steps)
        if call.position_bias is None or not keeps:
            return None
        rows, options, common = _attention_arguments(call)
        sequences = len(call.layout.starts)
        found = torch.zeros((sequences, *call.position_bias.shape), dtype=torch.float32, device=grad.device)
        grid = sequences, call.heads, triton.cdiv(2 * longest - 1, _DIAGONALS)
        del common["POSITIONS"], common["UPCAST"]
        triton_attention.attention_position_grad[grid](
            *rows, *options, *of_grad, *scratch, found, BLOCK=_DIAGONALS, **common
        )
        return found.sum(0)

    def _attend(
        self,
        call: AttentionCall,
        made: tuple[Any, ...],
        tile: Any,
        tile_options: dict[str, Any],
        blocks: Sequence[tuple[Any, tuple[Any, ...]]],
    ) -> None:
        """Launch `tile` for each kind of tile that there are sequences for, and `blocks` for longer ones."""
        layout = call.layout
        _, bounds, _, kinds, longest = layout.plan.shape
        sequences = bounds[-1]
        rows, options, common = _attention_arguments(call)
        last = (sequences, layout.token_offsets, layout.runs, layout.rows)
        cleared = False
        sizes, exact = _tiles(call.q.dtype), call.q.dtype == torch.float32
        for least, most, any_such in zip((0, *sizes), sizes, kinds, strict=False):
            # The last kind of tile clears the padding rows where no other has.
            clear = not cleared and (any_such or most == sizes[-1])
            if not any_such and not clear:
                continue
            tile[(sequences + clear, call.heads)](
                *rows, *last, *options, *made, L=most, LQ=16 if call.first_only else most, LEAST=least,
                CLEAR=clear, num_warps=most // (4 if exact else 16), **common, **tile_options,
            )  # fmt: skip
            cleared = True
        if any(kinds[len(sizes) :]):
            # Loads are not made ahead, and blocks of wide heads are halved: smaller GPUs have 99 KB of shared memory.
            block = 32 if exact or common["BD"] > 128 else 64
            warps = 8 if exact or common["POSITIONS"] else 4  # the addresses of a position bias take registers
            for kernel, to in blocks:
                kernel[(sequences, call.heads, -(-longest // block))](
                    *rows, *options, *to, BLOCK=block, LEAST=sizes[-1], num_warps=warps,
                    num_stages=1, **common,
                )  # fmt: skip

    def residual_norm(
        self, y: Tensor, bias: Tensor, residual: Tensor, norm: NormCall
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count, width = y.shape
        normed, out = torch.empty_like(residual), torch.empty_like(residual)
        hidden, rstd = torch.empty_like(y), torch.empty(count, dtype=torch.float32, device=y.device)
        of_drop, has_drop = _dropout(norm.drop, norm.segments.runs)
        grid, sizes = _whole_rows(count, width)
        triton_rows.residual_norm[grid](
            y, bias, _stride(bias), residual, norm.segments.runs, *of_drop, norm.weight, norm.bias,
            _stride(norm.bias), norm.epsilon, count, normed, rstd, out, hidden, DROP=has_drop, **sizes,
        )  # fmt: skip
        return out, hidden, normed, rstd

    def residual_norm_grad(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, rstd: Tensor, norm: NormCall, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        count, width = grad.shape
        grad_y = torch.empty(grad.shape, dtype=dtype, device=grad.device)
        of_drop, has_drop = _dropout(norm.drop, norm.segments.runs)
        grid, sizes = _whole_rows(count, width)
        triton_rows.residual_norm_grad[grid](
            grad, grad if grad_hidden is None else grad_hidden, normed, rstd, norm.weight, *of_drop, count, grad_y,
            DROP=has_drop, HIDDEN=grad_hidden is not None, **sizes,
        )  # fmt: skip
        return grad, grad_y

    def norm_sums(
        self, grad: Tensor, grad_hidden: Tensor | None, normed: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        return self._run_sums(grad, segments, grad_hidden, normed)

    def segment_sums(self, x: Tensor, segments: Segments) -> Tensor:
        return self._run_sums(x, segments, None, None)[0]

    def _run_sums(
        self, x: Tensor, segments: Segments, hidden: Tensor | None, normed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        runs, width = len(segments), x.shape[1]
        sums = torch.empty(runs, width, dtype=torch.float32, device=x.device)
        products = sums if normed is None else torch.empty_like(sums)
        triton_rows.run_sums[(runs, triton.cdiv(width, 64))](
            x, x.stride(0), x if hidden is None else hidden, x if normed is None else normed,
            segments.offsets, sums, products,
            WIDTH=width, ROWS=32, BLOCK=64, HIDDEN=hidden is not None, PRODUCTS=normed is not None,
        )  # fmt: skip
        return sums, products

    def gelu(self, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        out = torch.empty_like(x)
        self._gelu(x, bias, segments, out, slope=False)
        return out

    def gelu_grad_(self, grad: Tensor, x: Tensor, bias: Tensor, segments: Segments) -> Tensor:
        self._gelu(x, bias, segments, grad, slope=True)
        return grad

    def _gelu(self, x: Tensor, bias: Tensor, segments: Segments, to: Tensor, *, slope: bool) -> None:
        count, width = x.shape
        grid, sizes = _blocks(count, width)
        triton_rows.gelu[grid](x, bias, _stride(bias), segments.runs, to, count, SLOPE=slope, **sizes)

    def lora_(self, y: Tensor, call: LoraCall) -> Tensor:
        x, a, b = call.x, call.a, call.b
        rank = a.shape[2]
        xa = torch.empty(len(x), rank, dtype=x.dtype, device=x.device)
        self._narrow(x, a, (1, 2), None, call, call.drop, xa)
        self._widen(xa, b, (1, 2), call.scale, call, None, y)
        return xa

    def lora_grad(self, grad: Tensor, xa: Tensor, call: LoraCall, grad_x: Tensor | None) -> tuple[Tensor, Tensor]:
        x, a, b = call.x, call.a, call.b
        grad_xa = torch.empty_like(xa)
        self._narrow(grad, b, (2, 1), call.scale, call, None, grad_xa)
        grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
        self._factor_grad(x, grad_xa, None, call, call.drop, grad_a, (1, 2))
        self._factor_grad(grad, xa, call.scale, call, None, grad_b, (2, 1))
        if grad_x is not None:
            self._widen(grad_xa, a, (2, 1), None, call, call.drop, grad_x)
        return grad_a, grad_b

    def _narrow(
        self, x: Tensor, weight: Tensor, dims: tuple[int, int], scale: Tensor | None, call: LoraCall,
        drop: Drop | None, out: Tensor,
    ) -> None:  # fmt: skip
        """Out = (drop(x) @ weight) * scale; `dims` are the weight's dimensions of x's columns and of the rank."""
        segments, rank = call.segments, out.shape[1]
        outer = min(64, max(16, triton.next_power_of_2(rank)))
        grid = (triton.cdiv(segments.reach, _LORA_ROWS), len(segments), triton.cdiv(rank, outer))
        of_drop, has_drop = _dropout(drop, segments.offsets)
        triton_lora.narrow[grid](
            x, x.stride(0), weight, weight.stride(0), *map(weight.stride, dims), weight if scale is None else scale,
            segments.offsets, *of_drop, out, WIDTH=x.shape[1], RANK=rank, ROWS=_LORA_ROWS, INNER=64, OUTER=outer,
            DROP=has_drop, SCALED=scale is not None, UPCAST=_upcast(x), num_warps=4,
        )  # fmt: skip

    def _widen(
        self, inner: Tensor, weight: Tensor, dims: tuple[int, int], scale: Tensor | None, call: LoraCall,
        drop: Drop | None, y: Tensor,
    ) -> None:  # fmt: skip
        """Y += drop(inner @ weight * scale); `dims` are the weight's dimensions of the rank and of y's columns."""
        segments, rank, width = call.segments, inner.shape[1], y.shape[1]
        grid = (triton.cdiv(segments.reach, _LORA_ROWS), len(segments), triton.cdiv(width, 128))
        of_drop, has_drop = _dropout(drop, segments.offsets)
        triton_lora.widen[grid](
            inner, weight, weight.stride(0), *map(weight.stride, dims), weight if scale is None else scale,
            segments.offsets, *of_drop, y, y.stride(0), WIDTH=width, RANK=rank, ROWS=_LORA_ROWS,
            INNER=min(64, max(16, triton.next_power_of_2(rank))), OUTER=128, DROP=has_drop,
            SCALED=scale is not None, UPCAST=_upcast(inner), num_warps=4,
        )  # fmt: skip

    def _factor_grad(
        self, x: Tensor, inner: Tensor, scale: Tensor | None, call: LoraCall, drop: Drop | None, grad: Tensor,
        dims: tuple[int, int],
    ) -> None:  # fmt: skip
        """Grad = drop(x)ᵀ @ inner * scale; `dims` are its dimensions of x's columns and of the rank."""
        segments, rank, width = call.segments, inner.shape[1], x.shape[1]
        outer = min(64, max(16, triton.next_power_of_2(rank)))
        of_drop, has_drop = _dropout(drop, segments.offsets)
        triton_lora.factor_grad[(len(segments), triton.cdiv(width, 64), triton.cdiv(rank, outer))](
            x, x.stride(0), inner, grad if scale is None else scale, segments.offsets, *of_drop, grad, grad.stride(0),
            *map(grad.stride, dims), WIDTH=width, RANK=rank, ROWS=32, COLUMNS=64, OUTER=outer, DROP=has_drop,
            SCALED=scale is not None, UPCAST=_upcast(x), num_warps=4,
        )  # fmt: skip

    def drop(self, x: Tensor, drop: Drop) -> Tensor:
        out = torch.empty_like(x)
        (keys, site, level, kept), _ = _dropout(drop, drop.keys)
        grid, sizes = _blocks(*x.shape)
        triton_rows.drop[grid](x, keys, site, level, kept, out, len(x), **sizes)
        return out

    def token_keys(self, layout: Layout, runs: Tensor) -> Tensor:
        keys = torch.empty(layout.rows, dtype=torch.int32, device=runs.device)
        grid = (triton.cdiv(layout.rows, 256),)
        rows = (layout.token_run, layout.sequence_index, layout.within)
        triton_rows.token_keys[grid](runs, *rows, keys, layout.rows, BLOCK=256)
        return keys

    def adamw_(
        self,
        tensors: Sequence[AdamWTensor],
        updates: Sequence[AdamWUpdate],
        settings: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> None:
        device = tensors[0].value.device
        tensors = [replace(each, grad=each.grad.to_dense()[None]) if each.grad.is_sparse else each for each in tensors]
        if settings is None:
            settings = put_all({"settings": adamw_settings(updates)}, device)["settings"]
        table = self._chunks.of(tensors, len(updates))
        factors = torch.ones(len(updates), dtype=torch.float32, device=device)
        alive = torch.ones_like(factors) if alive is None else alive
        if any(update.max_grad_norm > 0 for update in updates):
            sums = torch.empty(table.count, dtype=torch.float32, device=device)
            triton_adamw.squares[(table.count,)](table.chunks, sums, BLOCK=_CHUNK, num_warps=8)
            triton_adamw.clip_factors[(len(updates),)](sums, table.run_chunks, settings, factors, BLOCK=1024)
        triton_adamw.adamw[(table.count,)](table.chunks, settings, factors, alive, BLOCK=_CHUNK, num_warps=8)

    def before_recording(self) -> None:
        self._chunks.reserve()

    def after_recording(self, *, failed: bool = False) -> object:
        # While a step is recorded, nothing can be copied to the device: the addresses of its gradients come after.
        return self._chunks.fill(failed=failed)


@dataclass(eq=False)
class _ChunkTable:
    """The chunks of one step's tensors on the device."""

    chunks: Tensor  # [n, 8] int64, see triton_adamw.py
    run_chunks: Tensor  # [R + 1] int64, the chunks of each run

    @property
    def count(self) -> int:
        return len(self.chunks)


class _ChunkTables:
    """Tables of chunks; the last one is kept, for as long as all tensors stay where they are in memory."""

    def __init__(self) -> None:
        self._addresses: list[tuple[int, ...]] = []
        self._last: _ChunkTable | None = None
        self._reserved: _ChunkTable | None = None  # what a step that is being recorded is to read
        self._recorded: dict[str, NDArray[Any]] = {}  # what it is to hold

    def of(self, tensors: Sequence[AdamWTensor], runs: int) -> _ChunkTable:
        """The table of these tensors; while a step is recorded, one that `fill` fills in later."""
        if self._reserved is not None:
            self._recorded = _chunks(tensors, runs)
            return self._reserved
        addresses = [_addresses(tensor) for tensor in tensors]
        if self._last is None or addresses != self._addresses:
            self._last = _ChunkTable(**put_all(_chunks(tensors, runs), tensors[0].value.device))
            self._addresses = addresses
        return self._last

    def reserve(self) -> None:
        """Make room for the table of a step that is recorded next: as large as that of the step before."""
        assert self._last is not None
        self._reserved = _ChunkTable(torch.empty_like(self._last.chunks), torch.empty_like(self._last.run_chunks))

    def fill(self, *, failed: bool) -> object:
        """Fill in the reserved table, unless recording has failed, and return it."""
        table, self._reserved = self._reserved, None
        assert table is not None
        if failed:
            return None
        there = put_all(self._recorded, table.chunks.device)
        table.chunks.copy_(there["chunks"])
        table.run_chunks.copy_(there["run_chunks"])
        return table


def _addresses(tensor: AdamWTensor) -> tuple[int, ...]:
    """Where the tensor, its gradient, both moments and its copy lie; its runs, how large all that is, and its rates."""
    copy = 0 if tensor.value_bf16 is None else tensor.value_bf16.data_ptr()
    lying = (tensor.value, tensor.grad, tensor.exp_avg, tensor.exp_avg_sq)
    sizes = tensor.first, len(tensor.value), tensor.value.numel(), tensor.grad.element_size()
    rates = () if tensor.rates is None else tuple(tensor.rates.tolist())
    return *(part.data_ptr() for part in lying), copy, *sizes, *rates


def _chunks(tensors: Sequence[AdamWTensor], runs: int) -> dict[str, NDArray[Any]]:
    """`chunks` and `run_chunks`; the chunks of one run lie side by side, in the order of its tensors."""
    parts = []
    for tensor in tensors:
        if tensor.grad.dtype not in (torch.float32, torch.bfloat16) or tensor.grad.is_sparse:
            raise ValueError(f"a gradient is {tensor.grad.dtype}, {tensor.grad.layout}; not dense fp32 or bf16")
        count = len(tensor.value)
        size = tensor.value.numel() // count
        starts = np.arange(0, size, _CHUNK)
        run, start = np.repeat(np.arange(count), len(starts)), np.tile(starts, count)
        element = run * size + start
        value, grad, exp_avg, exp_avg_sq, copy, *_ = _addresses(tensor)
        is_bf16 = tensor.grad.dtype == torch.bfloat16
        rows = np.zeros((len(run), 8), dtype=np.int64)
        rows[:, 0], rows[:, 2], rows[:, 3] = (base + 4 * element for base in (value, exp_avg, exp_avg_sq))
        rows[:, 1] = grad + (2 if is_bf16 else 4) * element
        rows[:, 4] = copy + 2 * element if copy else 0
        rows[:, 5], rows[:, 6] = np.minimum(size - start, _CHUNK), tensor.first + run
        # Of all runs or of none: programs of the two kinds may add up in another order.
        aligned = size % 16 == 0 and all(base % 16 == 0 for base in (value, grad, exp_avg, exp_avg_sq, copy))
        rates = np.ones(count) if tensor.rates is None else tensor.rates.numpy()
        of_run = rates.astype(np.float32).view(np.int32).astype(np.int64) << 32
        rows[:, 7] = is_bf16 + 2 * tensor.decays + 4 * aligned + of_run[run]
        parts.append(rows)
    chunks = np.concatenate(parts)
    chunks = chunks[np.argsort(chunks[:, 6], kind="stable")]
    return {"chunks": chunks, "run_chunks": np.searchsorted(chunks[:, 6], np.arange(runs + 1))}


def _tiles(dtype: torch.dtype) -> tuple[int, ...]:
    """Lengths up to which a sequence is one tile. Products in fp32 are made in registers, which hold 32 rows."""
    return TILES[:2] if dtype == torch.float32 else TILES


def _dropout(drop: Drop | None, any_tensor: Tensor) -> tuple[tuple[Any, ...], bool]:
    """Keys, site, level and 1 / (1 - p), as kernels take them, and whether there is dropout at all."""
    if drop is None:
        return (any_tensor, 0, 0, 1.0), False
    return (drop.keys, drop.site, threshold_of(drop.p) + 32768, 1.0 / (1.0 - drop.p)), True


def _attention_arguments(call: AttentionCall) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
    """What every kernel of attention takes: the rows and their runs; dropout, position bias and scale; constants."""
    layout, by_place = call.layout, call.position_bias
    width = call.q.shape[1] // call.heads
    strides = call.q.stride(0), call.k.stride(0)
    rows = call.q, call.k, call.v, *strides, call.bias, _stride(call.bias)
    of_drop, has_drop = _dropout(call.drop, layout.starts)
    most = 1 if by_place is None else (by_place.shape[1] + 1) // 2
    of_positions = call.bias if by_place is None else by_place, most
    common = {"HEADS": call.heads, "D": width, "BD": max(16, triton.next_power_of_2(width))}
    common |= {"POSITIONS": by_place is not None, "DROP": has_drop, "FIRST": call.first_only, "UPCAST": _upcast(call.q)}
    given = *rows, layout.starts, layout.lengths, layout.sequence_run
    return given, (*of_drop, *of_positions, call.scale), common


def _stride(by_run: Tensor) -> int:
    """Between the rows of [R or 1, c]; 0 where all runs have the same."""
    return 0 if len(by_run) == 1 else by_run.stride(0)


def _upcast(x: Tensor) -> bool:
    return _INTERPRETED and x.dtype == torch.bfloat16


def _whole_rows(count: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and sizes of a kernel whose programs see whole rows."""
    block = triton.next_power_of_2(width)
    rows = max(1, 2048 // block)
    return (triton.cdiv(count, rows),), {
        "WIDTH": width,
        "BLOCK": block,
        "ROWS": rows,
        "num_warps": 4 * max(1, block // 2048),
    }


def _blocks(count: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and sizes of a kernel whose programs see a block of columns of a few rows."""
    block = min(512, triton.next_power_of_2(width))
    rows = max(1, 2048 // block)
    return (triton.cdiv(count, rows), triton.cdiv(width, block)), {"WIDTH": width, "ROWS": rows, "BLOCK": block}
