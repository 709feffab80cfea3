"""How the packs that train now get on, for whoever watches.

OUT/live/<pack-id>.json   written by the driver once a second at most; gone when the pack has ended
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from manytune.storage.record import HistoryRow, Whole
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_file
from manytune.utils.json_text import parse_json

__all__ = ["LivePack", "LivePacks", "mean_loss", "read_live"]

_SECONDS_BETWEEN = 1.0


@dataclass(config=ConfigDict(allow_inf_nan=False, extra="forbid"))
class LivePack:
    """A pack that trains, or was training when its process ended.

    Attributes:
        pack_id: The pack.
        task: Its task.
        runs: Ids of its runs that had no record when it started.
        total_steps: Optimizer steps it takes if no run ends early.
        seconds: Since it started, or went on, by a clock that nobody sets.
        first_step: The step that it started, or went on, from.
        step: Steps taken.
        loss: Mean training loss of its runs at that step.
        best: The best run so far and its score.
        updated: Seconds since 1970, by the wall clock, for other processes to see how old this is.
        rows: Run id → its evaluations so far.
    """

    pack_id: str
    task: str
    runs: list[str]
    total_steps: Whole
    seconds: float = 0.0
    first_step: Whole | None = None
    step: Whole = 0
    loss: float | None = None
    best: tuple[str, float] | None = None
    updated: float = 0.0
    rows: dict[str, list[HistoryRow]] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float | None:
        """Roughly, as things went until now."""
        done = self.step - (self.first_step or 0)
        if done <= 0:
            return None
        return self.seconds / done * max(self.total_steps - self.step, 0)


class LivePacks:
    """The packs' files, written."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep them below a study directory.

        Args:
            root: The study directory.
            clock: Seconds from any fixed moment, never backwards.
        """
        self._folder = root / "live"
        self._clock = clock
        self._packs: dict[str, LivePack] = {}
        self._started: dict[str, float] = {}
        self._written: dict[str, float] = {}

    def keep(self, pack_ids: Collection[str]) -> None:
        """Remove what earlier processes left of all packs but these."""
        for path in self._folder.glob("*.json"):
            if path.stem not in pack_ids:
                path.unlink(missing_ok=True)

    def started(self, pack_id: str, task: str, runs: Sequence[str], total_steps: int) -> None:
        """A pack starts or goes on; what was seen of its runs before stays."""
        before = _read(self._folder / f"{pack_id}.json")
        rows = {run: before.rows.get(run, []) for run in runs} if before else {}
        self._packs[pack_id] = LivePack(pack_id, task, list(runs), total_steps, rows=rows)
        self._started[pack_id] = self._clock()
        self._write(pack_id)

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """It has taken a step."""
        pack = self._packs[pack_id]
        if pack.first_step is None:
            pack.first_step = step - 1
        pack.step, pack.loss = step, mean_loss(losses)
        if self._clock() - self._written[pack_id] >= _SECONDS_BETWEEN:
            self._write(pack_id)

    def evaluated(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float]) -> None:
        """Its runs have been evaluated."""
        pack = self._packs[pack_id]
        pack.step, pack.best = step, best
        for run_id, row in rows.items():
            # A pack that went on from a checkpoint sees again what came after it.
            earlier = [each for each in pack.rows.get(run_id, []) if each.step < row.step]
            pack.rows[run_id] = [*earlier, row]
        self._write(pack_id)

    def ended(self, pack_id: str, *, again: bool) -> None:
        """It has ended; with `again` it will go on, and what was seen of it is of use."""
        self._packs.pop(pack_id, None)
        if not again:
            (self._folder / f"{pack_id}.json").unlink(missing_ok=True)

    def _write(self, pack_id: str) -> None:
        pack = self._packs[pack_id]
        pack.updated, self._written[pack_id] = time.time(), self._clock()
        pack.seconds = self._written[pack_id] - self._started[pack_id]
        rows = {run_id: [row.model_dump(mode="json") for row in own] for run_id, own in pack.rows.items()}
        if self._folder.parent.is_dir():  # else the study directory was moved away, and would be made anew here
            write_file(self._folder / f"{pack_id}.json", json.dumps({**_plain(pack), "rows": rows}) + "\n")


def mean_loss(losses: Iterable[float]) -> float | None:
    """The mean over the runs whose loss is a number; None if none is."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite else None


def read_live(root: Path) -> list[LivePack]:
    """The packs that train in a study directory, or were training when their process ended."""
    found = (_read(path) for path in sorted((root / "live").glob("*.json")))
    return [pack for pack in found if pack is not None]


def _plain(pack: LivePack) -> dict[str, Any]:
    return {name: value for name, value in vars(pack).items() if name != "rows"}


def _read(path: Path) -> LivePack | None:
    """One file; None if it is not there, or not whole: it is a view, and nothing rests on it."""
    try:
        text = read_text(path)
        if text is None:
            return None
        facts = parse_json(text)
        return LivePack(**facts)
    except (ValueError, KeyError, TypeError, AttributeError, StoreError):
        return None
