"""What the modules of a pack need to know about the forward pass that they are part of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from manytune.packing.dropout import Keys, site_key
from manytune.packing.layout import Layout

__all__ = ["Context", "RunPadding"]

Rows = Literal["tokens", "sequences"]


@dataclass(frozen=True)
class RunPadding:
    """How the rows of neighbouring runs are padded to one length for a batched matrix product.

    Attributes:
        source: [runs * longest] int64, the row in each place (any row of the run where it is padding).
        padding: The places that are padding, int64.
        place: [rows] int64, the inverse of `source`.
    """

    source: Tensor
    padding: Tensor
    place: Tensor


@dataclass
class Context:
    """The state of one forward pass; a pack has one, and its modules read it.

    Attributes:
        dtype: The dtype of activations.
        layout: Of the present batch.
        keys: For dropout; None while evaluating.
        rows: Whether modules now see one row a token or (pooler and head) one row a sequence.
    """

    dtype: torch.dtype
    layout: Layout | None = None
    keys: Keys | None = None
    rows: Rows = "tokens"
    _calls: Counter[str] = field(default_factory=Counter)
    _paddings: dict[tuple[int, int, Rows], RunPadding | None] = field(default_factory=dict)

    def begin(self, layout: Layout, keys: Keys | None) -> None:
        """Start a forward pass."""
        self.layout, self.keys, self.rows = layout, keys, "tokens"
        self._calls.clear()
        self._paddings.clear()

    def end(self) -> None:
        """Let go of the batch."""
        self.layout = self.keys = None
        self._paddings.clear()

    def site(self, path: str) -> int:
        """The key of this call of the module at `path`."""
        call = self._calls[path]
        self._calls[path] += 1
        return site_key(path, call)

    @property
    def bounds(self) -> tuple[int, ...]:
        """R + 1 ints; run r holds the rows `bounds[r]:bounds[r + 1]`."""
        assert self.layout is not None
        return self.layout.token_bounds if self.rows == "tokens" else self.layout.sequence_bounds

    @property
    def row_keys(self) -> Tensor | None:
        """The dropout keys of the rows, or None while evaluating."""
        if self.keys is None:
            return None
        return self.keys.tokens if self.rows == "tokens" else self.keys.sequences

    def padding(self, first: int, last: int) -> RunPadding | None:
        """How to pad the runs `first` to `last` - 1 to one length; None if they have the same already."""
        key = (first, last, self.rows)
        if key not in self._paddings:
            self._paddings[key] = _run_padding(np.asarray(self.bounds[first : last + 1]), self._device)
        return self._paddings[key]

    @property
    def _device(self) -> torch.device:
        assert self.layout is not None
        return self.layout.ids.device


def _run_padding(bounds: np.ndarray, device: torch.device) -> RunPadding | None:
    counts = np.diff(bounds)
    longest = int(counts.max())
    if int(counts.min()) == longest:
        return None
    column = np.arange(longest)[None, :]
    padding = column >= counts[:, None]
    source = np.where(padding, 0, column) + (bounds[:-1] - bounds[0])[:, None]
    place = np.flatnonzero(~padding)
    return RunPadding(
        torch.from_numpy(source.reshape(-1)).to(device),
        torch.from_numpy(np.flatnonzero(padding)).to(device),
        torch.from_numpy(place).to(device),
    )
