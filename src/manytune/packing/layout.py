"""Token-flat batches: the sequences of all runs of a pack laid end to end, without padding.

Shape letters used throughout `packing`:
    R runs of the pack        B sequences of the run that has most in this batch     S sequences of all runs
    T tokens in all           N attention slots (tokens and padding)   H hidden width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from manytune.data.splits import Encoded

_BUCKETS = np.array([8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512], dtype=np.int64)


@dataclass(frozen=True)
class Bucket:
    """The sequences that attention pads to one length."""

    first: int  # the first of its `sequences * length` attention slots
    sequences: int  # number of sequences
    length: int  # slots of each sequence
    # [sequences, 1, 1, length] bool, True where a key may be attended to; None if no slot is padding
    mask: Tensor | None

    @cached_property
    def barrier(self) -> Tensor | None:
        """`mask` as a term added to scores: 0 where a key may be attended to, else minus infinity."""
        return None if self.mask is None else barrier(self.mask)


def barrier(mask: Tensor) -> Tensor:
    """0 where a mask is True, else minus infinity; fp32."""
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, float("-inf"))


@dataclass(frozen=True)
class Layout:
    """Where every token of a packed batch lies.

    Padding rows behind the tokens let T take few different values (see `row_count`). They belong to no sequence, hold
    finite numbers and get gradients of zero.
    """

    ids: Tensor  # [1, T] int64 token ids
    types: Tensor  # [1, T] int64 token type ids
    within: Tensor  # [T] int64, a token's position in its sequence, from 0
    token_bounds: tuple[int, ...]  # R + 1 ints; run r holds the tokens `token_bounds[r]:token_bounds[r + 1]`
    sequence_bounds: tuple[int, ...]  # R + 1 ints, likewise for sequences
    token_run: Tensor  # [T] int64
    # [T] int64, the index of a token's sequence in its run's batch (of the whole optimizer step, so that splitting a
    # batch into micro-batches changes no index)
    sequence_index: Tensor
    starts: Tensor  # [S] int64, the first token of each sequence
    lengths: Tensor  # [S] int64, the tokens of each sequence
    sequence_run: Tensor  # [S] int64
    slot_token: Tensor  # [N] int64, the token in each attention slot (any token where the slot is padding)
    slot_padding: Tensor  # the slots that are padding, int64
    token_slot: Tensor  # [tokens] int64, the inverse of `slot_token`
    buckets: tuple[Bucket, ...]  # the attention buckets, in the order of their slots

    @property
    def runs(self) -> int:
        """R, the number of runs, with those that have no row here."""
        return len(self.token_bounds) - 1

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding rows."""
        return self.token_bounds[-1]

    @property
    def rows(self) -> int:
        """T."""
        return self.ids.shape[1]


def row_count(tokens: int) -> int:
    """T for a number of tokens: rounded up to a multiple of 16, or of a power of two near `tokens` / 32.

    oneDNN compiles a matrix product anew for every shape that it has not met. With as many shapes as batches have
    sums of lengths, that halved the speed of products for a single run and cost a pack of eight 14 %.
    """
    step = 1 << max(4, (tokens // 32).bit_length() - 1)
    return -(-tokens // step) * step


def bucket_length(lengths: np.ndarray) -> np.ndarray:
    """The padded length that attention gives to sequences of `lengths` tokens.

    It depends on the sequence alone, so neither a neighbour in the pack nor a longer sentence in the same
    batch changes what a sequence's attention computes.
    """
    index = np.searchsorted(_BUCKETS, lengths)
    beyond = -(-lengths // 128) * 128
    return np.where(index < len(_BUCKETS), _BUCKETS[np.minimum(index, len(_BUCKETS) - 1)], beyond)


def build_layout(
    data: Encoded,  # the task's encoded rows
    # for each of the R runs, the rows of its batch, int64; a run that takes no part in this pass has none
    rows: Sequence[np.ndarray],
    *,
    # index, in the run's batch of this optimizer step, of the first row given here; one for all runs or one for each
    first_index: int | Sequence[int] = 0,
    device: torch.device | str = "cpu",  # where the tensors go
    rounded: bool = True,  # add padding rows, so that T takes few values (see `row_count`)
) -> Layout:
    """Lay out the rows that each run has drawn; raises ValueError where no run has any, or a row has no token."""
    counts = np.array([len(run) for run in rows], dtype=np.int64)
    if not counts.any():
        raise ValueError(f"at least one run needs a row; got {counts.tolist()}")
    flat_rows = np.concatenate(rows)
    sequence_run = np.repeat(np.arange(len(rows)), counts)
    sequence_bounds = np.concatenate([[0], np.cumsum(counts)])
    index_in_run = np.arange(len(flat_rows)) - (sequence_bounds[:-1] - first_index)[sequence_run]
    lengths = data.offsets[flat_rows + 1] - data.offsets[flat_rows]
    if lengths.min() < 1:
        raise ValueError("a row without tokens cannot be laid out")
    ends = np.cumsum(lengths)
    starts = ends - lengths
    tokens = int(ends[-1])

    sequence_of_token = np.repeat(np.arange(len(flat_rows)), lengths)
    within = np.arange(tokens) - starts[sequence_of_token]
    source = data.offsets[flat_rows][sequence_of_token] + within
    tail = row_count(tokens) - tokens if rounded else 0  # copies of the last sequence's first token
    sequence_of_token = np.concatenate([sequence_of_token, np.full(tail, len(flat_rows) - 1)])
    within = np.concatenate([within, np.zeros(tail, dtype=within.dtype)])
    source = np.concatenate([source, np.full(tail, data.offsets[flat_rows[-1]])])

    slot_token, token_slot, padding, spans = _attention_slots(lengths, starts)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    buckets = tuple(
        Bucket(
            first,
            len(members),
            length,
            None
            if int(members.min()) == length
            else put((np.arange(length)[None, :] < members[:, None])[:, None, None, :]),
        )
        for first, length, members in spans
    )
    return Layout(
        ids=put(data.ids[source][None]),
        types=put(data.types[source][None]),
        within=put(within),
        token_bounds=tuple(np.concatenate([[0], ends])[sequence_bounds].tolist()),
        sequence_bounds=tuple(sequence_bounds.tolist()),
        token_run=put(sequence_run[sequence_of_token]),
        sequence_index=put(index_in_run[sequence_of_token]),
        starts=put(starts),
        lengths=put(lengths),
        sequence_run=put(sequence_run),
        slot_token=put(slot_token),
        slot_padding=put(np.flatnonzero(padding)),
        token_slot=put(token_slot),
        buckets=buckets,
    )


def _attention_slots(
    lengths: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, np.ndarray]]]:
    """Slots for sequences sorted by bucket; returns slot→token, token→slot, padding, (first, length, members)."""
    padded = bucket_length(lengths)
    order = np.argsort(padded, kind="stable")
    padded_sorted, lengths_sorted = padded[order], lengths[order]
    slot_ends = np.cumsum(padded_sorted)
    slot_starts = slot_ends - padded_sorted

    sequence_of_slot = np.repeat(np.arange(len(lengths)), padded_sorted)
    within = np.arange(int(slot_ends[-1])) - slot_starts[sequence_of_slot]
    padding = within >= lengths_sorted[sequence_of_slot]
    slot_token = starts[order][sequence_of_slot] + np.where(padding, 0, within)
    token_slot = np.empty(int(lengths.sum()), dtype=np.int64)
    token_slot[slot_token[~padding]] = np.flatnonzero(~padding)

    spans = []
    for length in np.unique(padded_sorted):
        members = np.flatnonzero(padded_sorted == length)
        spans.append((int(slot_starts[members[0]]), int(length), lengths_sorted[members]))
    return slot_token, token_slot, padding, spans
