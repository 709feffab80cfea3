"""Triton kernels of LoRA's products: every run of a group multiplies its own rows by its own factors.

A tile of rows begins where a run's rows begin, so what is computed of a run does not depend on the others. Grids are as
large as the longest run needs, and programs behind the end of a shorter run stop at once: so a grid does not depend on
the bounds, which are read on the device. `factors` and what says a dropout: see triton_rows.py.
"""

# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl

from manytune.packing.kernels.triton_rows import channel_factors, times


@triton.jit(do_not_specialize=["site", "level"])
def narrow(
    x, x_stride, weight, weight_run, weight_in, weight_out, scale, bounds, keys, site, level, kept, out,
    WIDTH: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr,
    DROP: tl.constexpr, SCALED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Out [n, RANK] = (drop(x) [n, WIDTH] @ weight [RANK wide]) * scale of each run; weights are fp32, in any order."""
    run = tl.program_id(1)
    first, last = tl.load(bounds + run), tl.load(bounds + run + 1)
    t = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if first + tl.program_id(0) * ROWS < last:
        here = t < last
        r = tl.program_id(2) * OUTER + tl.arange(0, OUTER)
        wide = r < RANK
        acc = tl.zeros((ROWS, OUTER), tl.float32)
        for start in range(0, WIDTH, INNER):
            c = start + tl.arange(0, INNER)
            inside = c < WIDTH
            m = here[:, None] & inside[None, :]
            rows = tl.load(x + t[:, None] * x_stride + c[None, :], mask=m, other=0.0)
            if DROP:
                rows = (rows.to(tl.float32) * channel_factors(keys, t, here, site, c, level, kept)).to(rows.dtype)
            w = tl.load(
                weight + run * weight_run + c[:, None] * weight_in + r[None, :] * weight_out,
                mask=inside[:, None] & wide[None, :], other=0.0,
            )  # fmt: skip
            if SCALED:
                w *= tl.load(scale + run)
            w = w.to(rows.dtype)
            acc += times(rows, w, UPCAST)
        tl.store(out + t[:, None] * RANK + r[None, :], acc.to(out.dtype.element_ty), mask=here[:, None] & wide[None, :])


@triton.jit(do_not_specialize=["site", "level"])
def widen(
    inner, weight, weight_run, weight_in, weight_out, scale, bounds, keys, site, level, kept, y, y_stride,
    WIDTH: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr,
    DROP: tl.constexpr, SCALED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Y [n, WIDTH] += drop(inner [n, RANK] @ weight [WIDTH wide] * scale) of each run."""
    run = tl.program_id(1)
    first, last = tl.load(bounds + run), tl.load(bounds + run + 1)
    t = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if first + tl.program_id(0) * ROWS < last:
        here = t < last
        c = tl.program_id(2) * OUTER + tl.arange(0, OUTER)
        inside = c < WIDTH
        acc = tl.zeros((ROWS, OUTER), tl.float32)
        for start in range(0, RANK, INNER):
            r = start + tl.arange(0, INNER)
            wide = r < RANK
            rows = tl.load(inner + t[:, None] * RANK + r[None, :], mask=here[:, None] & wide[None, :], other=0.0)
            w = tl.load(
                weight + run * weight_run + r[:, None] * weight_in + c[None, :] * weight_out,
                mask=wide[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            if SCALED:
                w *= tl.load(scale + run)
            w = w.to(rows.dtype)
            acc += times(rows, w, UPCAST)
        if DROP:
            acc *= channel_factors(keys, t, here, site, c, level, kept)
        m = here[:, None] & inside[None, :]
        to = y + t[:, None] * y_stride + c[None, :]
        tl.store(to, (tl.load(to, mask=m, other=0.0).to(tl.float32) + acc).to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["site", "level"])
def factor_grad(
    x, x_stride, inner, scale, bounds, keys, site, level, kept, grad, grad_run, grad_wide, grad_rank,
    WIDTH: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OUTER: tl.constexpr,
    DROP: tl.constexpr, SCALED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grad of each run = drop(x) [n, WIDTH]ᵀ @ inner [n, RANK] * scale, summed over the run's rows in their order."""
    run = tl.program_id(0)
    first, last = tl.load(bounds + run), tl.load(bounds + run + 1)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.program_id(2) * OUTER + tl.arange(0, OUTER)
    inside, wide = c < WIDTH, r < RANK
    acc = tl.zeros((COLUMNS, OUTER), tl.float32)
    for start in range(first, last, ROWS):
        t = start + tl.arange(0, ROWS)
        here = t < last
        rows = tl.load(x + t[:, None] * x_stride + c[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        if DROP:
            rows = (rows.to(tl.float32) * channel_factors(keys, t, here, site, c, level, kept)).to(rows.dtype)
        z = tl.load(inner + t[:, None] * RANK + r[None, :], mask=here[:, None] & wide[None, :], other=0.0)
        acc += times(tl.trans(rows), z, UPCAST)
    if SCALED:
        acc *= tl.load(scale + run)
    to = grad + run * grad_run + c[:, None] * grad_wide + r[None, :] * grad_rank
    tl.store(to, acc, mask=inside[:, None] & wide[None, :])
