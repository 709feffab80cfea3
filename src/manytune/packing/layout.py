"""Token-flat batches: the sequences of all runs of a pack laid end to end, without padding.

Shape letters used throughout `packing`:
    R runs of the pack        B sequences of the run that has most in this batch     S sequences of all runs
    T tokens in all           N attention slots (tokens and padding)   H hidden width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manytune.data.splits import Encoded
from manytune.packing.transfer import put_all

Rows = Literal["tokens", "sequences"]
"""What the rows of a tensor are, in a packed batch."""

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
class Slots:
    """A batch regrouped for attention in torch: sequences of one bucket side by side, padded to one length."""

    slot_token: Tensor  # [N] int64, the token in each attention slot (any token where the slot is padding)
    slot_padding: Tensor  # the slots that are padding, int64
    token_slot: Tensor  # [tokens] int64, the inverse of `slot_token`
    buckets: tuple[Bucket, ...]  # the attention buckets, in the order of their slots


@dataclass(frozen=True)
class Plan:
    """Where every token of a packed batch lies, on the host; `Layout` is the same where the batch is computed."""

    arrays: dict[str, NDArray[Any]]  # by the names of `Layout`'s tensors
    token_bounds: tuple[int, ...]
    sequence_bounds: tuple[int, ...]

    @cached_property
    def shape(self) -> tuple[Any, ...]:
        """What kernels that read bounds on the device need to know of a batch: few batches differ in it.

        T, the sequences of each run, a bound of the tokens of a run, which lengths there are (see `TILES`), and a bound
        of the longest one. Bounds are powers of two.
        """
        lengths = self.arrays["lengths"]
        tiles = tuple(bool(count) for count in np.bincount(np.searchsorted(TILES, lengths), minlength=len(TILES) + 1))
        tokens = _power_of_two(max(last - first for first, last in pairwise(self.token_bounds)))
        rows = self.arrays["ids"].shape[1]
        return rows, self.sequence_bounds, max(tokens, 32), tiles, _power_of_two(int(lengths.max()))

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of these tensors, which are `arrays` where the batch is computed."""
        return Layout(self, **{name: tensors[name] for name in self.arrays})


TILES = (16, 32, 64)
"""Lengths up to which attention kernels take a sequence as one tile of that many rows."""


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


@dataclass(frozen=True)
class Layout:
    """Where every token of a packed batch lies.

    Padding rows behind the tokens let T take few different values (see `row_count`). They belong to no sequence, hold
    finite numbers and get gradients of zero.
    """

    plan: Plan  # the same on the host
    ids: Tensor  # [1, T] int64 token ids
    types: Tensor  # [1, T] int64 token type ids
    within: Tensor  # [T] int64, a token's position in its sequence, from 0
    token_run: Tensor  # [T] int64
    # [T] int64, the index of a token's sequence in its run's batch (of the whole optimizer step, so that splitting a
    # batch into micro-batches changes no index)
    sequence_index: Tensor
    starts: Tensor  # [S] int64, the first token of each sequence
    lengths: Tensor  # [S] int64, the tokens of each sequence
    sequence_run: Tensor  # [S] int64
    token_offsets: Tensor  # [R + 1] int64, `token_bounds`
    sequence_offsets: Tensor  # [R + 1] int64, `sequence_bounds`

    @property
    def token_bounds(self) -> tuple[int, ...]:
        """R + 1 ints; run r holds the tokens `token_bounds[r]:token_bounds[r + 1]`."""
        return self.plan.token_bounds

    @property
    def sequence_bounds(self) -> tuple[int, ...]:
        """R + 1 ints, likewise for sequences."""
        return self.plan.sequence_bounds

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

    def of_runs(self, rows: Rows) -> tuple[tuple[int, ...], Tensor, Tensor, int]:
        """Of tokens or sequences: bounds of the runs, the same on the device, the run of each row, most of a run."""
        if rows == "tokens":
            return self.token_bounds, self.token_offsets, self.token_run, self.plan.shape[2]
        most = max(last - first for first, last in pairwise(self.sequence_bounds))
        return self.sequence_bounds, self.sequence_offsets, self.sequence_run, most

    @cached_property
    def slots(self) -> Slots:
        """The batch regrouped for attention in torch."""
        lengths, starts = self.plan.arrays["lengths"], self.plan.arrays["starts"]
        slot_token, token_slot, padding, spans = _attention_slots(lengths, starts)
        arrays = {"slot_token": slot_token, "token_slot": token_slot, "slot_padding": np.flatnonzero(padding)}
        arrays |= {f"mask {first}": _mask(length, own) for first, length, own in spans if int(own.min()) < length}
        put = put_all(arrays, self.ids.device)
        buckets = tuple(Bucket(first, len(own), length, put.get(f"mask {first}")) for first, length, own in spans)
        return Slots(put["slot_token"], put["slot_padding"], put["token_slot"], buckets)


def row_count(tokens: int) -> int:
    """T for a number of tokens: rounded up to a multiple of 16, or of a power of two near `tokens` / 32.

    oneDNN compiles a matrix product anew for every shape that it has not met. With as many shapes as batches have
    sums of lengths, that halved the speed of products for a single run and cost a pack of eight 14 %.
    """
    step = 1 << max(4, (tokens // 32).bit_length() - 1)
    return -(-tokens // step) * step


def bucket_length(lengths: NDArray[Any]) -> NDArray[Any]:
    """The padded length that attention gives to sequences of `lengths` tokens.

    It depends on the sequence alone, so neither a neighbour in the pack nor a longer sentence in the same
    batch changes what a sequence's attention computes.
    """
    index = np.searchsorted(_BUCKETS, lengths)
    beyond = -(-lengths // 128) * 128
    return np.where(index < len(_BUCKETS), _BUCKETS[np.minimum(index, len(_BUCKETS) - 1)], beyond)


def _mask(length: int, own: NDArray[Any]) -> NDArray[Any]:
    mask: NDArray[Any] = (np.arange(length)[None, :] < own[:, None])[:, None, None, :]
    return mask


def build_layout(
    data: Encoded,
    rows: Sequence[NDArray[Any]],
    *,
    first_index: int | Sequence[int] = 0,
    device: torch.device | str = "cpu",  # where the tensors go
    rounded: bool = True,
) -> Layout:
    """The layout of `plan_batch`'s plan; it raises what that raises."""
    plan = plan_batch(data, rows, first_index=first_index, rounded=rounded)
    return plan.layout(put_all(plan.arrays, torch.device(device)))


def plan_batch(
    data: Encoded,  # the task's encoded rows
    # for each of the R runs, the rows of its batch, int64; a run that takes no part in this pass has none
    rows: Sequence[NDArray[Any]],
    *,
    # index, in the run's batch of this optimizer step, of the first row given here; one for all runs or one for each
    first_index: int | Sequence[int] = 0,
    rounded: bool = True,  # add padding rows, so that T takes few values (see `row_count`)
) -> Plan:
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

    token_bounds = np.concatenate([[0], ends])[sequence_bounds]
    arrays = {
        "ids": data.ids[source][None],
        "types": data.types[source][None],
        "within": within,
        "token_run": sequence_run[sequence_of_token],
        "sequence_index": index_in_run[sequence_of_token],
        "starts": starts,
        "lengths": lengths,
        "sequence_run": sequence_run,
        "token_offsets": token_bounds,
        "sequence_offsets": sequence_bounds,
    }
    return Plan(arrays, tuple(token_bounds.tolist()), tuple(sequence_bounds.tolist()))


def _attention_slots(
    lengths: NDArray[Any], starts: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[tuple[int, int, NDArray[Any]]]]:
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
