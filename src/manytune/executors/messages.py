"""What goes between the driver and a process that trains, as JSON: nothing is unpickled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from manytune.config.plan import Pack, packs_from_json, packs_to_json
from manytune.executors.base import PackEnd, Reports
from manytune.storage.record import HistoryRow, RunRecord
from manytune.tracking.progress import Level

__all__ = ["Sender", "encoded", "end_in", "end_message", "pack_in", "pack_message", "pass_on"]

_SECONDS_BETWEEN_STEPS = 0.25


class Sender:
    """Reports that become messages; of steps, four a second at most."""

    def __init__(self, send: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._said_step = -1.0

    def pack_started(self, pack_id: str, runs: Sequence[str], total_steps: int) -> None:
        """Send it."""
        self._send({"tell": "pack_started", "pack_id": pack_id, "runs": list(runs), "total_steps": total_steps})

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Send it, if the last one was a while ago."""
        now = self._clock()
        if now - self._said_step >= _SECONDS_BETWEEN_STEPS:
            self._said_step = now
            self._send({"tell": "step", "pack_id": pack_id, "step": step, "losses": list(losses)})

    def evaluated(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float]) -> None:
        """Send it."""
        plain = {run_id: row.model_dump(mode="json") for run_id, row in rows.items()}
        self._send({"tell": "evaluated", "pack_id": pack_id, "step": step, "rows": plain, "best": list(best)})

    def run_ended(self, pack_id: str, record: RunRecord) -> None:
        """Send it."""
        self._send({"tell": "run_ended", "pack_id": pack_id, "record": record.to_json()})

    def message(self, text: str, level: Level = "info") -> None:
        """Send it."""
        self._send({"tell": "message", "text": text, "level": level})


def pass_on(message: Mapping[str, Any], reports: Reports) -> None:
    """Tell `reports` what a `Sender` sent."""
    values = dict(message)
    tell = values.pop("tell")
    if tell == "run_ended":
        values["record"] = RunRecord.from_json(values["record"])
    elif tell == "evaluated":
        values["rows"] = {run_id: HistoryRow(**row) for run_id, row in values["rows"].items()}
        values["best"] = tuple(values["best"])
    getattr(reports, tell)(**values)


def pack_message(pack: Pack, ended: Sequence[str]) -> dict[str, Any]:
    """A pack to train, and which of its runs have a record."""
    return {"packs": packs_to_json([pack]), "ended": list(ended)}


def pack_in(message: Mapping[str, Any]) -> tuple[Pack, list[str]]:
    """What `pack_message` holds."""
    (pack,) = packs_from_json(message["packs"])
    return pack, message["ended"]


def end_message(end: PackEnd) -> dict[str, Any]:
    """The end of a pack's time with a process."""
    return {"end": asdict(end)}


def end_in(message: Mapping[str, Any]) -> PackEnd | None:
    """The end that a message is of; None if it tells of something else."""
    return PackEnd(**message["end"]) if "end" in message else None


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    return json.dumps(message).encode()
