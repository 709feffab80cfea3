"""Triton kernels of attention within each sequence, forward and backward, with keyed dropout of the weights.

A sequence of up to 64 tokens is one tile of 16, 32 or 64 rows (in fp32 up to 32); a longer one is walked in blocks of
rows with a running softmax (Dao 2023, https://arxiv.org/abs/2307.08691). Which of these a sequence gets depends on its
own length alone. Every launch is for one kind of tile, of sequences longer than LEAST and at most L; its other programs
stop at once. The program behind those of the sequences, if there is one, zeroes the padding rows behind the tokens.
"""

# mypy: ignore-errors
# ruff: noqa: D103, N803

import triton
import triton.language as tl

from manytune.packing.kernels.triton_rows import factors, times


@triton.jit
def _rows_of(x, rows, stride, here, bias, head, D: tl.constexpr, BD: tl.constexpr):
    """[n, BD] rows of x [., heads * D] of one head, plus the bias of their run; rounded as the sum is kept."""
    c = tl.arange(0, BD)
    at = rows[:, None] * stride + head * D + c[None, :]
    found = tl.load(x + at, mask=here[:, None] & (c < D)[None, :], other=0.0)
    added = tl.load(bias + head * D + c, mask=c < D, other=0.0)
    total = tl.where(here[:, None], found.to(tl.float32) + added[None, :], 0.0)
    return total.to(found.dtype)


@triton.jit
def _plain_rows(x, rows, stride, here, head, D: tl.constexpr, BD: tl.constexpr):
    c = tl.arange(0, BD)
    at = rows[:, None] * stride + head * D + c[None, :]
    return tl.load(x + at, mask=here[:, None] & (c < D)[None, :], other=0.0)


@triton.jit
def _store_rows(x, rows, stride, here, head, value, D: tl.constexpr, BD: tl.constexpr):
    c = tl.arange(0, BD)
    at = rows[:, None] * stride + head * D + c[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=here[:, None] & (c < D)[None, :])


@triton.jit
def _scores(
    q, k, i, j, i_here, j_here, head, positions, most, scale, POSITIONS: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """[n, L] scores of queries and keys in the places i and j, with the bias by their difference if there is one."""
    found = times(q, tl.trans(k), UPCAST) * scale
    if POSITIONS:
        at = head * (2 * most - 1) + i[:, None] - j[None, :] + most - 1
        found += tl.load(positions + at, mask=i_here[:, None] & j_here[None, :], other=0.0)
    return found


@triton.jit
def _weight_factors(keys, rows, here, site, head, j, level, kept):
    """[n, L] dropout factors of the weights that queries, known by their tokens, give to the keys j."""
    own = tl.load(keys + rows, mask=here, other=0).to(tl.uint32, bitcast=True)
    return factors(
        own, site.to(tl.uint32), (head * 65536 + j // 2 + 1).to(tl.uint32), (j & 1).to(tl.uint32), level, kept
    )


@triton.jit
def _zero_rows(x, stride, first, last, head, D: tl.constexpr, BD: tl.constexpr):
    for start in range(first, last, 16):
        rows = start + tl.arange(0, 16)
        _store_rows(x, rows, stride, rows < last, head, tl.zeros((16, BD), tl.float32), D, BD)


@triton.jit(do_not_specialize=["site", "level"])
def attention_tile(
    q, k, v, q_stride, k_stride, bias, bias_stride, starts, lengths, runs, sequences, bounds, bound_count, row_count,
    keys, site, level, kept, positions, most_tokens, scale, out, out_stride,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, L: tl.constexpr, LQ: tl.constexpr, LEAST: tl.constexpr,
    POSITIONS: tl.constexpr, DROP: tl.constexpr, FIRST: tl.constexpr, CLEAR: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    s, head = tl.program_id(0), tl.program_id(1)
    if s == sequences:
        if CLEAR and not FIRST:  # the first tokens' outputs have no padding rows
            _zero_rows(out, out_stride, tl.load(bounds + bound_count), row_count, head, D, BD)
    else:
        length = tl.load(lengths + s)
        if (length > LEAST) & (length <= L):
            first, own_bias = tl.load(starts + s), bias + tl.load(runs + s) * bias_stride
            i, j = tl.arange(0, LQ), tl.arange(0, L)
            i_here, j_here = i < length, j < length
            q_rows = first + i
            if FIRST:
                i_here, q_rows = i < 1, s + i
            qq = _rows_of(q, q_rows, q_stride, i_here, own_bias, head, D, BD)
            kk = _rows_of(k, first + j, k_stride, j_here, own_bias + HEADS * D, head, D, BD)
            vv = _rows_of(v, first + j, k_stride, j_here, own_bias + 2 * HEADS * D, head, D, BD)
            p = _scores(qq, kk, i, j, i_here, j_here, head, positions, most_tokens, scale, POSITIONS, UPCAST)
            p = tl.where(j_here[None, :], p, float("-inf"))
            p = tl.exp(p - tl.max(p, 1)[:, None])
            p = p / tl.sum(p, 1)[:, None]
            if DROP:
                p *= _weight_factors(keys, first + i, i_here, site, head, j, level, kept)
            _store_rows(out, q_rows, out_stride, i_here, head, times(p.to(vv.dtype), vv, UPCAST), D, BD)


@triton.jit(do_not_specialize=["site", "level"])
def attention_tile_grad(
    q, k, v, q_stride, k_stride, bias, bias_stride, starts, lengths, runs, sequences, bounds, bound_count, row_count,
    keys, site, level, kept, positions, most_tokens, scale, grad, grad_stride, dq, dq_stride, dk, dv, dk_stride,
    sums, deltas,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, L: tl.constexpr, LQ: tl.constexpr, LEAST: tl.constexpr,
    POSITIONS: tl.constexpr, DROP: tl.constexpr, FIRST: tl.constexpr, KEEP: tl.constexpr, CLEAR: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    s, head = tl.program_id(0), tl.program_id(1)
    if s == sequences:
        if CLEAR:
            first = tl.load(bounds + bound_count)
            _zero_rows(dk, dk_stride, first, row_count, head, D, BD)
            _zero_rows(dv, dk_stride, first, row_count, head, D, BD)
            if not FIRST:
                _zero_rows(dq, dq_stride, first, row_count, head, D, BD)
    else:
        length = tl.load(lengths + s)
        if (length > LEAST) & (length <= L):
            first, own_bias = tl.load(starts + s), bias + tl.load(runs + s) * bias_stride
            i, j = tl.arange(0, LQ), tl.arange(0, L)
            i_here, j_here = i < length, j < length
            q_rows = first + i
            if FIRST:
                i_here, q_rows = i < 1, s + i
            qq = _rows_of(q, q_rows, q_stride, i_here, own_bias, head, D, BD)
            kk = _rows_of(k, first + j, k_stride, j_here, own_bias + HEADS * D, head, D, BD)
            vv = _rows_of(v, first + j, k_stride, j_here, own_bias + 2 * HEADS * D, head, D, BD)
            do = _plain_rows(grad, q_rows, grad_stride, i_here, head, D, BD)
            p = _scores(qq, kk, i, j, i_here, j_here, head, positions, most_tokens, scale, POSITIONS, UPCAST)
            p = tl.where(j_here[None, :], p, float("-inf"))
            most = tl.max(p, 1)
            p = tl.exp(p - most[:, None])
            total = tl.sum(p, 1)
            p = p / total[:, None]
            p = tl.where(i_here[:, None], p, 0.0)
            dp = times(do, tl.trans(vv), UPCAST)
            dropped = p
            if DROP:
                f = _weight_factors(keys, first + i, i_here, site, head, j, level, kept)
                dp *= f
                dropped = p * f
            delta = tl.sum(p * dp, 1)
            if KEEP:
                tl.store(sums + (first + i) * HEADS + head, most + tl.log(total), mask=i_here)
                tl.store(deltas + (first + i) * HEADS + head, delta, mask=i_here)
            ds = p * (dp - delta[:, None]) * scale
            low = ds.to(qq.dtype)
            j_rows = first + j
            _store_rows(dv, j_rows, dk_stride, j_here, head, times(tl.trans(dropped.to(do.dtype)), do, UPCAST), D, BD)
            _store_rows(dk, j_rows, dk_stride, j_here, head, times(tl.trans(low), qq, UPCAST), D, BD)
            _store_rows(dq, q_rows, dq_stride, i_here, head, times(low, kk, UPCAST), D, BD)


@triton.jit(do_not_specialize=["site", "level"])
def attention_blocks(
    q, k, v, q_stride, k_stride, bias, bias_stride, starts, lengths, runs,
    keys, site, level, kept, positions, most_tokens, scale, out, out_stride,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr,
    POSITIONS: tl.constexpr, DROP: tl.constexpr, FIRST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    s, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + s)
    queries = length
    if FIRST:
        queries = tl.minimum(length, 1)
    if (length > LEAST) & (block * BLOCK < queries):
        first, own_bias = tl.load(starts + s), bias + tl.load(runs + s) * bias_stride
        i = block * BLOCK + tl.arange(0, BLOCK)
        i_here = i < queries
        q_rows = first + i
        if FIRST:
            q_rows = s + i
        qq = _rows_of(q, q_rows, q_stride, i_here, own_bias, head, D, BD)
        most = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        acc = tl.zeros((BLOCK, BD), tl.float32)
        for start in range(0, length, BLOCK):
            j = start + tl.arange(0, BLOCK)
            j_here = j < length
            kk = _rows_of(k, first + j, k_stride, j_here, own_bias + HEADS * D, head, D, BD)
            vv = _rows_of(v, first + j, k_stride, j_here, own_bias + 2 * HEADS * D, head, D, BD)
            p = _scores(qq, kk, i, j, i_here, j_here, head, positions, most_tokens, scale, POSITIONS, UPCAST)
            p = tl.where(j_here[None, :], p, float("-inf"))
            new = tl.maximum(most, tl.max(p, 1))
            p = tl.exp(p - new[:, None])
            shrink = tl.exp(most - new)
            total = total * shrink + tl.sum(p, 1)
            if DROP:
                p *= _weight_factors(keys, first + i, i_here, site, head, j, level, kept)
            acc = acc * shrink[:, None] + times(p.to(vv.dtype), vv, UPCAST)
            most = new
        _store_rows(out, q_rows, out_stride, i_here, head, acc / total[:, None], D, BD)


@triton.jit(do_not_specialize=["site", "level"])
def attention_blocks_grad_queries(
    q, k, v, q_stride, k_stride, bias, bias_stride, starts, lengths, runs,
    keys, site, level, kept, positions, most_tokens, scale, grad, grad_stride, dq, dq_stride, sums, deltas,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr,
    POSITIONS: tl.constexpr, DROP: tl.constexpr, FIRST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dq; and for the keys' gradients, of each query and head the log of the softmax's sum, and Σ p dp."""
    s, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + s)
    queries = length
    if FIRST:
        queries = tl.minimum(length, 1)
    if (length > LEAST) & (block * BLOCK < queries):
        first, own_bias = tl.load(starts + s), bias + tl.load(runs + s) * bias_stride
        i = block * BLOCK + tl.arange(0, BLOCK)
        i_here = i < queries
        q_rows = first + i
        if FIRST:
            q_rows = s + i
        qq = _rows_of(q, q_rows, q_stride, i_here, own_bias, head, D, BD)
        do = _plain_rows(grad, q_rows, grad_stride, i_here, head, D, BD)
        most = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        delta = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, length, BLOCK):
            j = start + tl.arange(0, BLOCK)
            j_here = j < length
            kk = _rows_of(k, first + j, k_stride, j_here, own_bias + HEADS * D, head, D, BD)
            vv = _rows_of(v, first + j, k_stride, j_here, own_bias + 2 * HEADS * D, head, D, BD)
            p = _scores(qq, kk, i, j, i_here, j_here, head, positions, most_tokens, scale, POSITIONS, UPCAST)
            p = tl.where(j_here[None, :], p, float("-inf"))
            new = tl.maximum(most, tl.max(p, 1))
            p = tl.exp(p - new[:, None])
            shrink = tl.exp(most - new)
            dp = times(do, tl.trans(vv), UPCAST)
            if DROP:
                dp *= _weight_factors(keys, first + i, i_here, site, head, j, level, kept)
            total = total * shrink + tl.sum(p, 1)
            delta = delta * shrink + tl.sum(p * dp, 1)
            most = new
        delta = delta / total
        log_sum = most + tl.log(total)
        acc = tl.zeros((BLOCK, BD), tl.float32)
        for start in range(0, length, BLOCK):
            j = start + tl.arange(0, BLOCK)
            j_here = j < length
            kk = _rows_of(k, first + j, k_stride, j_here, own_bias + HEADS * D, head, D, BD)
            vv = _rows_of(v, first + j, k_stride, j_here, own_bias + 2 * HEADS * D, head, D, BD)
            p = _scores(qq, kk, i, j, i_here, j_here, head, positions, most_tokens, scale, POSITIONS, UPCAST)
            p = tl.exp(p - log_sum[:, None])
            p = tl.where(j_here[None, :] & i_here[:, None], p, 0.0)
            dp = times(do, tl.trans(vv), UPCAST)
            if DROP:
                dp *= _weight_factors(keys, first + i, i_here, site, head, j, level, kept)
            ds = p * (dp - delta[:, None]) * scale
            acc += times(ds.to(kk.dtype), kk, UPCAST)
        _store_rows(dq, q_rows, dq_stride, i_here, head, acc, D, BD)
        tl.store(sums + (first + i) * HEADS + head, log_sum, mask=i_here)
        tl.store(deltas + (first + i) * HEADS + head, delta, mask=i_here)


@triton.jit(do_not_specialize=["site", "level"])
def attention_blocks_grad_keys(
    q, k, v, q_stride, k_stride, bias, bias_stride, starts, lengths, runs,
    keys, site, level, kept, positions, most_tokens, scale, grad, grad_stride, dk, dv, dk_stride, sums, deltas,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr,
    POSITIONS: tl.constexpr, DROP: tl.constexpr, FIRST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    s, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + s)
    queries = length
    if FIRST:
        queries = tl.minimum(length, 1)
    if (length > LEAST) & (block * BLOCK < length):
        first, own_bias = tl.load(starts + s), bias + tl.load(runs + s) * bias_stride
        j = block * BLOCK + tl.arange(0, BLOCK)
        j_here = j < length
        kk = _rows_of(k, first + j, k_stride, j_here, own_bias + HEADS * D, head, D, BD)
        vv = _rows_of(v, first + j, k_stride, j_here, own_bias + 2 * HEADS * D, head, D, BD)
        acc_k = tl.zeros((BLOCK, BD), tl.float32)
        acc_v = tl.zeros((BLOCK, BD), tl.float32)
        for start in range(0, queries, BLOCK):
            i = start + tl.arange(0, BLOCK)
            i_here = i < queries
            q_rows = first + i
            if FIRST:
                q_rows = s + i
            qq = _rows_of(q, q_rows, q_stride, i_here, own_bias, head, D, BD)
            do = _plain_rows(grad, q_rows, grad_stride, i_here, head, D, BD)
            log_sum = tl.load(sums + (first + i) * HEADS + head, mask=i_here, other=0.0)
            delta = tl.load(deltas + (first + i) * HEADS + head, mask=i_here, other=0.0)
            p = _scores(qq, kk, i, j, i_here, j_here, head, positions, most_tokens, scale, POSITIONS, UPCAST)
            p = tl.exp(p - log_sum[:, None])
            p = tl.where(j_here[None, :] & i_here[:, None], p, 0.0)
            dp = times(do, tl.trans(vv), UPCAST)
            dropped = p
            if DROP:
                f = _weight_factors(keys, first + i, i_here, site, head, j, level, kept)
                dp *= f
                dropped = p * f
            ds = p * (dp - delta[:, None]) * scale
            acc_v += times(tl.trans(dropped.to(do.dtype)), do, UPCAST)
            acc_k += times(tl.trans(ds.to(qq.dtype)), qq, UPCAST)
        _store_rows(dk, first + j, dk_stride, j_here, head, acc_k, D, BD)
        _store_rows(dv, first + j, dk_stride, j_here, head, acc_v, D, BD)


@triton.jit(do_not_specialize=["site", "level"])
def attention_position_grad(
    q, k, v, q_stride, k_stride, bias, bias_stride, starts, lengths, runs,
    keys, site, level, kept, positions, most_tokens, scale, grad, grad_stride, sums, deltas, out,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr,
    DROP: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Of each sequence and head, the gradient of the position bias: sums along the diagonals of the scores' gradient.

    A program adds up BLOCK diagonals, query after query, so that the order is always the same.
    `sums` and `deltas` are what the other kernels keep of each query and head.
    """
    s, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + s)
    queries = length
    if FIRST:
        queries = tl.minimum(length, 1)
    if block * BLOCK < length - 1 + queries:
        first, own_bias = tl.load(starts + s), bias + tl.load(runs + s) * bias_stride
        apart = block * BLOCK + tl.arange(0, BLOCK) - (length - 1)  # a query's place less its key's
        acc = tl.zeros((BLOCK,), tl.float32)
        at = head * (2 * most_tokens - 1) + apart + most_tokens - 1
        added = tl.load(positions + at, mask=apart < queries, other=0.0)
        one = tl.arange(0, 1)
        for i in range(0, queries):
            j = i - apart
            here = (j >= 0) & (j < length)
            q_row = first + i
            if FIRST:
                q_row = s + i
            qq = _rows_of(q, q_row + one, q_stride, one < 1, own_bias, head, D, BD).to(tl.float32)
            do = _plain_rows(grad, q_row + one, grad_stride, one < 1, head, D, BD).to(tl.float32)
            kk = _rows_of(k, first + j, k_stride, here, own_bias + HEADS * D, head, D, BD).to(tl.float32)
            vv = _rows_of(v, first + j, k_stride, here, own_bias + 2 * HEADS * D, head, D, BD).to(tl.float32)
            log_sum = tl.load(sums + (first + i) * HEADS + head)
            delta = tl.load(deltas + (first + i) * HEADS + head)
            p = tl.exp(tl.sum(qq * kk, 1) * scale + added - log_sum)
            dp = tl.sum(do * vv, 1)
            if DROP:
                dp *= tl.sum(_weight_factors(keys, first + i + one, one < 1, site, head, j, level, kept), 0)
            acc += tl.where(here, p * (dp - delta), 0.0)
        size = 2 * most_tokens - 1
        tl.store(out + s * HEADS * size + at, acc, mask=apart < queries)
