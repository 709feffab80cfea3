"""The progress of each pack: for the terminal, and in files for other processes, such as the live page.

OUT/live/<pack-id>.json   written by the driver once a second at most; gone when the pack has ended
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from manytune.config.plan import Pack
from manytune.storage.record import HistoryRow, RunRecord, Whole
from manytune.training.callbacks import Best, Callback, PackEnd
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_file
from manytune.utils.text import parse_json

_SECONDS_BETWEEN = 1.0

TimeSource = Callable[[], float]  # seconds from any fixed moment, never backwards


@dataclass(config=ConfigDict(allow_inf_nan=False, extra="forbid"))
class PackProgress:
    """A pack that trains, or was training when its process ended."""

    pack_id: str
    task: str
    runs: list[str]  # ids of its runs that had no record when it started
    total_steps: Whole  # optimizer steps it takes if no run ends early
    metric: str = ""  # name of the metric that selects
    left: Whole = 0  # runs that have not ended
    seconds: float = 0.0  # since it started, or went on, until the last call
    first_step: Whole | None = None  # steps it had taken when it started, or went on
    step: Whole = 0  # steps taken
    loss: float | None = None  # mean training loss at that step, of the runs whose loss is a number
    best: tuple[str, float] | None = None  # the best run so far and its score
    updated: float = 0.0  # seconds since 1970, by the wall clock, for other processes to see how old this is
    rows: dict[str, list[HistoryRow]] = field(default_factory=dict)  # run id → its evaluations so far

    def seconds_left(self, since: float) -> float | None:
        """Roughly, if it goes on as until the last call, which was `since` seconds ago; None before the first step."""
        done = self.step - (self.first_step or 0)
        return max(self.seconds / done * max(self.total_steps - self.step, 0) - since, 0.0) if done > 0 else None


class PackObserver(Callback):
    """Keeps the progress of every pack that trains; subclasses show or store it."""

    def __init__(self, clock: TimeSource = time.monotonic) -> None:
        self.clock = clock
        self.packs: dict[str, PackProgress] = {}
        self._started: dict[str, float] = {}

    def on_train_begin(
        self, pack_id: str, task: str, metric: str, runs: Sequence[str], total_steps: int, first_step: int = 0
    ) -> None:
        self._started[pack_id] = self.clock()
        self.packs[pack_id] = PackProgress(
            pack_id, task, list(runs), total_steps, metric, len(runs), first_step=first_step, step=first_step
        )

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        finite = [loss for loss in losses if math.isfinite(loss)]
        pack = self._at(pack_id, step)
        pack.loss = math.fsum(finite) / len(finite) if finite else None
        if not pack.runs:  # runs join and leave it by order
            pack.left = len(losses)

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: Best) -> None:
        self._at(pack_id, step).best = best

    def on_run_end(self, pack_id: str, record: RunRecord) -> None:
        """Count the runs that are left; of a pack that failed before it began, there are none to count."""
        if pack_id in self.packs:
            self.packs[pack_id].left = max(self.packs[pack_id].left - 1, 0)

    def seconds_since(self, pack: PackProgress) -> float:
        """Seconds since the pack's last call."""
        return self.clock() - self._started[pack.pack_id] - pack.seconds

    def _at(self, pack_id: str, step: int) -> PackProgress:
        pack = self.packs[pack_id]
        pack.step, pack.seconds = step, self.clock() - self._started[pack_id]
        return pack


class LiveFileWriter(PackObserver):
    """Writes the progress of the packs into a study directory."""

    def __init__(self, root: Path, clock: TimeSource = time.monotonic) -> None:
        super().__init__(clock)
        self._folder = root / "live"
        self._written: dict[str, float] = {}

    def on_study_begin(self, packs: Sequence[Pack], ended: Mapping[str, RunRecord]) -> None:
        """Remove what earlier processes left of packs that do not train again."""
        waiting = {pack.id for pack in packs if any(run.id not in ended for run in pack.runs)}
        for path in self._folder.glob("*.json"):
            if path.stem not in waiting:
                path.unlink(missing_ok=True)

    def on_train_begin(
        self, pack_id: str, task: str, metric: str, runs: Sequence[str], total_steps: int, first_step: int = 0
    ) -> None:
        """Begin a pack's file; the evaluations that an earlier process saw of its runs stay."""
        before = _read(self._folder / f"{pack_id}.json")
        super().on_train_begin(pack_id, task, metric, runs, total_steps, first_step)
        if before is not None:
            self.packs[pack_id].rows = {run: before.rows.get(run, []) for run in runs}
        self._write(pack_id)

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Write the file anew, if the last time was a while ago."""
        super().on_step_end(pack_id, step, losses)
        if self.clock() - self._written[pack_id] >= _SECONDS_BETWEEN:
            self._write(pack_id)

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: Best) -> None:
        super().on_evaluate(pack_id, step, rows, best)
        known = self.packs[pack_id].rows
        for run_id, row in rows.items():
            # A pack that goes on from a checkpoint repeats evaluations that an earlier process made after it.
            known[run_id] = [*(each for each in known.get(run_id, []) if each.step < row.step), row]
        self._write(pack_id)

    def on_pack_end(self, end: PackEnd) -> None:
        """Remove the file, unless the pack will go on."""
        self.packs.pop(end.pack_id, None)
        if end.how in ("done", "broken"):
            (self._folder / f"{end.pack_id}.json").unlink(missing_ok=True)

    def _write(self, pack_id: str) -> None:
        pack = self.packs[pack_id]
        pack.updated, self._written[pack_id] = time.time(), self.clock()
        rows = {run_id: [row.model_dump(mode="json") for row in found] for run_id, found in pack.rows.items()}
        if self._folder.parent.is_dir():  # else the study directory was moved away, and would be made anew here
            write_file(self._folder / f"{pack_id}.json", json.dumps({**vars(pack), "rows": rows}) + "\n")


def read_live(root: Path) -> list[PackProgress]:
    """The packs that train in a study directory, or were training when their process ended."""
    found = (_read(path) for path in sorted((root / "live").glob("*.json")))
    return [pack for pack in found if pack is not None]


def _read(path: Path) -> PackProgress | None:
    """One file; None if it is not there, or not whole: it is a view, and nothing rests on it."""
    try:
        text = read_text(path)
        return None if text is None else PackProgress(**parse_json(text))
    except (ValueError, KeyError, TypeError, AttributeError, StoreError):
        return None
