from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from manytune.data.splits import Encoded
from manytune.packing.layout import Layout, bucket_length, build_layout, row_count

# Lengths near the buckets' edges, where an error by one shows.
_LENGTHS = st.one_of(st.integers(1, 20), st.sampled_from([8, 9, 63, 64, 65, 128, 129, 512, 513, 640, 641]))


def rows_of(lengths: Sequence[int]) -> Encoded:
    """Rows in which every token id is another number, so that a token is known wherever it turns up."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(offsets[-1], dtype=np.int64) + 1000
    return Encoded(ids=ids, types=ids % 2, offsets=offsets, labels=np.zeros(len(lengths)), truncated=0)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Encoded, list[np.ndarray]]:
    """Data and, for 1 to 4 runs, the up to 5 rows that each has drawn, repeats among them; at least one has some."""
    data = rows_of(draw(st.lists(_LENGTHS, min_size=1, max_size=8)))
    own = st.lists(st.integers(0, data.size - 1), max_size=5)
    rows = draw(st.lists(own, min_size=1, max_size=4).filter(any))
    return data, [np.array(run, dtype=np.int64) for run in rows]


def tokens_of(data: Encoded, row: int) -> list[int]:
    return list(range(data.offsets[row], data.offsets[row + 1]))


def stretches(layout: Layout) -> list[tuple[int, range]]:
    """(padded length, slots) of every sequence's stretch of attention slots."""
    return [
        (bucket.length, range(first, first + bucket.length))
        for bucket in layout.slots.buckets
        for first in range(bucket.first, bucket.first + bucket.sequences * bucket.length, bucket.length)
    ]


def padding_of(layout: Layout) -> list[bool]:
    padding = [False] * len(layout.slots.slot_token)
    for slot in layout.slots.slot_padding.tolist():
        padding[slot] = True
    return padding


@given(batches())
def test_every_token_of_every_drawn_row_appears_once_in_run_order(
    batch: tuple[Encoded, list[np.ndarray]],
) -> None:
    data, rows = batch
    layout = build_layout(data, rows)
    drawn = [(run, index, row) for run, own in enumerate(rows) for index, row in enumerate(own)]
    expected = [
        (run, index, within, data.ids[token], data.types[token])
        for run, index, row in drawn
        for within, token in enumerate(tokens_of(data, row))
    ]
    columns = (layout.token_run, layout.sequence_index, layout.within, layout.ids[0], layout.types[0])
    assert list(zip(*(column[: layout.tokens].tolist() for column in columns), strict=True)) == expected
    assert layout.ids.shape == layout.types.shape == (1, layout.rows)
    for column in columns:  # the rows that are no tokens are of the last run, and of words that there are
        assert len(column) == layout.rows
        assert set(column[layout.tokens :].tolist()) <= set(column[: layout.tokens].tolist())


@given(st.integers(1, 100_000))
def test_a_row_count_is_one_of_few_and_little_more_than_the_tokens(tokens: int) -> None:
    rows = row_count(tokens)
    assert tokens <= rows <= max(tokens + 15, tokens * (1 + 1 / 16))
    assert rows % 16 == 0
    assert row_count(rows) == rows
    assert len({row_count(near) for near in range(tokens, 2 * tokens, max(1, tokens // 512))}) <= 65


@given(batches())
def test_bounds_and_starts(batch: tuple[Encoded, list[np.ndarray]]) -> None:
    data, rows = batch
    layout = build_layout(data, rows)
    assert layout.runs == len(rows)
    assert layout.token_bounds == (0, *itertools.accumulate(int(data.lengths[own].sum()) for own in rows))
    assert layout.sequence_bounds == (0, *itertools.accumulate(map(len, rows)))
    assert layout.sequence_run.tolist() == [run for run, own in enumerate(rows) for _ in own]
    assert layout.tokens == layout.token_bounds[-1]
    lengths = data.lengths[np.concatenate(rows)].tolist()
    assert layout.starts.tolist() == [0, *itertools.accumulate(lengths)][:-1]


@given(batches())
def test_slots_and_tokens_are_inverse_where_there_is_no_padding(
    batch: tuple[Encoded, list[np.ndarray]],
) -> None:
    layout = build_layout(*batch)
    padding = padding_of(layout)
    assert layout.slots.slot_token[layout.slots.token_slot].tolist() == list(range(layout.tokens))
    real = [slot for slot, padded in enumerate(padding) if not padded]
    assert sorted(layout.slots.token_slot.tolist()) == real
    assert layout.slots.token_slot[layout.slots.slot_token[real]].tolist() == real
    # Padding may read any token, but one there is.
    assert int(layout.slots.slot_token.min()) >= 0
    assert int(layout.slots.slot_token.max()) < layout.tokens


@given(batches())
def test_each_sequence_has_one_stretch_of_slots_of_its_own_padded_length(
    batch: tuple[Encoded, list[np.ndarray]],
) -> None:
    data, rows = batch
    layout = build_layout(data, rows)
    padding = padding_of(layout)
    flat = np.concatenate(rows)
    sequence_of_start = {start: index for index, start in enumerate(layout.starts.tolist())}
    seen = []
    for length, slots in stretches(layout):
        sequence = sequence_of_start[int(layout.slots.slot_token[slots[0]])]
        seen.append(sequence)
        own = int(data.lengths[flat[sequence]])
        start = int(layout.starts[sequence])
        assert layout.slots.slot_token[slots[0] : slots[0] + own].tolist() == list(range(start, start + own))
        assert padding[slots.start : slots.stop] == [False] * own + [True] * (length - own)
        assert length == bucket_length(np.array([own]))[0]
    assert sorted(seen) == list(range(len(flat)))
    # Together the stretches are all slots, without gap or overlap.
    everything = [slot for _, slots in stretches(layout) for slot in slots]
    assert everything == list(range(len(layout.slots.slot_token)))


@given(batches())
def test_masks_hide_padding_and_nothing_else(batch: tuple[Encoded, list[np.ndarray]]) -> None:
    layout = build_layout(*batch)
    padding = torch.tensor(padding_of(layout))
    lengths = [bucket.length for bucket in layout.slots.buckets]
    assert lengths == sorted(set(lengths))
    for bucket in layout.slots.buckets:
        own = padding[bucket.first : bucket.first + bucket.sequences * bucket.length]
        assert (bucket.mask is None) == (not own.any())
        if bucket.mask is not None:
            assert bucket.mask.shape == (bucket.sequences, 1, 1, bucket.length)
            assert torch.equal(bucket.mask.flatten(), ~own)


@given(batches())
def test_neighbours_do_not_change_a_sequences_padded_length(batch: tuple[Encoded, list[np.ndarray]]) -> None:
    data, rows = batch
    together = build_layout(data, rows)
    lengths = {int(together.slots.slot_token[slots[0]]): length for length, slots in stretches(together)}
    for start, row in zip(together.starts.tolist(), np.concatenate(rows), strict=True):
        (alone,) = build_layout(data, [np.array([row])]).slots.buckets
        assert alone.sequences == 1
        assert alone.length == lengths[start]


@given(st.integers(1, 2000))
def test_a_padded_length_holds_the_sequence_and_little_more(length: int) -> None:
    padded, again = (int(bucket_length(np.array([n]))[0]) for n in (length, length - 1 or 1))
    assert length <= padded <= max(8, length + 128)
    assert again <= padded
    assert bucket_length(np.array([padded]))[0] == padded
    assert padded % 8 == 0


@given(batches(), st.data())
def test_micro_batches_keep_the_index_in_the_whole_step(
    batch: tuple[Encoded, list[np.ndarray]], data: st.DataObject
) -> None:
    """Each run is cut where it will; the runs of one cut may say so by one number."""
    encoded, rows = batch
    cuts = [data.draw(st.integers(0, len(own))) for own in rows]
    assume(any(cut < len(own) for cut, own in zip(cuts, rows, strict=True)))
    whole = build_layout(encoded, rows)
    part = build_layout(encoded, [own[cut:] for own, cut in zip(rows, cuts, strict=True)], first_index=cuts)
    kept = whole.sequence_index[: whole.tokens] >= torch.tensor(cuts)[whole.token_run[: whole.tokens]]
    if len(set(cuts)) == 1:
        same = build_layout(encoded, [own[cuts[0] :] for own in rows], first_index=cuts[0])
        assert torch.equal(same.sequence_index, part.sequence_index)
    for name in ("sequence_index", "within", "token_run"):
        assert torch.equal(getattr(part, name)[: part.tokens], getattr(whole, name)[: whole.tokens][kept])


@pytest.mark.parametrize("rows", [[[], []], []], ids=["no rows", "no runs"])
def test_some_run_needs_a_row(rows: list[list[int]]) -> None:
    drawn = [np.array(own, dtype=np.int64) for own in rows]
    with pytest.raises(ValueError, match=r"at least one run needs a row; got \[.*\]"):
        build_layout(rows_of([3, 4, 5]), drawn)


def test_a_row_without_tokens_is_refused() -> None:
    data = rows_of([3, 0, 5])
    with pytest.raises(ValueError, match="without tokens"):
        build_layout(data, [np.array([0, 1])])
    build_layout(data, [np.array([0, 2])])
