"""The kernels of a device against those in plain torch on the CPU, function by function, over random batches.

The reference computes in fp32 from the same inputs, rounded to bf16 where activations are bf16. An error is
‖ours − reference‖ / ‖reference‖ of one result; beside it stands that of the plain kernels on the same device in the
same dtype, which says what rounding alone comes to.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gpu_place import Place, relative_error
from torch import Tensor

from manytune.data.splits import Encoded
from manytune.packing import build_layout
from manytune.packing.context import Context
from manytune.packing.dropout import Drop, Keys, site_key
from manytune.packing.kernels import (
    AdamWTensor,
    AdamWUpdate,
    AttentionCall,
    Kernels,
    LoraCall,
    NormCall,
    Segments,
    choose_kernels,
)
from manytune.packing.kernels.reference import ReferenceKernels

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The largest error that passes; what is no larger than that of the plain kernels, and an eighth, passes too."""

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's kernels run in numpy, which cuts numbers off to bf16 where a GPU rounds them."""

_PROCESSES = 6

HEADS = {32: 4, 384: 12, 768: 12}
"""Width → heads, as a tiny model, MiniLM and roberta-base have them."""

LAYOUTS: dict[str, tuple[tuple[int, ...], int]] = {
    "one run": ((16,), 40),
    "uneven runs, one without rows": ((16, 1, 0, 3, 16), 130),
    "32 runs": ((16,) * 32, 25),
    "few": ((3, 1, 0, 2), 21),
}
"""Name → sequences of each run, and the longest sequence."""


@dataclass(frozen=True)
class Shape:
    """What a case is of."""

    layout: str
    width: int
    dtype: torch.dtype
    p: float  # of dropout
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.layout}, width {self.width}, {dtype}, p {self.p}"


def shapes(small: bool) -> list[Shape]:
    dtypes, ps = (torch.float32, torch.bfloat16), (0.0, 0.1)
    if small:
        return [Shape("few", 32, dtype, p, (2, 64)) for dtype, p in itertools.product(dtypes, ps)]
    uneven = "uneven runs, one without rows"
    return [
        *(Shape(uneven, 768, dtype, 0.1, (8, 256)) for dtype in dtypes),
        *(Shape(uneven, 384, dtype, p, (2, 8, 64, 256)) for p, dtype in itertools.product(reversed(ps), dtypes)),
        *(Shape("32 runs", 768, dtype, 0.1, (8, 64)) for dtype in dtypes),
        *(Shape("one run", 384, dtype, 0.1, (2, 256)) for dtype in dtypes),
        Shape(uneven, 32, torch.float32, 0.1, (2, 64)),
    ]


def random_rows(counts: Sequence[int], longest: int, seed: int) -> Encoded:
    """Rows of random tokens, of 1 to `longest`, the longest among them."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, sum(counts))
    lengths[0] = longest
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = draw.integers(5, 100, int(offsets[-1]))
    return Encoded(ids, np.zeros_like(ids), offsets, np.zeros(len(lengths), dtype=np.int64), 0)


class Side:
    """One batch as a set of kernels gets it: on its device, activations in its dtype."""

    def __init__(self, kernels: Kernels, device: torch.device, shape: Shape, dtype: torch.dtype) -> None:
        self.kernels, self.device, self.shape, self.dtype = kernels, device, shape, dtype
        counts, longest = LAYOUTS[shape.layout]
        firsts = np.concatenate([[0], np.cumsum(counts)])
        rows = [np.arange(first, last) for first, last in itertools.pairwise(firsts)]
        data = random_rows(counts, longest, len(shape.layout))
        self.layout = build_layout(data, rows, device=device)
        self.context = Context(dtype, kernels)
        self.keys = Keys.build(self.layout, list(range(len(counts))), 3)
        self.context.begin(self.layout, self.keys)
        self.tokens = self.layout.tokens
        self._draw = torch.Generator().manual_seed(shape.width)

    def fresh(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, the same on every side; activations as the case's dtype holds them."""
        drawn = torch.randn(*size, generator=self._draw)
        if dtype is None:
            drawn = drawn.to(self.shape.dtype).to(self.dtype)
        return drawn.to(dtype or self.dtype).to(self.device)

    def rows(self, dtype: torch.dtype | None = None, width: int | None = None) -> Tensor:
        return self.fresh(self.layout.rows, width or self.shape.width, dtype=dtype)

    def by_run(self, width: int | None = None, *, shared: bool = False) -> Tensor:
        runs = 1 if shared else self.layout.runs
        return self.fresh(runs, width or self.shape.width, dtype=torch.float32)

    def drop(self, tokens: int | None = None) -> Drop | None:
        if not self.shape.p:
            return None
        return Drop(self.keys.tokens[:tokens], site_key("layer", 1), self.shape.p)

    @property
    def own_rows(self) -> Segments:
        """Of every run, without the padding rows behind them."""
        return self.context.part(0, self.layout.runs)


Found = dict[str, Tensor]
"""The results of a check by name."""

Row = dict[str, Any]


def attention(side: Side, first_only: bool, *, positions: bool = False) -> Found:
    width, tokens = side.shape.width, side.tokens
    joined = side.rows(width=3 * width)
    q, k, v = joined.chunk(3, 1)
    if first_only:
        q = side.fresh(len(side.layout.starts), width)
    heads = HEADS[width]
    bias = side.by_run(3 * width)
    most = int(side.layout.lengths.max())
    by_place = side.fresh(heads, 2 * most - 1, dtype=torch.float32) if positions else None
    scale, drop = (width // heads) ** -0.5, side.drop()
    call = AttentionCall(side.layout, heads, q, k, v, bias, scale, drop, first_only, by_place)
    grad = side.fresh(len(q), width)
    out = side.kernels.attention(call)
    grads = [torch.empty(len(x), width, dtype=side.dtype, device=side.device) for x in (q, k, v)]
    of_positions = side.kernels.attention_grad(call, grad, *grads, of_positions=positions)
    found = {"out": out, "dq": grads[0], "dk": grads[1], "dv": grads[2]}
    # Padding rows belong to no sequence: zeros. They are apart, so that they hide in no larger norm.
    tails = {f"{name}, padding rows": x[tokens:] for name, x in found.items() if len(x) == side.layout.rows}
    by_token = {name: x[:tokens] if len(x) == side.layout.rows else x for name, x in found.items()}
    return by_token | tails | ({} if of_positions is None else {"d_positions": of_positions})


def norms(side: Side, hidden: bool) -> Found:
    y, residual, gain = side.rows(), side.rows(torch.float32), side.fresh(side.shape.width, dtype=torch.float32)
    bias, shift = side.by_run(shared=hidden), side.by_run(shared=hidden)
    norm = NormCall(side.context.segments, side.drop(), gain, shift, 1e-5)
    out, low, normed, rstd = side.kernels.residual_norm(y, bias, residual, norm)
    grad, grad_hidden = side.rows(torch.float32), side.rows()
    rest = (grad_hidden if hidden else None, normed, rstd)
    sums = side.kernels.norm_sums(grad.clone(), *rest[:2], side.context.segments)
    below = side.kernels.residual_norm_grad(grad.clone(), *rest, norm, side.dtype)
    by_row = {"out": out, "hidden": low, "normed": normed, "rstd": rstd, "d_residual": below[0], "d_y": below[1]}
    return {**by_row, "d_bias": sums[0], "d_weight": sums[1]}


def gelu(side: Side) -> Found:
    x, bias, grad = side.rows(), side.by_run(), side.rows()
    segments = side.context.segments
    out = side.kernels.gelu(x, bias, segments)
    below = side.kernels.gelu_grad_(grad, x, bias, segments)
    sums = side.kernels.segment_sums(x, segments)
    return {"out": out, "d_x": below, "segment_sums": sums}


def lora(side: Side, rank: int) -> Found:
    width, tokens, runs = side.shape.width, side.tokens, side.layout.runs
    outputs = width + 8
    x = side.rows(width=3 * width)[:tokens, width : 2 * width]  # rows apart in memory, as those of q, k and v
    a, b = (side.fresh(runs, *size, dtype=torch.float32) for size in ((width, rank), (rank, outputs)))
    scale = torch.linspace(0.5, 2.0, runs, device=side.device)
    call = LoraCall(x, side.own_rows, side.drop(tokens), a * width**-0.5, b * rank**-0.5, scale)
    grad = side.rows(width=outputs)[:tokens]
    y, below = side.fresh(tokens, outputs), side.fresh(tokens, width)
    kept = side.kernels.lora_(y, call)
    grad_a, grad_b = side.kernels.lora_grad(grad, kept, call, below)
    return {"y": y, "d_a": grad_a, "d_b": grad_b, "d_x": below}


def dropout(side: Side) -> Found:
    """Of ones, whose masks are compared bit by bit, and of padded rows."""
    segments, drop = side.own_rows, side.drop(side.tokens)
    x, ones = side.rows()[: side.tokens], side.rows()[: side.tokens] * 0 + 1
    padded = side.kernels.pad(x, segments, drop)
    back = side.fresh(side.tokens, side.shape.width)
    side.kernels.unpad_add_(back, padded, segments, drop)
    found = {"unpad_add_": back}
    return (
        found if drop is None else {**found, "drop": side.kernels.drop(x, drop), "ones": side.kernels.drop(ones, drop)}
    )


def adamw(side: Side) -> Found:
    """Two steps of a pack whose runs have rates, counts and limits of their own; ranks differ, so groups do."""
    runs = side.layout.runs
    updates = [
        AdamWUpdate(1 + 7 * run, 1e-3 * (run + 1), weight_decay=0.1, max_grad_norm=(0.0, 1.0, 1e3)[run % 3])
        for run in range(runs)
    ]
    width, half = side.shape.width, runs // 2
    groups = [(0, runs, (2, width), True), (0, runs, (3,), False), (half, runs, (width, 8), True)]
    tensors = []
    for first, last, size, decays in groups:
        value, grad, mean = (side.fresh(last - first, *size, dtype=torch.float32) for _ in range(3))
        tensors.append(AdamWTensor(first, value, grad, mean, mean.square() + 0.1, None, decays, None))
    for number in range(2):
        own = [replace(each, grad=each.grad.clone()) for each in tensors]
        side.kernels.adamw_(own, [replace(update, number=update.number + number) for update in updates])
    return _moments("", tensors)


def adamw_of_one(side: Side) -> Found:
    """A step of full fine-tuning: gradients in bf16 with a copy to be kept in step, and a sparse one."""
    width = side.shape.width
    value, mean = (side.fresh(1, 3, width, dtype=torch.float32) for _ in range(2))
    grad = side.fresh(1, 3, width, dtype=torch.float32).to(torch.bfloat16)
    copy = value.to(torch.bfloat16)
    dense = AdamWTensor(0, value, grad, mean, mean.square() + 0.1, copy, True, None)
    table, found = side.fresh(1, 50, width, dtype=torch.float32), side.fresh(4, width, dtype=torch.float32)
    index = torch.tensor([[1, 7, 8, 40]], device=side.device)
    sparse = torch.sparse_coo_tensor(index, found, (50, width), is_coalesced=True, check_invariants=False)
    zeros = [torch.zeros_like(table) for _ in range(2)]
    touched = torch.zeros(50, dtype=torch.uint8, device=side.device)
    rows = AdamWTensor(0, table, sparse, *zeros, None, True, touched)
    update = AdamWUpdate(1, 1e-2, weight_decay=0.1, max_grad_norm=1.0)
    side.kernels.adamw_([dense, rows], [update])
    return {**_moments("dense ", [dense]), **_moments("sparse ", [rows]), "copy": copy.float()}


def _moments(name: str, tensors: Sequence[AdamWTensor]) -> Found:
    parts = {"value": [t.value for t in tensors]}
    parts |= {"exp_avg": [t.exp_avg for t in tensors], "exp_avg_sq": [t.exp_avg_sq for t in tensors]}
    return {name + part: torch.cat([x.flatten() for x in each]) for part, each in parts.items()}


def checks(shape: Shape) -> Iterator[tuple[str, Callable[[Side], Found]]]:
    yield "attention", lambda side: attention(side, False)
    yield "attention of first tokens", lambda side: attention(side, True)
    yield "attention with a position bias", lambda side: attention(side, False, positions=True)
    yield "residual_norm", lambda side: norms(side, False)
    yield "residual_norm with grad_hidden, one bias", lambda side: norms(side, True)
    yield "gelu, segment_sums", gelu
    yield "drop, pad", dropout
    for rank in shape.ranks:
        yield f"lora_ r={rank}", lambda side, rank=rank: lora(side, rank)  # type: ignore[misc]
    yield "adamw_", adamw
    yield "adamw_ of one run", adamw_of_one


def compare(place: Place) -> None:
    """Every check of every shape: a row for each shape, for each result that fails and each check that raises.

    On a GPU each shape has a process of its own: kernels compile beside one another, and a launch that breaks the
    device's context costs no other shape.
    """
    place.note(kernels=choose_kernels(place.device).name, device=str(place.device))
    if place.is_cuda:
        processes = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
        with ProcessPoolExecutor(_PROCESSES, **processes) as pool:
            waiting = {pool.submit(compared, place.device_name, shape): shape for shape in shapes(place.small)}
            failures = sum(_noted(place, _result(each, waiting[each])) for each in as_completed(waiting))
    else:
        failures = sum(_noted(place, compared(place.device_name, shape)) for shape in shapes(place.small))
    place.note(passed=failures == 0, failures=failures)


def _result(done: Future[list[Row]], shape: Shape) -> list[Row]:
    try:
        return done.result()
    except Exception as error:  # its process has died
        return [{"shape": str(shape), "passed": False, "error": f"{type(error).__name__}: {error}"}]


def _noted(place: Place, rows: list[Row]) -> int:
    """Keep rows; returns how many of them fail."""
    for row in rows:
        place.note(**row)
    return sum(row.get("passed") is False for row in rows)


def compared(device_name: str, shape: Shape) -> list[Row]:
    """Every check of one shape: a row for each failure, and one of the largest errors."""
    device, cpu, plain = torch.device(device_name), torch.device("cpu"), ReferenceKernels()
    if device.type == "cuda":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // _PROCESSES))
    kernels = choose_kernels(device)
    rows: list[Row] = []
    worst: dict[str, float] = {}
    started, count = time.perf_counter(), 0
    for name, check in checks(shape):
        facts = {"shape": str(shape), "check": name}
        try:
            with torch.no_grad():
                wanted = check(Side(plain, cpu, shape, torch.float32))
                ours = check(Side(kernels, device, shape, shape.dtype))
                rounded = check(Side(plain, device, shape, shape.dtype))
                ours = {result: x.cpu() for result, x in ours.items()}
        except Exception as error:  # the next check may do
            rows.append({**facts, "passed": False, "error": f"{type(error).__name__}: {error}"[:600]})
            continue
        for result, reference in wanted.items():
            count += 1
            error = relative_error(ours[result], reference) if ours[result].shape == reference.shape else math.inf
            worst[name] = max(worst.get(name, 0.0), error)
            bound = max(_bound(name, result, shape), 1.125 * relative_error(rounded[result], reference))
            said = _difference(result, ours[result], reference)
            if said or error > bound:
                rows.append({**facts, "result": result, "passed": False, "error": said or error, "bound": bound})
    whole = {"compared": count, "seconds": round(time.perf_counter() - started, 2)}
    return [*rows, {"shape": str(shape), **whole, "errors": {name: float(f"{e:.2g}") for name, e in worst.items()}}]


def _bound(check: str, result: str, shape: Shape) -> float:
    """The largest error that passes, whatever the plain kernels' is."""
    if result == "copy":  # of fp32 numbers in bf16; one that lies between two may be rounded to either
        return 1e-2 if _INTERPRETED else 1e-3
    in_fp32 = check.startswith("adamw_") or (check.startswith("residual_norm") and result in ("out", "normed", "rstd"))
    bound = BOUNDS[torch.float32 if in_fp32 else shape.dtype]
    return 2 * bound if _INTERPRETED else bound


def _difference(result: str, ours: Tensor, wanted: Tensor) -> str:
    """What is wrong with a result beside its error; empty where nothing is."""
    if ours.shape != wanted.shape:
        return f"shape {tuple(ours.shape)}, not {tuple(wanted.shape)}"
    differing = int(((ours != 0) != (wanted != 0)).sum()) if result == "ones" else 0
    return f"{differing} of {ours.numel()} bits of the mask differ" if differing else ""


def tiny_case(device: str) -> None:
    """Each function once, on a small batch: what a memory checker watches."""
    kernels = choose_kernels(torch.device(device))
    for dtype in (torch.float32, torch.bfloat16):
        shape = Shape("few", 32, dtype, 0.1, (8,))
        for name, check in checks(shape):
            with torch.no_grad():
                found = check(Side(kernels, torch.device(device), shape, dtype))
            assert all(bool(x.isfinite().all()) for x in found.values()), name
    print(f"each function of the kernels {kernels.name!r} ran once")
