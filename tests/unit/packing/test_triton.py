"""Triton's kernels against the reference, by Triton's interpreter, which runs them in numpy on the CPU.

Every tensor lies in a frame of NaN (`framed.Frames`), so that a kernel that reads or writes outside of one is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from framed import Frames
from manytune.data.splits import Encoded
from manytune.packing.dropout import Drop, Keys, site_key
from manytune.packing.kernels import AdamWTensor, AdamWUpdate, AttentionCall, LoraCall, NormCall, Segments
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.packing.kernels.select import choose_kernels
from manytune.packing.layout import Layout, build_layout

pytest.importorskip("triton", reason="triton is not here: it is installed on Linux on x86-64 alone")

from manytune.packing.kernels import triton as module

TRITON, PLAIN = module.TritonKernels(), ReferenceKernels()
DTYPES = [torch.float32, torch.bfloat16]
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Norm of the difference by that of what is wanted. Where a GPU rounds fp32 to bf16, the interpreter cuts it off."""

UNEVEN = ((3, 17, 1), (), (33, 5))
"""The lengths of the sequences of three runs, one of which has no row."""


def layout_of(runs: Sequence[Sequence[int]]) -> Layout:
    """A batch of runs whose sequences have these lengths."""
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.array(run, dtype=np.int64) for run in runs]))])
    zeros = np.zeros(offsets[-1], dtype=np.int64)
    data = Encoded(ids=zeros, types=zeros, offsets=offsets, labels=np.zeros(len(offsets) - 1), truncated=0)
    bounds = np.cumsum([0, *map(len, runs)])
    return build_layout(data, [np.arange(first, last) for first, last in pairwise(bounds)])


def keys_of(layout: Layout) -> Tensor:
    return Keys.build(layout, list(range(layout.runs)), 3).tokens


def segments_of(layout: Layout, first: int = 0, last: int | None = None) -> Segments:
    """The rows of all runs, or of neighbouring ones of LoRA's."""
    bounds, offsets, runs, reach = layout.of_runs("tokens")
    if last is None:
        return Segments(bounds, torch.device("cpu"), layout.rows - layout.tokens, 0, reach, offsets, runs)
    own = tuple(bound - bounds[first] for bound in bounds[first : last + 1])
    return Segments(own, torch.device("cpu"), 0, bounds[first], reach, offsets[first : last + 1], None)


class Case:
    """A packed batch, and random numbers in frames."""

    def __init__(self, frames: Frames, runs: Sequence[Sequence[int]], p: float = 0.0) -> None:
        self.frames = frames
        self.layout = layout_of(runs)
        self.segments = segments_of(self.layout)
        self.rows = self.layout.rows
        self.drop = Drop(keys_of(self.layout), site_key("site", 0), p) if p else None
        self.draw = torch.Generator().manual_seed(0)

    def fresh(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.frames.of(torch.randn(*shape, generator=self.draw).to(dtype))


@pytest.fixture
def frames() -> Any:
    with Frames() as made:
        yield made


def assert_near(found: Tensor, wanted: Tensor, near: float) -> None:
    assert found.shape == wanted.shape
    assert found.isfinite().all()
    size = wanted.float().norm()
    assert size > 0
    assert (found.float() - wanted.float()).norm() <= near * size


def all_near(found: Sequence[Tensor], wanted: Sequence[Tensor], near: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_near(one, other, near)


def test_they_are_chosen_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYTUNE_KERNELS", "triton")
    assert choose_kernels(torch.device("cpu")).name == "triton"
    assert choose_kernels(torch.device("cpu")).fuses
    monkeypatch.setenv("MANYTUNE_KERNELS", "plain")
    assert choose_kernels(torch.device("cuda")).name == "plain"
    monkeypatch.delenv("MANYTUNE_KERNELS")
    assert choose_kernels(torch.device("cpu")).name != "triton"
    if not torch.cuda.is_available():
        assert choose_kernels(torch.device("cuda")).name == "plain", "a small launch shows whether they work"


def test_the_keys_of_tokens_are_the_references_to_the_bit() -> None:
    layout = layout_of((UNEVEN[0], (), (130, 120)))
    runs = Keys.build(layout, [1, 2, 3], 5).runs
    assert layout.rows > 256, "more than one program's"
    assert torch.equal(TRITON.token_keys(layout, runs), PLAIN.token_keys(layout, runs))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("width", [37, 600])
def test_masks_are_the_references_to_the_bit(frames: Frames, p: float, width: int) -> None:
    case = Case(frames, UNEVEN, p)
    x = case.fresh(case.rows, width)
    found = TRITON.drop(x, case.drop)
    assert torch.equal(found, PLAIN.drop(x, case.drop))
    assert (found != 0).any()
    low = case.fresh(case.rows, width, dtype=torch.bfloat16)
    assert torch.equal(TRITON.drop(low, case.drop) != 0, PLAIN.drop(low, case.drop) != 0)


@pytest.mark.parametrize("lengths", [((7, 31),), ((70, 3),)], ids=["tiles", "blocks"])
def test_masks_of_attention_are_the_references_to_the_bit(frames: Frames, lengths: Any) -> None:
    """Queries of zero give every key the same weight; values that are unit vectors show which ones are kept."""
    case = Case(frames, lengths, 0.3)
    width = 2 * 128
    zeros = frames.of(torch.zeros(case.rows, width))
    units = frames.of(torch.eye(128)[case.layout.within].repeat(1, 2))
    call = AttentionCall(case.layout, 2, zeros, zeros, units, torch.zeros(1, 3 * width), 1.0, case.drop, False)
    found = TRITON.attention(call)
    assert torch.equal(found != 0, PLAIN.attention(call) != 0)
    shares = (found[: case.layout.tokens] != 0).float().sum() / (2 * sum(each**2 for each in lengths[0]))
    assert 0.6 < shares < 0.8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "p", "shared"), [(16, 0.0, True), (37, 0.1, False), (96, 0.1, True)])
class TestRows:
    """Kernels that treat each row by itself."""

    def test_residual_norm(self, frames: Frames, dtype: torch.dtype, width: int, p: float, shared: bool) -> None:
        case = Case(frames, UNEVEN, p)
        y, residual, gain = case.fresh(case.rows, width, dtype=dtype), case.fresh(case.rows, width), case.fresh(width)
        bias, shift = (case.fresh(1 if shared else 3, width) for _ in range(2))
        norm = NormCall(case.segments, case.drop, gain, shift, 1e-5)
        found, wanted = (kernels.residual_norm(y, bias, residual, norm) for kernels in (TRITON, PLAIN))
        all_near(found, wanted, NEAR[dtype])
        assert found[1].dtype == dtype
        _, _, normed, rstd = map(frames.of, wanted)
        grad = case.fresh(case.rows, width)
        for grad_hidden in (case.fresh(case.rows, width, dtype=dtype), None):
            rest = (grad_hidden, normed, rstd, norm, dtype)
            ours = TRITON.residual_norm_grad(frames.of(grad), *rest)
            all_near(ours, PLAIN.residual_norm_grad(grad, *rest), NEAR[dtype])
            assert ours[1].dtype == dtype
            sums = (grad, grad_hidden, normed, case.segments)
            all_near(TRITON.norm_sums(*sums), PLAIN.norm_sums(*sums), NEAR[dtype])
            assert not TRITON.norm_sums(*sums)[0][1].any(), "of the run that has no row"

    def test_gelu(self, frames: Frames, dtype: torch.dtype, width: int, p: float, shared: bool) -> None:
        case = Case(frames, UNEVEN, p)
        x, bias = 3 * case.fresh(case.rows, width), case.fresh(1 if shared else 3, width)
        x = frames.of(x.to(dtype))
        assert_near(TRITON.gelu(x, bias, case.segments), PLAIN.gelu(x, bias, case.segments), NEAR[dtype])
        grad = case.fresh(case.rows, width, dtype=dtype)
        wanted = PLAIN.gelu_grad_(grad.clone(), x, bias, case.segments)
        assert TRITON.gelu_grad_(grad, x, bias, case.segments) is grad
        assert_near(grad, wanted, NEAR[dtype])

    def test_segment_sums(self, frames: Frames, dtype: torch.dtype, width: int, p: float, shared: bool) -> None:
        case = Case(frames, UNEVEN, p)
        x = case.fresh(case.rows, 2 * width, dtype=dtype)[:, width:]  # rows that do not lie side by side
        assert_near(TRITON.segment_sums(x, case.segments), PLAIN.segment_sums(x, case.segments), 1e-5)
        last = segments_of(case.layout, 2, 3)
        assert_near(TRITON.segment_sums(last.of(x), last), PLAIN.segment_sums(last.of(x), last), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rank", "width", "p", "group"),
    [(2, 37, 0.1, (0, 3)), (8, 16, 0.0, (1, 3)), (16, 96, 0.1, (2, 3)), (70, 37, 0.1, (1, 3))],
)
def test_lora(frames: Frames, dtype: torch.dtype, rank: int, width: int, p: float, group: tuple[int, int]) -> None:
    case, out, runs = Case(frames, UNEVEN, p), 40, group[1] - group[0]
    x = case.fresh(case.rows, width + 3, dtype=dtype)[:, :width]
    a, b, scale = case.fresh(runs, width, rank), case.fresh(runs, rank, out), 1 + case.fresh(runs).square()
    call = LoraCall(x, segments_of(case.layout, *group), case.drop, a, b, frames.of(scale))
    whole = case.fresh(case.rows, 3 * out, dtype=dtype)
    mine = frames.of(whole)
    wanted = whole.clone()
    xa = TRITON.lora_(mine.chunk(3, 1)[1], call)
    wanted_xa = PLAIN.lora_(wanted.chunk(3, 1)[1], call)
    assert_near(mine, wanted, NEAR[dtype])
    own = slice(call.segments.first, call.segments.first + call.segments.bounds[-1])
    others = torch.ones(case.rows, 3 * out, dtype=torch.bool)
    others[own, out : 2 * out] = False
    assert torch.equal(mine[others], whole[others]), "rows of other runs and columns of the other products"

    grad = case.fresh(case.rows, out, dtype=dtype)
    into = case.fresh(case.rows, width, dtype=dtype)
    wanted_into, before = into.clone(), into.clone()
    grads = TRITON.lora_grad(grad, xa, call, into)
    all_near(grads, PLAIN.lora_grad(grad, wanted_xa, call, wanted_into), NEAR[dtype])
    assert_near(into, wanted_into, NEAR[dtype])
    others = torch.ones(case.rows, dtype=torch.bool)
    others[own] = False
    assert torch.equal(into[others], before[others])
    if group[0] < 2 < group[1]:
        assert not grads[0][1 - group[0]].any(), "of the run that has no row"
    assert all(torch.equal(*pair) for pair in zip(TRITON.lora_grad(grad, xa, call, None), grads, strict=True))


LENGTHS = {
    "16": ((15, 16, 2), (), (1,)),
    "32": ((17, 32), (31, 3)),
    "64": ((33,), (64, 9)),
    "blocks": ((65, 5), (130,)),
}
"""Lengths at the edges of the tiles of 16, 32 and 64 rows, and beyond them."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first_only", [False, True], ids=["every token", "first tokens"])
@pytest.mark.parametrize(("lengths", "heads", "width", "p"), [
    ("16", 2, 8, 0.1), ("32", 1, 24, 0.0), ("64", 2, 16, 0.1), ("blocks", 1, 32, 0.1), ("blocks", 1, 16, 0.0),
])  # fmt: skip
def test_attention(
    frames: Frames, dtype: torch.dtype, first_only: bool, lengths: str, heads: int, width: int, p: float
) -> None:
    check_attention(frames, dtype, first_only, lengths, heads, width, p)


@pytest.mark.parametrize(("dtype", "first_only", "lengths", "heads", "p"), [
    (torch.float32, False, "16", 2, 0.1), (torch.float32, True, "32", 2, 0.0), (torch.bfloat16, False, "64", 2, 0.1),
    (torch.float32, False, "blocks", 1, 0.1), (torch.bfloat16, True, "blocks", 2, 0.0),
])  # fmt: skip
def test_attention_with_a_position_bias(
    frames: Frames, dtype: torch.dtype, first_only: bool, lengths: str, heads: int, p: float
) -> None:
    check_attention(frames, dtype, first_only, lengths, heads, 16, p, positions=True)


def check_attention(
    frames: Frames,
    dtype: torch.dtype,
    first_only: bool,
    lengths: str,
    heads: int,
    width: int,
    p: float,
    *,
    positions: bool = False,
) -> None:
    case, columns = Case(frames, LENGTHS[lengths], p), heads * width
    rows, tokens = case.rows, case.layout.tokens
    q, k, v = case.fresh(rows, 3 * columns, dtype=dtype).chunk(3, 1)
    if first_only:
        q = frames.of(q[case.layout.starts])
    bias = case.fresh(case.layout.runs if p else 1, 3 * columns)
    most = int(case.layout.lengths.max()) + 3
    by_place = case.fresh(heads, 2 * most - 1) if positions else None
    call = AttentionCall(case.layout, heads, q, k, v, bias, width**-0.5, case.drop, first_only, by_place)
    exact = replace(call, q=q.float(), k=k.float(), v=v.float())  # the reference in bf16 rounds at other places
    out = TRITON.attention(call)
    assert_near(out, PLAIN.attention(exact), NEAR[dtype])
    grad = case.fresh(*out.shape, dtype=dtype)
    if not first_only:
        grad[tokens:] = 0
    found, wanted = ([torch.empty(rows, 3 * columns, dtype=dtype)] for _ in range(2))
    made = []
    for kernels, of, to, to_grad in ((TRITON, call, found, grad), (PLAIN, exact, wanted, grad.float())):
        dq, dk, dv = to[0].chunk(3, 1)
        dq = torch.empty(q.shape, dtype=dtype) if first_only else dq
        of_positions = kernels.attention_grad(of, to_grad, dq, dk, dv, of_positions=positions)
        assert (of_positions is not None) is positions
        made.append((dq, dk, dv, *([] if of_positions is None else [of_positions])))
    all_near(*made, NEAR[dtype])
    padded = [made[0][1], made[0][2]] if first_only else [out, *made[0]]
    assert all(not each[tokens:].any() for each in padded), "padding rows are zeros"
    if first_only:
        assert found[0][:, :columns].isnan().all(), "the columns of another tensor"


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice):RuntimeWarning")  # of numpy, in the neighbours' tiles
@pytest.mark.parametrize("neighbour", [1.0, torch.nan], ids=["other rows", "NaN"])
def test_a_runs_results_are_its_own(frames: Frames, neighbour: float) -> None:
    """To the bit, whatever the other runs hold, and where a run's rows lie."""
    own, width, rank = (18, 3, 66), 24, 2
    alone, packed = Case(frames, (own,)), Case(frames, ((7, 40), own, (2,)))
    rows = slice(*packed.layout.token_bounds[1:3])
    draw = torch.Generator().manual_seed(1)

    def both(columns: int) -> tuple[Tensor, Tensor]:
        one = torch.randn(alone.layout.tokens, columns, generator=draw)
        tail = torch.zeros(alone.rows - alone.layout.tokens, columns)
        whole = torch.full((packed.rows, columns), neighbour)
        whole[rows] = one
        return frames.of(torch.cat([one, tail])), frames.of(whole)

    def stacked(*shape: int) -> tuple[Tensor, Tensor]:
        one = torch.randn(1, *shape, generator=draw)
        other = torch.full((1, *shape), neighbour)
        return frames.of(one), frames.of(torch.cat([other, one, other]))

    keys = keys_of(alone.layout)
    whole_keys = torch.zeros(packed.rows, dtype=torch.int32)
    whole_keys[rows] = keys[: alone.layout.tokens]
    drops = [Drop(each, site_key("site", 0), 0.1) for each in (keys, whole_keys)]
    inputs = [both(3 * width), both(width), both(width), stacked(3 * width), stacked(width, rank), stacked(rank, width)]
    results = []
    for number, case in enumerate((alone, packed)):
        qkv, y, residual, bias, a, b = (frames.of(pair[number]) for pair in inputs)
        runs, drop = case.layout.runs, drops[number]
        q, k, v = qkv.chunk(3, 1)
        of_run = slice(0, 1) if runs == 1 else slice(1, 2)
        of_rows = slice(0, alone.layout.tokens) if runs == 1 else rows
        call = AttentionCall(case.layout, 2, q, k, v, bias, 0.3, drop, False)
        attended = TRITON.attention(call)
        dqkv = torch.empty_like(qkv)
        TRITON.attention_grad(call, y, *dqkv.chunk(3, 1))
        lora = LoraCall(y, segments_of(case.layout, 0, runs), drop, a, b, torch.ones(runs))
        into = frames.of(residual)
        xa = TRITON.lora_(into, lora)
        grad_a, grad_b = TRITON.lora_grad(residual, xa, lora, into)
        norm = NormCall(case.segments, drop, torch.ones(width), bias[:, :width], 1e-5)
        normed = TRITON.residual_norm(y, bias[:, :width], residual, norm)
        grads = TRITON.residual_norm_grad(frames.of(residual), y, normed[2], normed[3], norm, torch.float32)
        sums = TRITON.norm_sums(residual, y, normed[2], case.segments)
        by_row = (attended, dqkv, xa, into, *normed, *grads, TRITON.gelu(y, bias[:, :width], case.segments))
        by_run = (grad_a, grad_b, *sums)
        results.append([*(each[of_rows] for each in by_row), *(each[of_run] for each in by_run)])
    assert len(results[0]) == 15
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


class Optimized:
    """Three runs' tensors of unequal sizes and kinds, the same for two sets of kernels."""

    def __init__(self, frames: Frames) -> None:
        self.draw = torch.Generator().manual_seed(2)
        self.frames = frames
        self.tensors = [
            self.tensor(0, (3, 5, 7), decays=True),  # rows that begin at no multiple of 16 bytes
            self.tensor(1, (2, 4112), low=True),  # more than two chunks
            replace(self.tensor(0, (3, 16), decays=True), rates=torch.tensor([1.0, 16.0, 0.3], dtype=torch.float64)),
        ]

    def tensor(self, first: int, shape: tuple[int, ...], *, decays: bool = False, low: bool = False) -> AdamWTensor:
        value, grad, exp_avg, square = (torch.randn(shape, generator=self.draw) for _ in range(4))
        copy = self.frames.of(value.bfloat16()) if low else None
        grad = grad.bfloat16() if low else grad
        parts = map(self.frames.of, (value, grad, 0.1 * exp_avg, square.square()))
        return AdamWTensor(first, *parts, copy, decays, None)


UPDATES = [AdamWUpdate(3 + run, 1e-2 * (run + 1), (0.9, 0.99), 1e-8, 0.1, clip) for run, clip in enumerate((0.5, 0, 9))]


@pytest.mark.parametrize("clips", [True, False])
def test_adamw(frames: Frames, clips: bool) -> None:
    updates = UPDATES if clips else [replace(update, max_grad_norm=0.0) for update in UPDATES]
    ours, plain = Optimized(frames).tensors, Optimized(frames).tensors
    module.TritonKernels().adamw_(ours, updates)
    PLAIN.adamw_(plain, updates)
    for one, other in zip(ours, plain, strict=True):
        all_near((one.value, one.exp_avg, one.exp_avg_sq), (other.value, other.exp_avg, other.exp_avg_sq), 1e-6)
        if other.value_bf16 is not None:
            assert_near(one.value_bf16, other.value_bf16, NEAR[torch.bfloat16])


def test_adamw_of_one_run_knows_no_other(frames: Frames) -> None:
    clean, spoiled = Optimized(frames).tensors, Optimized(frames).tensors
    kernels = module.TritonKernels()
    kernels.adamw_(clean, UPDATES)
    for tensor in spoiled:
        tensor.grad[1 - tensor.first] = torch.nan
    kernels.adamw_(spoiled, UPDATES)
    for one, other in zip(clean, spoiled, strict=True):
        own = [run for run in range(len(one.value)) if run + one.first != 1]
        for part in ("value", "exp_avg", "exp_avg_sq"):
            assert torch.equal(getattr(one, part)[own], getattr(other, part)[own])
        assert other.value[1 - one.first].isnan().all()


def test_adamw_takes_sparse_gradients_and_refuses_other_numbers(frames: Frames) -> None:
    case = Optimized(frames)
    dense = case.tensor(0, (1, 6, 4))
    rows = torch.tensor([[1, 4]])
    sparse = torch.sparse_coo_tensor(rows, torch.ones(2, 4), (6, 4), check_invariants=True).coalesce()
    other = replace(
        dense, value=dense.value.clone(), exp_avg=dense.exp_avg.clone(), exp_avg_sq=dense.exp_avg_sq.clone()
    )
    TRITON.adamw_([replace(dense, grad=sparse)], UPDATES[:1])
    PLAIN.adamw_([replace(other, grad=sparse.to_dense()[None])], UPDATES[:1])
    assert_near(dense.value, other.value, 1e-6)
    with pytest.raises(ValueError, match=r"a gradient is torch\.float64, torch\.strided; not dense fp32 or bf16"):
        TRITON.adamw_([replace(dense, grad=dense.grad.double())], UPDATES[:1])


@pytest.mark.parametrize(("place", "where"), [(16, "behind"), (-1, "in front of")])
def test_what_is_written_outside_of_a_tensor_is_found(place: int, where: str) -> None:
    frames = Frames()
    with frames:
        x = torch.empty(4, 4)
    x.as_strided((1,), (1,), x.storage_offset() + place)[0] = 0.0
    with pytest.raises(AssertionError, match=f"written {where} a tensor"):
        frames.check()
