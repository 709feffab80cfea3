"""The masks are deterministic, so each statistical test passes always or never; its bound is 5 deviations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manytune.data.splits import Encoded
from manytune.packing.context import Context
from manytune.packing.dropout import (
    Keys,
    attention_dropout_scale,
    derive_seed,
    dropout_scale,
    generator,
    keep_mask,
    site_key,
)
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.packing.layout import Layout, build_layout

SEQUENCES, LENGTH, CHANNELS = 32, 16, 64
HEADS = 4
PROBABILITIES = (0.1, 0.5)


def equal_rows(count: int, length: int) -> Encoded:
    offsets = np.arange(count + 1, dtype=np.int64) * length
    ids = np.zeros(offsets[-1], dtype=np.int64)
    return Encoded(ids=ids, types=ids, offsets=offsets, labels=np.zeros(count), truncated=0)


def layout_of(count: int = SEQUENCES, length: int = LENGTH, runs: int = 1) -> Layout:
    return build_layout(equal_rows(count, length), [np.arange(count)] * runs)


def draw(
    p: float, *, seed: int = 7, step: int = 0, path: str = "layer", call: int = 0, channels: int = CHANNELS
) -> Tensor:
    """What dropout keeps, [sequences, positions, channels]."""
    keys = Keys.build(layout_of(), [seed], step)
    scale = dropout_scale(keys.tokens, site_key(path, call), channels, p, torch.float32)
    return (scale > 0).view(SEQUENCES, LENGTH, channels)


def draw_attention(p: float) -> Tensor:
    """What attention dropout keeps, [sequences, heads, queries, keys]."""
    keys = Keys.build(layout_of(), [7], 0)
    shape = (SEQUENCES, HEADS, LENGTH)
    return attention_dropout_scale(keys.tokens, site_key("attention", 0), shape, p, torch.float32) > 0


def assert_unrelated(samples: Sequence[Tensor] | Tensor, p: float) -> None:
    """No two of k samples of n kept elements each are correlated."""
    rows = torch.stack([sample.flatten() for sample in samples]).double()
    count, size = rows.shape
    assert count >= 2
    centred = (rows - (1 - p)) / math.sqrt(p * (1 - p))
    correlations = (centred @ centred.T / size).fill_diagonal_(0.0)
    assert float(correlations.abs().max()) < 5 / math.sqrt(size)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p(p: float) -> None:
    for keep in (draw(p), draw_attention(p)):
        deviation = math.sqrt(keep.numel() * p * (1 - p))
        assert abs(int((~keep).sum()) - keep.numel() * p) < 5 * deviation


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize(
    "draws",
    [
        pytest.param(lambda p: [draw(p, seed=s) for s in range(12)], id="seeds"),
        pytest.param(lambda p: [draw(p, step=s) for s in range(12)], id="steps"),
        pytest.param(lambda p: [draw(p, seed=a, step=b) for a in range(4) for b in range(4)], id="seed × step"),
        pytest.param(lambda p: [draw(p, path=f"layer.{n}.output") for n in range(12)], id="sites"),
        pytest.param(lambda p: [draw(p, call=n) for n in range(12)], id="calls"),
    ],
)
def test_runs_steps_sites_and_calls_draw_apart(draws: Callable[[float], list[Tensor]], p: float) -> None:
    assert_unrelated(draws(p), p)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_channels_positions_and_sequences_draw_apart(p: float) -> None:
    keep = draw(p, channels=512)
    assert_unrelated(keep[..., :CHANNELS].movedim(2, 0), p)
    assert_unrelated(keep.movedim(1, 0), p)
    assert_unrelated(keep, p)
    # A key that mixed up (sequence 1, position 2) with (2, 1) would pass all three.
    assert_unrelated(draw(p, channels=4096)[:8, :8].flatten(0, 1), p)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_two_channels_of_one_hash_draw_apart(p: float) -> None:
    """Over many more elements than above, so that a much smaller relation would show."""
    keep = draw(p, channels=1024)
    assert_unrelated([keep[..., 0::2], keep[..., 1::2]], p)
    assert_unrelated([keep[..., 1:-1:2], keep[..., 2::2]], p)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_heads_queries_and_key_positions_draw_apart(p: float) -> None:
    keep = draw_attention(p)
    assert_unrelated(keep.movedim(1, 0), p)
    assert_unrelated(keep.movedim(2, 0), p)
    assert_unrelated(keep.movedim(3, 0), p)
    assert_unrelated(keep, p)
    assert_unrelated(keep.permute(1, 3, 0, 2).flatten(0, 1), p)


def test_the_same_key_draws_the_same_mask() -> None:
    assert torch.equal(draw(0.5), draw(0.5))
    assert torch.equal(draw_attention(0.5), draw_attention(0.5))


@given(st.integers(1, 40))
def test_a_channels_mask_does_not_depend_on_how_many_channels_there_are(channels: int) -> None:
    assert torch.equal(draw(0.5, channels=channels), draw(0.5, channels=41)[..., :channels])


@given(length=st.integers(1, 16), more=st.integers(0, 9))
def test_an_attention_entry_does_not_depend_on_the_padded_length(length: int, more: int) -> None:
    rows = torch.randint(-(2**31), 2**31 - 1, (3, length + more), dtype=torch.int32, generator=generator("rows"))
    site = site_key("attention", 1)

    def scale(own: Tensor) -> Tensor:
        shape = (3, HEADS, own.shape[1])
        return attention_dropout_scale(own.reshape(-1), site, shape, 0.5, torch.float32)

    short, long = scale(rows[:, :length]), scale(rows)
    assert short.shape == (3, HEADS, length, length)
    assert torch.equal(short, long[:, :, :length, :length])


@given(st.data())
def test_a_runs_keys_do_not_depend_on_its_place_in_the_pack(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.zeros(offsets[-1], dtype=np.int64)
    rows = Encoded(ids=ids, types=ids, offsets=offsets, labels=np.zeros(len(lengths)), truncated=0)
    count = data.draw(st.integers(1, 4))
    batch = st.lists(st.integers(0, rows.size - 1), min_size=count, max_size=count).map(np.array)
    pack = data.draw(st.lists(st.tuples(st.integers(0, 9), batch), min_size=1, max_size=4))
    step = data.draw(st.integers(0, 5))
    together = build_layout(rows, [own for _, own in pack])
    keys = Keys.build(together, [seed for seed, _ in pack], step)
    for run, (seed, own) in enumerate(pack):
        layout = build_layout(rows, [own])
        alone = Keys.build(layout, [seed], step)
        tokens = slice(*together.token_bounds[run : run + 2])
        sequences = slice(*together.sequence_bounds[run : run + 2])
        assert torch.equal(keys.tokens[tokens], alone.tokens[: layout.tokens])
        assert torch.equal(keys.sequences[sequences], alone.sequences)


def test_rows_that_stand_for_one_token_share_its_key() -> None:
    layout = layout_of(3, 5, runs=2)
    keys = Keys.build(layout, [0, 1], 0)
    assert torch.equal(keys.sequences, keys.tokens[layout.starts])
    assert len(set(keys.tokens[: layout.tokens].tolist())) == 30


def reference_bits(rows: np.ndarray, site: int, pairs: int) -> np.ndarray:
    """[n, 2 * pairs]: the 16 bits of every element, by the documented hash, in unsigned arithmetic."""

    def mix(x: np.ndarray) -> np.ndarray:
        return finish(x ^ (x >> 16))

    def finish(x: np.ndarray) -> np.ndarray:
        x = x * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
        return x ^ (x >> 16)

    channels = mix(np.arange(1, pairs + 1, dtype=np.uint32) * np.uint32(0x9E3779B9))
    hashes = finish(mix(rows ^ np.uint32(site & 0xFFFFFFFF))[:, None] ^ channels)
    halves = np.stack([hashes & 0xFFFF, hashes >> 16], axis=-1).astype(np.uint16)
    # Read as a signed number, the lowest is 0x8000.
    return (halves ^ 0x8000).reshape(len(rows), -1)


def some_bits() -> tuple[Tensor, int, np.ndarray]:
    keys = Keys.build(layout_of(64, 32), [3], 1).tokens
    site = site_key("site", 0)
    return keys, site, reference_bits(keys.numpy().view(np.uint32), site, 256)


@pytest.mark.parametrize("p", [2**-16, 0.1, 0.3, 0.5, 0.9, 1 - 2**-16])
def test_an_element_is_dropped_where_its_16_bits_are_below_p(p: float) -> None:
    keys, site, bits = some_bits()
    kept = dropout_scale(keys, site, bits.shape[1], p, torch.float32) > 0
    assert np.array_equal(kept.numpy(), bits >= round(p * 65536))


@pytest.mark.parametrize("shift", [0, 4, 8])
@pytest.mark.parametrize("half", [0, 1])
def test_the_16_bits_are_uniform(shift: int, half: int) -> None:
    _, _, bits = some_bits()
    counts = np.bincount(((bits[:, half::2] >> shift) & 0xFF).reshape(-1), minlength=256)
    expected = counts.sum() / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # Chi-square with 255 degrees of freedom: too even would be as wrong as too uneven.
    assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)


def test_probabilities_are_told_apart_to_one_part_in_65536() -> None:
    keys, site, bits = some_bits()
    channels = torch.arange(bits.shape[1] // 2, dtype=torch.int32)
    lower, higher = (keep_mask(keys, site, channels, 0.25 + k * 2**-16) for k in (0, 1))
    dropped_besides = lower & ~higher
    assert not (higher & ~lower).any()
    expected = bits.size / 65536
    assert 0 < int(dropped_besides.sum()) < expected + 5 * math.sqrt(expected)
    assert torch.equal(lower, keep_mask(keys, site, channels, 0.25 + 0.4 * 2**-16))


def test_the_highest_probability_keeps_almost_nothing() -> None:
    keys, site, bits = some_bits()
    kept = dropout_scale(keys, site, bits.shape[1], math.nextafter(1.0, 0.0), torch.float32) > 0
    assert int(kept.sum()) < 5 + 10 * bits.size / 65536


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_up(dtype: torch.dtype) -> None:
    keys = Keys.build(layout_of(), [0], 0)
    scales = (
        dropout_scale(keys.tokens, 5, 7, 0.2, dtype),
        attention_dropout_scale(keys.tokens, 5, (SEQUENCES, HEADS, LENGTH), 0.2, dtype),
    )
    for scale in scales:
        assert scale.dtype == dtype
        assert set(scale.flatten().tolist()) == {0.0, torch.tensor(1.25, dtype=dtype).item()}
    assert scales[0].shape == (SEQUENCES * LENGTH, 7)


def test_derived_seeds_stay_as_they_are() -> None:
    """Another value here would silently change what every seed of every study means."""
    assert derive_seed("dropout", 3, 17) == 3140245533714460507
    assert derive_seed("ab", "c") != derive_seed("a", "bc")


@given(st.lists(st.one_of(st.text(), st.integers()), max_size=3))
def test_derived_seeds_have_63_bits(parts: list[str | int]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63
    drawn = [torch.rand(2, generator=generator(*parts)) for _ in range(2)]
    assert torch.equal(*drawn)


def test_a_site_key_is_of_32_bits_and_differs_by_path_and_call() -> None:
    keys = [site_key(f"layer.{layer}", call) for layer in range(50) for call in range(20)]
    assert len(set(keys)) == len(keys)
    assert all(-(2**31) <= key < 2**31 for key in keys)
    assert min(keys) < 0 < max(keys)


def test_a_context_counts_the_calls_of_each_site_in_each_forward_pass() -> None:
    context = Context(torch.float32, ReferenceKernels())
    for _ in range(2):
        context.begin(layout_of(), None)
        drawn = [context.site(path) for path in ("a", "b", "a", "a")]
        assert drawn == [site_key("a", 0), site_key("b", 0), site_key("a", 1), site_key("a", 2)]
