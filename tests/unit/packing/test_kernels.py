"""The compiled kernels against the plain ones, and the plain ones against autograd."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from forked import run_forked
from manytune.packing.dropout import Drop, Keys, generator, site_key
from manytune.packing.kernels import AttentionCall, Kernels, LoraCall, NormCall, Segments, build, choose_kernels
from manytune.packing.kernels.compiled import CompiledKernels
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.packing.kernels.reference import _reduced as reduced
from manytune.packing.layout import Layout, build_layout
from manytune.utils.errors import StudyError
from tiny import random_rows

PLAIN = ReferenceKernels()
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
"""Two bf16 roundings of one number may fall on either side; the sums before them are fp32."""


def layout_of(runs: int, per_run: int = 3, longest: int = 21) -> Layout:
    data = random_rows(runs * per_run, longest=longest, seed=runs)
    return build_layout(data, [np.arange(run * per_run, (run + 1) * per_run) for run in range(runs)])


class Rows:
    """Some rows of a packed batch, and what comes with them."""

    def __init__(self, runs: int, width: int, dtype: torch.dtype, p: float, seed: int = 0) -> None:
        self.layout = layout_of(runs)
        self.segments = Segments(self.layout.token_bounds, torch.device("cpu"), self.layout.rows - self.layout.tokens)
        self.draw = generator("kernels", seed)
        self.dtype = dtype
        self.width = width
        keys = Keys.build(self.layout, list(range(runs)), 3)
        self.drop = Drop(keys.tokens, site_key("site", 0), p) if p else None

    def fresh(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self.draw).to(dtype or self.dtype)

    def rows(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.fresh(self.layout.rows, self.width, dtype=dtype)

    def by_run(self, width: int | None = None, *, shared: bool = False) -> Tensor:
        runs = 1 if shared else len(self.segments)
        return self.fresh(runs, width or self.width, dtype=torch.float32)


def assert_close(ours: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == wanted.dtype
    assert ours.shape == wanted.shape
    assert wanted.float().abs().max() > 0
    limit = TOLERANCE[torch.bfloat16 if ours.dtype == torch.bfloat16 else dtype] * float(wanted.abs().max())
    torch.testing.assert_close(ours, wanted, rtol=0, atol=limit)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 3).map(lambda n: 16 * n) | st.integers(1, 40))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(shape=shapes, p=st.sampled_from([0.0, 0.1, 0.5]), shared=st.booleans())
def test_residual_norm(
    compiled: CompiledKernels, dtype: torch.dtype, shape: tuple[int, int], p: float, shared: bool
) -> None:
    case = Rows(*shape, dtype, p)
    y, residual = case.rows(), case.rows(torch.float32)
    bias, shift = case.by_run(shared=shared), case.by_run(shared=shared)
    gain = case.fresh(case.width, dtype=torch.float32)
    norm = NormCall(case.segments, case.drop, gain, shift, 1e-5)
    inputs = (y, bias, residual, norm)
    ours, plain = compiled.residual_norm(*inputs), PLAIN.residual_norm(*inputs)
    if case.width > 2:  # of a row of one or two, the norm is all rounding
        for mine, wanted in zip(ours, plain, strict=True):
            limit = 1e-5 * float(wanted.abs().max()) if wanted.dtype == torch.float32 else None
            torch.testing.assert_close(mine, wanted, rtol=1e-2 if limit is None else 1e-4, atol=limit or 1e-2)
    _, _, normed, rstd = plain
    grad = case.rows(torch.float32)
    for grad_hidden in (case.rows(), None):
        rest = (grad_hidden, normed, rstd, norm, dtype)
        mine = compiled.residual_norm_grad(grad.clone(), *rest)
        wanted = PLAIN.residual_norm_grad(grad.clone(), *rest)
        if case.width > 2:
            assert_close(mine[0], wanted[0], torch.float32)
            assert_close(mine[1], wanted[1], dtype)
        sums = zip(
            compiled.norm_sums(grad, grad_hidden, normed, case.segments),
            PLAIN.norm_sums(grad, grad_hidden, normed, case.segments),
            strict=True,
        )
        for one, other in sums:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_residual_norm_and_its_gradient_are_those_of_torch() -> None:
    case = Rows(3, 24, torch.float32, 0.0)
    y, residual = case.rows().requires_grad_(), case.rows().requires_grad_()
    bias, shift, gain = case.by_run(shared=True), case.by_run(shared=True), case.fresh(24).requires_grad_()
    shift.requires_grad_()
    wanted = torch.nn.functional.layer_norm(residual + y + bias, (24,), gain, shift[0], 1e-5)
    norm = NormCall(case.segments, None, gain, shift, 1e-5)
    out, low, normed, rstd = PLAIN.residual_norm(y, bias, residual, norm)
    torch.testing.assert_close(out, wanted)
    assert torch.equal(out, low)
    assert out.data_ptr() != low.data_ptr()
    grad = case.rows()
    expected = torch.autograd.grad(wanted, [residual, y, shift, gain], grad, retain_graph=True)
    norm = NormCall(case.segments, None, gain.detach(), shift, 1e-5)
    found = PLAIN.residual_norm_grad(grad, None, normed.detach(), rstd.detach(), norm, torch.float32)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    grad[case.layout.tokens :] = 0
    expected = torch.autograd.grad(wanted, [residual, y, shift, gain], grad)
    sums = PLAIN.norm_sums(grad, None, normed.detach(), case.segments)
    torch.testing.assert_close(sums[0].sum(0, keepdim=True), expected[2])
    torch.testing.assert_close(sums[1].sum(0), expected[3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(shape=shapes, shared=st.booleans())
def test_gelu(compiled: CompiledKernels, dtype: torch.dtype, shape: tuple[int, int], shared: bool) -> None:
    case = Rows(*shape, dtype, 0.0)
    x, bias, grad = 3 * case.rows(), case.by_run(shared=shared), case.rows()
    assert_close(compiled.gelu(x, bias, case.segments), PLAIN.gelu(x, bias, case.segments), dtype)
    mine = compiled.gelu_grad_(grad.clone(), x, bias, case.segments)
    assert_close(mine, PLAIN.gelu_grad_(grad.clone(), x, bias, case.segments), dtype)


def test_the_slope_of_gelu_is_that_of_torch() -> None:
    case = Rows(2, 50, torch.float32, 0.0)
    x, grad = (4 * case.rows()).requires_grad_(), case.rows()
    (wanted,) = torch.autograd.grad(torch.nn.functional.gelu(x), x, grad)
    zero = torch.zeros(1, 50)
    torch.testing.assert_close(PLAIN.gelu_grad_(grad, x.detach(), zero, case.segments), wanted)


@pytest.mark.parametrize("far", [-60.0, -20.0, 20.0, 60.0, 1e30, -1e30, 0.0])
def test_gelu_far_out(kernels: Kernels, far: float) -> None:
    """Where the exponential under- or overflows, GELU is the identity or nothing."""
    case = Rows(1, 4, torch.float32, 0.0)
    x = torch.full((case.layout.rows, 4), far)
    zero = torch.zeros(1, 4)
    torch.testing.assert_close(kernels.gelu(x, zero, case.segments), torch.nn.functional.gelu(x), rtol=1e-6, atol=1e-6)
    slope = kernels.gelu_grad_(torch.ones_like(x), x, zero, case.segments)
    expected = 0.5 if far == 0 else float(far > 0)
    torch.testing.assert_close(slope, torch.full_like(x, expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(shape=shapes, p=st.sampled_from([0.0, 0.3]))
def test_padding_and_its_adjoint(
    compiled: CompiledKernels, dtype: torch.dtype, shape: tuple[int, int], p: float
) -> None:
    case = Rows(*shape, dtype, p)
    tokens = case.layout.tokens
    segments = Segments(case.layout.token_bounds, torch.device("cpu"))
    drop = case.drop and Drop(case.drop.keys[:tokens], case.drop.site, p)
    wide = case.fresh(tokens, 3 * case.width)
    x = wide[:, case.width : 2 * case.width]  # rows further apart than they are long, as q, k and v are
    padded = compiled.pad(x, segments, drop)
    assert torch.equal(padded, PLAIN.pad(x, segments, drop))
    held = padded.abs().sum(-1) > 0
    assert int(held.sum()) <= tokens
    grads = torch.randn(padded.shape, generator=case.draw).to(dtype)
    sums = []
    for kernels in (compiled, PLAIN):
        y = wide.clone()
        kernels.unpad_add_(y[:, case.width : 2 * case.width], grads, segments, drop)
        assert torch.equal(y[:, : case.width], wide[:, : case.width])
        assert torch.equal(y[:, 2 * case.width :], wide[:, 2 * case.width :])
        sums.append(y)
    assert_close(sums[0], sums[1], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=30)
@given(shape=shapes, rank=st.integers(1, 18), p=st.sampled_from([0.0, 0.3]), below=st.booleans())
def test_lora(
    compiled: CompiledKernels, dtype: torch.dtype, shape: tuple[int, int], rank: int, p: float, below: bool
) -> None:
    """Of activations in bf16 the compiled products are those in fp32, up to rank 16."""
    runs, width = shape
    case = Rows(runs, width, dtype, p)
    tokens, outputs = case.layout.tokens, width + 5
    segments = Segments(case.layout.token_bounds, torch.device("cpu"))
    drop = case.drop and Drop(case.drop.keys[:tokens], case.drop.site, p)
    wide = case.fresh(tokens, 3 * width)
    x = wide[:, width : 2 * width]  # rows further apart than they are long, as q, k and v are
    y, grad = case.fresh(tokens, outputs), case.fresh(tokens, outputs)
    a, b = (case.fresh(runs, *shape, dtype=torch.float32) for shape in ((width, rank), (rank, outputs)))
    scale = torch.linspace(0.5, 2, runs)
    found = []
    for kernels, kind in ((compiled, dtype), (PLAIN, torch.float32)):
        # Of what is added to, zero: else its own rounding would hide a small sum.
        ys, below_x = torch.zeros_like(y, dtype=kind), torch.zeros(tokens, width, dtype=kind) if below else None
        call = LoraCall(x.to(kind), segments, drop, a, b, scale)
        low = kernels.lora_(ys, call)
        grads = kernels.lora_grad(grad.to(kind), low, call, below_x)
        found.append((ys, *([] if below_x is None else [below_x]), *grads))
    for ours, wanted in zip(*found, strict=True):
        size = float(wanted.abs().max()) + 1e-6
        exact = dtype == torch.float32 or (ours.dtype == torch.float32 and rank <= 16)
        torch.testing.assert_close(ours.float() / size, wanted / size, rtol=0, atol=2e-6 if exact else 2e-2)


def test_lora_of_a_run_does_not_depend_on_its_neighbours(compiled: CompiledKernels) -> None:
    """Not in a bit, and whatever a neighbour holds."""
    bounds, width, rank = (0, 70, 75, 180), 24, 4
    draw = generator("lora neighbours")
    x, grad = torch.randn(180, width, generator=draw), torch.randn(180, width, generator=draw)
    a, b = torch.randn(3, width, rank, generator=draw), torch.randn(3, rank, width, generator=draw)
    x[70:75], scale = float("nan"), torch.ones(3)

    def made(first: int, last: int) -> list[Tensor]:
        rows, runs = slice(bounds[first], bounds[last]), slice(first, last)
        segments = Segments(tuple(bound - bounds[first] for bound in bounds[first : last + 1]), x.device)
        y, below = torch.zeros_like(x[rows]), torch.zeros_like(x[rows])
        call = LoraCall(x[rows], segments, None, a[runs], b[runs], scale[runs])
        low = compiled.lora_(y, call)
        grads = compiled.lora_grad(grad[rows], low, call, below)
        return [y, below, *grads]

    together = made(0, 3)
    for run in (0, 2):
        rows = slice(bounds[run], bounds[run + 1])
        y, below, grad_a, grad_b = made(run, run + 1)
        for ours, alone in zip(together, (y, below, grad_a, grad_b), strict=True):
            own = ours[rows] if len(ours) == 180 else ours[run : run + 1]
            assert torch.equal(own, alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(shape=shapes)
def test_segment_sums(compiled: CompiledKernels, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    case = Rows(*shape, dtype, 0.0)
    rows = case.rows()
    index, tokens = case.segments.runs[: case.layout.tokens], case.layout.tokens
    expected = torch.zeros(len(case.segments), case.width).index_add_(0, index, rows[:tokens].float())
    on_a_gpu = reduced(rows[:tokens], case.segments)
    for found in (compiled.segment_sums(rows, case.segments), PLAIN.segment_sums(rows, case.segments), on_a_gpu):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_segment_sums_add_low_precision_in_fp32(kernels: Kernels) -> None:
    """In bf16 a sum of ones stops at 256."""
    segments = Segments((0, 300, 1000), torch.device("cpu"))
    ones = torch.ones(1000, 1, dtype=torch.bfloat16)
    for sums in (kernels.segment_sums(ones, segments), reduced(ones, segments)):
        assert sums.dtype == torch.float32
        assert sums.flatten().tolist() == [300.0, 700.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_in_place(compiled: CompiledKernels, dtype: torch.dtype) -> None:
    case = Rows(2, 37, dtype, 0.3)
    assert case.drop is not None
    x = case.rows()
    ours = compiled.drop(x, case.drop)
    torch.testing.assert_close(ours, PLAIN.drop(x, case.drop))
    assert 0.2 < float((ours == 0).float().mean()) < 0.4


class Heads:
    """A case of attention."""

    def __init__(
        self,
        runs: int = 3,
        heads: int = 2,
        width: int = 8,
        dtype: torch.dtype = torch.float32,
        p: float = 0.0,
        *,
        first_only: bool = False,
        longest: int = 21,
        positions: bool = False,
    ) -> None:
        self.layout = layout_of(runs, longest=longest)
        draw = generator("attention", runs, heads, width)
        hidden = heads * width
        rows = self.layout.rows
        joined = torch.randn(rows, 3 * hidden, generator=draw).to(dtype)
        q, k, v = joined.chunk(3, 1)
        if first_only:
            q = torch.randn(len(self.layout.starts), hidden, generator=draw).to(dtype)
        bias = torch.randn(runs, 3 * hidden, generator=draw)
        keys = Keys.build(self.layout, list(range(runs)), 3)
        drop = Drop(keys.tokens, site_key("attention", 1), p) if p else None
        by_place = torch.randn(heads, 2 * longest + 3, generator=draw) if positions else None
        self.call = AttentionCall(self.layout, heads, q, k, v, bias, width**-0.5, drop, first_only, by_place)
        self.grad = torch.randn(q.shape, generator=draw).to(dtype)

    def run(self, kernels: Kernels) -> list[Tensor]:
        """The output and the gradients of q, k and v, and of the position bias if there is one."""
        grads = [torch.empty_like(x.contiguous()) for x in (self.call.q, self.call.k, self.call.v)]
        out = kernels.attention(self.call)
        of_positions = kernels.attention_grad(self.call, self.grad, *grads, of_positions=True)
        return [out, *grads, *([] if of_positions is None else [of_positions])]


@pytest.mark.parametrize("positions", [False, True], ids=["", "with a position bias"])
@pytest.mark.parametrize("first_only", [False, True], ids=["all ask", "first asks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize(
    ("runs", "heads", "width", "longest"), [(1, 1, 16, 9), (3, 2, 8, 21), (2, 3, 20, 40), (2, 2, 64, 150)]
)
def test_attention(
    compiled: CompiledKernels,
    runs: int,
    heads: int,
    width: int,
    longest: int,
    p: float,
    dtype: torch.dtype,
    first_only: bool,
    positions: bool,
) -> None:
    case = Heads(runs, heads, width, dtype, p, first_only=first_only, longest=longest, positions=positions)
    found = case.run(compiled)
    assert len(found) == 4 + positions
    for ours, plain in zip(found, case.run(PLAIN), strict=True):
        limit = (1e-5 if dtype == torch.float32 else 2e-2) * float(plain.abs().max())
        torch.testing.assert_close(ours, plain, rtol=0, atol=limit)


@pytest.mark.parametrize("positions", [False, True])
def test_attention_is_that_of_each_sequence_alone(kernels: Kernels, positions: bool) -> None:
    case = Heads(3, 2, 8, positions=positions)
    out = kernels.attention(case.call)
    layout, call = case.layout, case.call
    assert (out[layout.tokens :] == 0).all()
    assert layout.rows > layout.tokens
    bias = call.bias[layout.token_run].chunk(3, 1)
    for start, length in zip(layout.starts.tolist(), layout.lengths.tolist(), strict=True):
        rows = slice(start, start + length)
        q, k, v = (
            (x + b)[rows].view(length, 2, 8).transpose(0, 1)
            for x, b in zip((call.q, call.k, call.v), bias, strict=True)
        )
        added = None
        if call.position_bias is not None:
            middle = call.position_bias.shape[1] // 2
            place = torch.arange(length)
            added = call.position_bias[:, middle + place[:, None] - place]
        alone = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
        torch.testing.assert_close(out[rows], alone.transpose(0, 1).reshape(length, 16), rtol=1e-5, atol=1e-5)


def test_attention_keeps_nan_in_its_sequence(kernels: Kernels) -> None:
    case = Heads(3, 2, 8, p=0.2)
    clean = case.run(kernels)
    start, length = int(case.layout.starts[4]), int(case.layout.lengths[4])
    for x in (case.call.q, case.call.k, case.call.v, case.grad):
        x[start : start + length] = float("nan")
    spoilt = case.run(kernels)
    others = torch.ones(case.layout.rows, dtype=torch.bool)
    others[start : start + length] = False
    for before, after in zip(clean, spoilt, strict=True):
        assert torch.equal(after[others], before[others])
        assert after[~others].isnan().all()


@pytest.mark.parametrize("first_only", [False, True])
def test_a_position_bias_for_shorter_sequences_is_refused(compiled: CompiledKernels, first_only: bool) -> None:
    case = Heads(first_only=first_only, positions=True)
    longest = int(case.layout.lengths.max())
    for size in (2 * longest - 3, 2 * longest):
        by_place = torch.zeros(2, size)
        with pytest.raises(ValueError, match="position_bias"):
            compiled.attention(replace(case.call, position_bias=by_place))
    exact = replace(case.call, position_bias=torch.zeros(2, 2 * longest - 1))
    bare = replace(case.call, position_bias=None)
    torch.testing.assert_close(compiled.attention(exact), compiled.attention(bare))


def test_attention_to_far_scores_is_finite(kernels: Kernels) -> None:
    """The exponential of a score that is far below the best one is nothing, not an overflow."""
    case = Heads(2, 2, 8)
    case.call.q.mul_(300.0)
    for part in case.run(kernels):
        assert part.isfinite().all()


@dataclass(frozen=True)
class Multiplied:
    """The three products of n rows with a matrix [outputs, inputs], whose rows lie apart in memory."""

    x: Tensor  # [n, inputs]
    grad: Tensor  # [n, outputs]
    weight: Tensor  # [outputs, inputs]

    @classmethod
    def draw(cls, rows: int, inputs: int, outputs: int) -> Multiplied:
        draw = generator("products", 0)
        x, grad = (torch.randn(rows, width + 3, generator=draw)[:, 2:-1] for width in (inputs, outputs))
        return cls(x, grad, torch.randn(outputs, inputs, generator=draw))

    def by(self, kernels: Kernels) -> tuple[Tensor, Tensor, Tensor]:
        """Y [n, outputs], and the gradients of x and of the weight."""
        return (
            kernels.product(self.x, self.weight),
            kernels.product_grad(self.grad, self.weight),
            kernels.weight_grad(self.grad, self.x),
        )


@pytest.fixture
def multiplying(compiled: CompiledKernels, monkeypatch: pytest.MonkeyPatch) -> CompiledKernels:
    """Compiled kernels that multiply, whatever this processor."""
    monkeypatch.setattr(compiled, "multiplies", True)
    return compiled


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 30), inputs=st.integers(1, 70), outputs=st.integers(1, 70))
@example(rows=200, inputs=400, outputs=112)  # more rows than a block, more columns than a strip, and a second depth
@example(rows=390, inputs=33, outputs=13)
def test_products(multiplying: CompiledKernels, rows: int, inputs: int, outputs: int) -> None:
    case = Multiplied.draw(rows, inputs, outputs)
    exact = Multiplied(case.x.double(), case.grad.double(), case.weight.double())
    for found, wanted in zip(case.by(multiplying), exact.by(PLAIN), strict=True):
        assert_close(found, wanted.float(), torch.float32)
        assert found.is_contiguous()


def test_products_of_a_row_do_not_depend_on_the_others(multiplying: CompiledKernels) -> None:
    case = Multiplied.draw(200, 400, 40)
    y, grad_x, _ = case.by(multiplying)
    for rows in (slice(3, 4), slice(7, 20), slice(90, 200)):
        part = Multiplied(case.x[rows], case.grad[rows], case.weight)
        for found, whole in zip(part.by(multiplying)[:2], (y, grad_x), strict=True):
            assert torch.equal(found, whole[rows])


def test_products_in_bf16_are_torchs(multiplying: CompiledKernels) -> None:
    case = Multiplied.draw(8, 16, 24)
    case = Multiplied(case.x.bfloat16(), case.grad.bfloat16(), case.weight.bfloat16())
    for found, wanted in zip(case.by(multiplying), case.by(PLAIN), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("avx512", [True, False])
def test_kernels_of_eight_lanes_multiply_where_torch_has_no_avx512(
    compiled: CompiledKernels, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_KERNEL_TARGET", compiled.name.split()[-1].replace("compiled", "native"))
    monkeypatch.setattr("manytune.packing.kernels.compiled.has_avx512", lambda: avx512)
    kernels = build.load_library(CompiledKernels)
    assert kernels is not None
    assert kernels.name == compiled.name
    assert kernels.multiplies is (kernels.lanes == 8 and not avx512)


def test_results_do_not_depend_on_the_number_of_threads(multiplying: CompiledKernels) -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            case = Rows(4, 70, torch.bfloat16, 0.1)
            inputs = (case.rows(), case.by_run(), case.rows(torch.float32))
            gain, shift = case.fresh(70, dtype=torch.float32), case.by_run()
            out = multiplying.residual_norm(*inputs, NormCall(case.segments, case.drop, gain, shift, 1e-5))
            sums = multiplying.segment_sums(out[1], case.segments)
            products = Multiplied.draw(200, 400, 112).by(multiplying)
            found.append([*out, sums, *products, *Heads(4, 3, 16, torch.bfloat16, 0.1).run(multiplying)])
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_plain_kernels_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYTUNE_KERNELS", "plain")
    assert choose_kernels(torch.device("cpu")).name == "plain"


def test_other_devices_use_the_plain_kernels() -> None:
    assert choose_kernels(torch.device("cuda")).name == "plain"


def choose_in_a_new_process(**environment: str) -> str:
    code = "import torch; from manytune.packing.kernels import kernel_path; print(kernel_path(torch.device('cpu')))"
    return run_forked([sys.executable, "-c", code], env={**os.environ, **environment}, check=True).stdout.strip()


def test_without_a_compiler_the_plain_kernels_do(tmp_path: Path) -> None:
    assert choose_in_a_new_process(PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), CXX="") == "plain"


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    cache = tmp_path / "cache"
    assert choose_in_a_new_process(CXX=str(broken), XDG_CACHE_HOME=str(cache)) == "plain"
    assert list((cache / "manytune").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert choose_in_a_new_process(XDG_CACHE_HOME=str(tmp_path / "file")) == "plain"


def test_the_library_is_compiled_once(native: CompiledKernels, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert choose_in_a_new_process(**environment) == "compiled"
    (library,) = (tmp_path / "manytune").iterdir()
    before = library.stat().st_mtime_ns
    assert choose_in_a_new_process(**environment) == "compiled"
    assert library.stat().st_mtime_ns == before


def test_the_target_is_part_of_the_librarys_name(cache: Cache, tmp_path: Path) -> None:
    """So that kernels of one width are never taken for those of another."""
    found = compute_in_a_new_process(
        XDG_CACHE_HOME=str(tmp_path), CXX=str(cache.compiler), MANYTUNE_KERNEL_TARGET="x86-64-v2"
    )
    assert found == "compiled for x86-64-v2 24"
    names = {library.stem.rpartition("-")[0] for library in cache.folder.iterdir()}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("target", "able", "said"),
    [
        ("x86-64-v9", ["ssse3"], "x86-64-v9: there is no such target here. Allowed are: native; without"),
        (
            "x86-64-v4",
            ["ssse3", "sse4_1", "sse4_2", "popcnt"],
            "x86-64-v4: this processor lacks avx2, fma3, f16c, bmi,",
        ),
        ("x86-64-v3", ["ssse3", "sse4_1", "sse4_2", "popcnt"], "bmi2, lzcnt. Allowed are: native, x86-64-v2; without"),
    ],
)
def test_a_target_that_cannot_run_here_is_refused(
    target: str, able: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"architecture": "x86_64", **dict.fromkeys(able, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setenv("MANYTUNE_KERNEL_TARGET", target)
    with pytest.raises(StudyError, match=re.escape(said)):
        build.load_library(CompiledKernels)


COMPUTE = """
import torch
from manytune.packing.kernels import Segments, choose_kernels, kernel_problems
kernels = choose_kernels(torch.device("cpu"))
sums = kernels.segment_sums(torch.ones(6, 4), Segments((0, 2, 6), torch.device("cpu")))
print(kernels.name, int(sums.sum()), *kernel_problems())
"""


def compute_in_a_new_process(code: str = COMPUTE, /, **environment: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = run_forked(command, env={**os.environ, **environment}, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


@dataclass(frozen=True)
class Cache:
    """A cache with a library in it, whose compiler is quick: it copies what was compiled before."""

    library: Path
    compiler: Path

    @property
    def folder(self) -> Path:
        return self.library.parent

    def add(self, content: bytes) -> None:
        """Put another library in the place of the one, under the name that its digest gives it."""
        self.library.unlink()
        key = self.library.stem.rpartition("-")[0]
        path = self.folder / f"{key}-{hashlib.sha256(content).hexdigest()[:32]}.so"
        path.write_bytes(content)
        path.chmod(0o600)

    def compute(self, code: str = COMPUTE) -> str:
        environment = {"XDG_CACHE_HOME": str(self.folder.parent), "CXX": str(self.compiler)}
        return compute_in_a_new_process(code, **environment)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    with monkeypatch.context() as patch:
        patch.setattr(build, "_load", lambda content, path: content)
        compiled = build.load_library(lambda content: content)  # of this source: the user's cache may hold others
    if compiled is None:
        pytest.skip("no C++ compiler on this machine")
    (tmp_path / "compiled").write_bytes(compiled)
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nfor last; do :; done\nexec cp {tmp_path}/compiled "$last"\n')
    compiler.chmod(0o755)
    folder = tmp_path / "manytune"
    Cache(folder / "none", compiler).compute()
    (library,) = folder.iterdir()
    return Cache(library, compiler)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [half, lambda path: os.truncate(path, 0), one_bit, link, folder, lambda path: path.chmod(0o666)]
)
def test_a_library_that_is_not_as_it_was_compiled_is_compiled_anew(
    cache: Cache, damage: Callable[[Path], None]
) -> None:
    whole = cache.library.read_bytes()
    damage(cache.library)
    assert cache.compute() == "compiled 24"
    if not cache.library.is_dir():
        assert cache.library.read_bytes() == whole
        assert not cache.library.is_symlink()
        assert cache.library.stat().st_mode & 0o777 == 0o600


def test_a_library_that_lacks_a_function_is_compiled_anew(cache: Cache) -> None:
    cache.add(cache.library.read_bytes().replace(b"adamw_f32", b"adamx_f32"))
    assert cache.compute() == "compiled 24"
    assert list(cache.folder.iterdir()) == [cache.library]


def test_a_library_that_cannot_be_loaded_leaves_the_plain_kernels(cache: Cache) -> None:
    cache.add(b"no library at all")
    printed = cache.compute()
    assert printed.startswith("plain 24 The plain kernels are used, which are slower: ")
    assert printed.count("\n") == 0


def test_a_library_that_is_cut_while_it_runs_does_no_harm(cache: Cache) -> None:
    cut = COMPUTE.replace("sums =", f"import os; os.truncate({str(cache.library)!r}, 0)\nsums =")
    assert cache.compute(cut) == "compiled 24"
    assert cache.library.stat().st_size == 0


def test_code_is_not_loaded_from_a_folder_that_others_can_write_to(cache: Cache) -> None:
    cache.folder.chmod(0o777)
    printed = compute_in_a_new_process(MANYTUNE_CACHE_DIR=str(cache.folder), CXX=str(cache.compiler))
    assert printed.startswith("plain 24 The plain kernels are used, which are slower: others can write to ")
    assert str(cache.folder) in printed


def test_a_compiler_that_fails_is_told_of(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    broken.chmod(0o755)
    environment = {**os.environ, "CXX": str(broken), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "error", "-c", COMPUTE]  # fresh: nothing that is imported may warn
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    printed = done.stdout.strip()
    assert printed.startswith("plain 24 The plain kernels are used")
    assert printed.endswith("fails: no space left.")


def test_another_compiler_or_processor_makes_a_library_of_its_own(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(cache.compiler, ns=(1, 1))
    assert cache.compute() == "compiled 24"
    assert len(list(cache.folder.iterdir())) == 2

    text = "processor\t: 0\nmodel\t\t: 17\nflags\t\t: fpu vme\ncpu MHz\t\t: 2000\n"
    seen = []
    for own in (text, text.replace("17", "18"), text.replace("2000", "2001")):
        monkeypatch.setattr(Path, "read_text", lambda path, own=own: own)
        seen.append(build._processor())
    assert seen[0] != seen[1]
    assert seen[0] == seen[2]


def test_a_compiler_may_be_given_with_words_of_its_own(cache: Cache) -> None:
    words = Cache(cache.library, Path(f"{shutil.which('env')} {cache.compiler}"))
    assert words.compute() == "compiled 24"
