"""Triton kernels that treat every row by itself, or add up the rows of each run.

A program's tile lies in one run's rows, or treats each row alone, so what it computes does not depend on the neighbours
of a run; sums are made in one order, without atomic operations. The tensors are those of `Kernels` (kernels/base.py);
`keys`, `site`, `level` and `kept` say a dropout (`packing.dropout`): keys of the rows, key of the site, the least hash
that is kept, and 1 / (1 - p).
"""

# mypy: ignore-errors
# ruff: noqa: D103, N803

import triton
import triton.language as tl


@triton.jit
def _finish(x):
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def mix(x):
    """lowbias32 of uint32, as `packing.dropout._mix`."""
    return _finish(x ^ (x >> 16))


@triton.jit
def factors(rows, site, pairs, odd, level, kept):
    """[n, c] fp32 factors of inverted dropout from [n] row keys; channels are [c] pair numbers (from 1) and halves."""
    golden = tl.full((), 0x9E3779B9, tl.uint32)
    h = _finish(mix(rows ^ site)[:, None] ^ mix(pairs * golden)[None, :])
    # Signed 16-bit hashes are compared in the reference: flipping the sign bit makes their order that of unsigned ones.
    half = ((h >> (odd * 16)[None, :]) ^ 0x8000) & 0xFFFF
    return tl.where(half >= level, kept, 0.0)


@triton.jit
def times(a, b, UPCAST: tl.constexpr):
    """A @ b in fp32."""
    if UPCAST:  # the interpreter multiplies bf16 wrongly
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def channel_factors(keys, t, here, site, c, level, kept):
    """`factors` of the rows t [n], where `here`, and the channels c [m]."""
    rows = tl.load(keys + t, mask=here, other=0).to(tl.uint32, bitcast=True)
    return factors(rows, site.to(tl.uint32), (c // 2 + 1).to(tl.uint32), (c & 1).to(tl.uint32), level, kept)


@triton.jit
def token_keys(run_keys, run, sequence, within, keys, count, BLOCK: tl.constexpr):
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = t < count
    golden = tl.full((), 0x9E3779B9, tl.uint32)
    key = tl.load(run_keys + tl.load(run + t, mask=here, other=0), mask=here, other=0).to(tl.uint32, bitcast=True)
    key = mix(key ^ (tl.load(sequence + t, mask=here, other=0).to(tl.uint32) * golden))
    key = mix(key ^ (tl.load(within + t, mask=here, other=0).to(tl.uint32) * golden))
    tl.store(keys + t, key.to(tl.int32, bitcast=True), mask=here)


@triton.jit(do_not_specialize=["site", "level"])
def drop(x, keys, site, level, kept, out, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = (t < count)[:, None] & (c < WIDTH)[None, :]
    at = t[:, None].to(tl.int64) * WIDTH + c[None, :]
    y = tl.load(x + at, mask=m, other=0.0).to(tl.float32)
    y *= channel_factors(keys, t, t < count, site, c, level, kept)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["site", "level"])
def residual_norm(
    y, bias, bias_stride, residual, runs, keys, site, level, kept, gain, shift, shift_stride, epsilon, count,
    normed, rstd, out, hidden,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    here = t < count
    inside = c < WIDTH
    m = here[:, None] & inside[None, :]
    at = t[:, None].to(tl.int64) * WIDTH + c[None, :]
    run = tl.load(runs + t, mask=here, other=0)
    z = tl.load(y + at, mask=m, other=0.0).to(tl.float32)
    z += tl.load(bias + run[:, None] * bias_stride + c[None, :], mask=m, other=0.0)
    if DROP:
        z *= channel_factors(keys, t, here, site, c, level, kept)
    z += tl.load(residual + at, mask=m, other=0.0)
    z = tl.where(m, z, 0.0)
    mean = tl.sum(z, 1) / WIDTH
    centred = tl.where(m, z - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + epsilon)
    n = centred * inverse[:, None]
    o = n * tl.load(gain + c, mask=inside, other=0.0)[None, :]
    o += tl.load(shift + run[:, None] * shift_stride + c[None, :], mask=m, other=0.0)
    tl.store(rstd + t, inverse, mask=here)
    tl.store(normed + at, n, mask=m)
    tl.store(out + at, o, mask=m)
    tl.store(hidden + at, o.to(hidden.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["site", "level"])
def residual_norm_grad(
    grad, grad_hidden, normed, rstd, gain, keys, site, level, kept, count, grad_y,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DROP: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    here = t < count
    inside = c < WIDTH
    m = here[:, None] & inside[None, :]
    at = t[:, None].to(tl.int64) * WIDTH + c[None, :]
    g = tl.load(grad + at, mask=m, other=0.0)
    if HIDDEN:
        g += tl.load(grad_hidden + at, mask=m, other=0.0).to(tl.float32)
    g *= tl.load(gain + c, mask=inside, other=0.0)[None, :]
    n = tl.load(normed + at, mask=m, other=0.0)
    slope = tl.sum(g * n, 1) / WIDTH
    mean = tl.sum(g, 1) / WIDTH
    dz = (g - mean[:, None] - n * slope[:, None]) * tl.load(rstd + t, mask=here, other=0.0)[:, None]
    tl.store(grad + at, dz, mask=m)
    if DROP:
        dz *= channel_factors(keys, t, here, site, c, level, kept)
    tl.store(grad_y + at, dz.to(grad_y.dtype.element_ty), mask=m)


@triton.jit
def _gelu_slope(u):
    return 0.5 * (1.0 + tl.math.erf(u * 0.7071067811865476)) + u * tl.exp(-0.5 * u * u) * 0.3989422804014327


@triton.jit
def gelu(
    x, bias, bias_stride, runs, grad, count,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Without SLOPE `grad` gets GELU(x + bias); with it, it is multiplied by the derivative there."""
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = t < count
    m = here[:, None] & (c < WIDTH)[None, :]
    at = t[:, None].to(tl.int64) * WIDTH + c[None, :]
    run = tl.load(runs + t, mask=here, other=0)
    u = tl.load(x + at, mask=m, other=0.0).to(tl.float32)
    u += tl.load(bias + run[:, None] * bias_stride + c[None, :], mask=m, other=0.0)
    if SLOPE:
        made = tl.load(grad + at, mask=m, other=0.0).to(tl.float32) * _gelu_slope(u)
    else:
        made = u * 0.5 * (1.0 + tl.math.erf(u * 0.7071067811865476))
    tl.store(grad + at, made.to(grad.dtype.element_ty), mask=m)


@triton.jit
def run_sums(
    x, x_stride, hidden, normed, bounds, sums, products,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, HIDDEN: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Of each run, the sum of its rows of x, of x + hidden, and with PRODUCTS of (x + hidden) * normed."""
    run = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < WIDTH
    zero = tl.load(bounds)  # of neighbouring runs alone, x has no rows of those before them
    first, last = tl.load(bounds + run) - zero, tl.load(bounds + run + 1) - zero
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    product = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(first, last, ROWS):
        t = start + tl.arange(0, ROWS)
        m = (t < last)[:, None] & inside[None, :]
        g = tl.load(x + t[:, None] * x_stride + c[None, :], mask=m, other=0.0).to(tl.float32)
        at = t[:, None] * WIDTH + c[None, :]
        if HIDDEN:
            g += tl.load(hidden + at, mask=m, other=0.0).to(tl.float32)
        total += g
        if PRODUCTS:
            product += g * tl.load(normed + at, mask=m, other=0.0)
    tl.store(sums + run * WIDTH + c, tl.sum(total, 0), mask=inside)
    if PRODUCTS:
        tl.store(products + run * WIDTH + c, tl.sum(product, 0), mask=inside)
