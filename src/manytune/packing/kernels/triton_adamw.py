"""Triton kernels of AdamW over many tensors at once, each run with its own rate and gradient norm.

All tensors of all runs are cut into chunks; a row of `chunks` [n, 8] int64 says one: the addresses of its value, its
gradient, both moments and of its copy in bf16 (0: none), its number of elements, its run, and flags (1: the gradient is
bf16; 2: weight decay applies; 4: addresses and number are multiples of 16), with the bits of an fp32 in the upper half:
the tensor's learning rate as a multiple of its run's. The chunks of one run lie side by side, in
an order that is the run's own. `settings` [R, 8] fp32 is what `adamw_settings` makes of the runs' updates.
"""

# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def _at(row, part: tl.constexpr, dtype: tl.constexpr, i, ALIGNED: tl.constexpr):
    """Where the elements i of a chunk's part lie."""
    at = tl.load(row + part).to(tl.pointer_type(dtype)) + i
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    return at


@triton.jit
def _gradient(row, i, here, ALIGNED: tl.constexpr):
    if tl.load(row + 7) & 1:
        grad = tl.load(_at(row, 1, tl.bfloat16, i, ALIGNED), mask=here, other=0.0).to(tl.float32)
    else:
        grad = tl.load(_at(row, 1, tl.float32, i, ALIGNED), mask=here, other=0.0)
    return grad


@triton.jit
def _here(row, i, ALIGNED: tl.constexpr):
    """Which of the elements i a chunk has."""
    count = tl.load(row + 5)
    if ALIGNED:
        count = tl.multiple_of(count, 16)
    return i < count


@triton.jit
def _sum_of_squares(row, to, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    i = tl.arange(0, BLOCK)
    grad = _gradient(row, i, _here(row, i, ALIGNED), ALIGNED)
    tl.store(to, tl.sum(grad * grad, 0))


@triton.jit
def squares(chunks, sums, BLOCK: tl.constexpr):
    """The sum of squares of each chunk's gradient."""
    chunk = tl.program_id(0)
    row = chunks + chunk * 8
    if tl.load(row + 7) & 4:
        _sum_of_squares(row, sums + chunk, BLOCK, True)
    else:
        _sum_of_squares(row, sums + chunk, BLOCK, False)


@triton.jit
def clip_factors(sums, run_chunks, settings, factors, BLOCK: tl.constexpr):
    """What each run's gradient is scaled by, so that its norm is at most the run's `max_grad_norm`."""
    run = tl.program_id(0)
    first, last = tl.load(run_chunks + run), tl.load(run_chunks + run + 1)
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(first, last, BLOCK):
        i = start + tl.arange(0, BLOCK)
        acc += tl.load(sums + i, mask=i < last, other=0.0)
    most = tl.load(settings + run * 8 + 6)
    norm = tl.sqrt(tl.sum(acc, 0))
    # Written so that a norm that is no number makes the factor none either, as in torch's clamp.
    factor = most / (norm + 1e-6)
    factor = tl.where(factor > 1.0, 1.0, factor)
    tl.store(factors + run, tl.where(most > 0.0, factor, 1.0))


@triton.jit
def _update(row, settings, factors, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    run, flags = tl.load(row + 6), tl.load(row + 7)
    i = tl.arange(0, BLOCK)
    here = _here(row, i, ALIGNED)
    own = settings + run * 8
    step_size, new_mean = tl.load(own), tl.load(own + 1)
    old_square, new_square = tl.load(own + 2), tl.load(own + 3)
    epsilon, decay, root = tl.load(own + 4), tl.load(own + 5), tl.load(own + 7)
    rate = (flags >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    step_size, decay = step_size * rate, decay * rate
    grad = _gradient(row, i, here, ALIGNED) * tl.load(factors + run)
    value_at = _at(row, 0, tl.float32, i, ALIGNED)
    mean_at, square_at = _at(row, 2, tl.float32, i, ALIGNED), _at(row, 3, tl.float32, i, ALIGNED)
    value = tl.load(value_at, mask=here, other=0.0)
    mean = tl.load(mean_at, mask=here, other=0.0)
    square = tl.load(square_at, mask=here, other=0.0)
    value = tl.where((flags & 2) != 0, value * (1.0 - decay), value)
    mean += new_mean * (grad - mean)
    square = old_square * square + new_square * grad * grad
    value -= step_size * mean / (tl.sqrt(square) / root + epsilon)
    tl.store(value_at, value, mask=here)
    tl.store(mean_at, mean, mask=here)
    tl.store(square_at, square, mask=here)
    if tl.load(row + 4) != 0:
        tl.store(_at(row, 4, tl.bfloat16, i, ALIGNED), value.to(tl.bfloat16), mask=here)


@triton.jit
def adamw(chunks, settings, factors, alive, BLOCK: tl.constexpr):
    """Updates the tensors of the runs that are `alive` [R] fp32, not 0."""
    row = chunks + tl.program_id(0) * 8
    if tl.load(alive + tl.load(row + 6)) != 0.0:
        if tl.load(row + 7) & 4:
            _update(row, settings, factors, BLOCK, True)
        else:
            _update(row, settings, factors, BLOCK, False)
