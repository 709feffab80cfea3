"""Keyed randomness: every draw of a run derives from the run's own seed, wherever the run lies.

A dropout mask is a counter-based hash, so that no generator carries state from one run, step or module to
the next. The key of one element is

    (run seed, optimizer step, site, call of the site, sequence in the run's batch, position, channel)

where a site is a module, known by its path, and the call counts how often that module has run in this forward
pass (ALBERT calls one module many times). For attention the channel is (head, key position). Neither the pack
nor the place in memory is part of the key, so a run draws the same masks alone and among 31 others.

The finalizer is that of MurmurHash3 (Appleby, public domain), the constants those of lowbias32 (Wellons,
"Prospecting for Hash Functions"). Each 32-bit hash serves two channels with 16 bits each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from manytune.packing.layout import Layout

_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9 - (1 << 32)
_HEAD_STRIDE = 1 << 16
"""Channels between two heads in the key of an attention mask: more than the longest sequence, so that the
channel of (head, key position) does not depend on the padded length."""


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits from any parts, the same on every machine (SHA-256 of their text)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@lru_cache(maxsize=4096)
def site_key(site: str, call: int) -> int:
    """The 32-bit key of one call of one site, as a signed integer."""
    return _key_of("site", site, call)


@dataclass
class Keys:
    """The keys of all rows (tokens or sequences) of a packed batch, each run at an optimizer step of its own."""

    tokens: Tensor  # [T] int32
    sequences: Tensor  # [S] int32, those of each sequence's first token
    runs: Tensor  # [R] int32, for what belongs to no sequence

    @staticmethod
    def build(layout: Layout, seeds: Sequence[int], step: int | Sequence[int]) -> Keys:
        """Keys for the layout's tokens; `seeds` are those of its R runs, `step` (from 0) is of all or of each."""
        runs = torch.from_numpy(run_keys(seeds, step)).to(layout.token_run.device)
        return Keys.of_tokens(layout, runs, token_keys(layout, runs))

    @staticmethod
    def of_tokens(layout: Layout, runs: Tensor, tokens: Tensor) -> Keys:
        """Those of a layout's rows; `tokens` [T] are what a set of kernels made of `runs` [R]."""
        return Keys(tokens, tokens[layout.starts], runs)


def run_keys(seeds: Sequence[int], step: int | Sequence[int]) -> np.ndarray:
    """[R] int32 keys of runs from their seeds; the optimizer step, from 0, is of all or of each."""
    steps = [step] * len(seeds) if isinstance(step, int) else step
    return np.array([_key_of("dropout", seed, own) for seed, own in zip(seeds, steps, strict=True)], dtype=np.int32)


def token_keys(layout: Layout, runs: Tensor) -> Tensor:
    """[T] int32 keys of a layout's tokens from those of its runs, [R] int32."""
    tokens = runs[layout.token_run]
    tokens = _mix(tokens ^ (layout.sequence_index.to(torch.int32) * _GOLDEN))
    return _mix(tokens ^ (layout.within.to(torch.int32) * _GOLDEN))


@dataclass(frozen=True)
class Drop:
    """Keyed dropout of some rows."""

    keys: Tensor  # [n] int32 keys of the rows
    site: int  # the key of the site and its call
    p: float  # the probability that an element is dropped


def keep_mask(rows: Tensor, site: int, channels: Tensor, p: float) -> Tensor:
    """[n, 2 * len(channels)] bool, True where dropout with probability p keeps the element.

    `rows` are [n] int32 keys of rows, `site` is a key from `site_key`, and `channels` are [ceil(c / 2)] int32 keys of
    channels, each of which serves two. p has a resolution of 2**-16.
    """
    x = _mix(rows ^ site)[:, None] ^ channels[None, :]
    x.mul_(_MULTIPLY_1)
    _xorshift_(x, 15)
    x.mul_(_MULTIPLY_2)
    _xorshift_(x, 16)
    return x.view(torch.int16) >= threshold_of(p)


def threshold_of(p: float) -> int:
    """The least 16-bit hash, as a signed integer, that dropout with probability p keeps."""
    return min(round(p * 65536), 65535) - 32768  # 65536 would wrap round to keeping everything


def dropout_scale(rows: Tensor, site: int, channels: int, p: float, dtype: torch.dtype) -> Tensor:
    """[n, channels] factors of inverted dropout: 0 where dropped, 1 / (1 - p) where kept."""
    keep = keep_mask(rows, site, channel_keys(channels, rows.device), p)
    return _scaled(keep[:, :channels], p, dtype)


def attention_dropout_scale(
    rows: Tensor, site: int, shape: tuple[int, int, int], p: float, dtype: torch.dtype
) -> Tensor:
    """[S, heads, L, L] factors of inverted dropout for `shape` = (S, heads, L); rows are S * L queries."""
    sequences, heads, length = shape
    keep = keep_mask(rows, site, _attention_channel_keys(heads, length, rows.device), p)
    keep = keep.view(sequences, length, heads, -1)[..., :length].transpose(1, 2)
    return _scaled(keep, p, dtype)


def _scaled(keep: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """0 and 1 / (1 - p) for False and True; read as bytes, because torch converts bool seven times slower."""
    return keep.view(torch.uint8).to(dtype).mul_(1.0 / (1.0 - p))


def head_keys(rows: Tensor, heads: int) -> Tensor:
    """[S, heads, L] int32 keys of the rows of attention weights, from those of S * L queries [S, L]."""
    head = torch.arange(1, heads + 1, dtype=torch.int32, device=rows.device) * _HEAD_STRIDE
    return _mix(rows[:, None, :] ^ _mix(head * _GOLDEN)[None, :, None])


def numbered_keys(key: Tensor, count: int) -> Tensor:
    """[count] int32 keys of rows that are known by their number alone; `key` is that of their run."""
    number = torch.arange(1, count + 1, dtype=torch.int32, device=key.device)
    return _mix(key ^ (number * _GOLDEN))


@lru_cache(maxsize=256)
def channel_keys(count: int, device: torch.device) -> Tensor:
    """[ceil(count / 2)] int32 keys of pairs of channels."""
    pairs = torch.arange(1, (count + 1) // 2 + 1, dtype=torch.int32, device=device)
    return _mix(pairs * _GOLDEN)


@lru_cache(maxsize=256)
def _attention_channel_keys(heads: int, length: int, device: torch.device) -> Tensor:
    """[heads * ceil(length / 2)] int32 keys of pairs of key positions, head by head."""
    pairs = torch.arange(1, (length + 1) // 2 + 1, dtype=torch.int32, device=device)
    head = torch.arange(heads, dtype=torch.int32, device=device) * _HEAD_STRIDE
    return _mix((head[:, None] + pairs[None, :]) * _GOLDEN).reshape(-1)


def _mix(x: Tensor) -> Tensor:
    """lowbias32 of an int32 tensor: every input bit changes every output bit with probability near 1/2."""
    x = x.clone()
    _xorshift_(x, 16)
    x.mul_(_MULTIPLY_1)
    _xorshift_(x, 15)
    x.mul_(_MULTIPLY_2)
    _xorshift_(x, 16)
    return x


def _xorshift_(x: Tensor, bits: int) -> None:
    """X ^= x >>> bits, in place; torch shifts int32 arithmetically, so the sign bits are masked off."""
    shifted = x >> bits
    shifted.bitwise_and_((1 << (32 - bits)) - 1)
    x.bitwise_xor_(shifted)


def _key_of(*parts: object) -> int:
    """A 32-bit key derived from any parts, as a signed integer."""
    value = derive_seed(*parts) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
