"""Checkpoints of a pack: the tensors of its runs, and a roster that lists them.

DIR/state-<step>.safetensors             values, moments and touched rows of the runs that have not ended
DIR/<run-id>.<field>-<step>.safetensors  tensors of a run's outcome, such as those of its best evaluation
DIR/roster-<step>.json                   written last: each run's clock, outcome and files, and the files' SHA-256

Tensors are named and oriented as in the unpacked model, so a run can go on in another pack.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from manytune.config.plan import Run
from manytune.training.outcome import Checkpoint, Clock, Outcome, RunCheckpoint
from manytune.utils.errors import StoreError
from manytune.utils.files import digest_of, open_regular, read_bytes, replacing, write_atomically
from manytune.utils.text import parse_json

_FORMAT = 2
_SECONDS = 300.0  # between two checkpoints, where evaluations are rarer
_KEPT = 2  # checkpoints: where the newest is damaged, the one before is used
_MOST_BYTES = 2**32  # of a roster
_adapter: Any = cache(TypeAdapter)  # making one takes milliseconds


class Checkpoints:
    """The checkpoints of one pack."""

    def __init__(self, directory: Path, runs: Sequence[Run], every: int | None, facts: Mapping[str, Any]) -> None:
        """Read or write nothing yet; `directory` is made when the first checkpoint is kept.

        A checkpoint of other runs than `runs` is refused. `every` counts optimizer steps between two; None is every
        five minutes. `facts` are JSON values that `newest` returns.
        """
        self.directory, self.runs, self.every = directory, runs, every
        self.facts = dict(facts)
        self._digests: dict[str, str] = {}  # of the files of the newest checkpoint
        self._written: dict[tuple[str, str], tuple[dict[str, Tensor], str]] = {}  # (run, field) → (tensors, file)
        self._kept_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether enough steps, or minutes, have gone by."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self._kept_at >= _SECONDS

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove all but the two newest; raises StoreError where it cannot be written."""
        step = f"{checkpoint.step:09d}"
        digests: dict[str, str] = {}
        runs = []
        for each in checkpoint.runs:
            outcome, run_id, files = each.outcome, each.outcome.run.id, {}
            kind: Any = type(outcome)
            for name in _tensor_fields(kind):
                tensors: dict[str, Tensor] = getattr(outcome, name)
                if not tensors:
                    self._written.pop((run_id, name), None)
                    continue
                known, file = self._written.get((run_id, name), (None, ""))
                if known is not tensors:
                    file = f"{run_id}.{name}-{step}.safetensors"
                    self._digests[file] = self._write(file, tensors)
                    self._written[run_id, name] = (tensors, file)
                files[name] = file
                digests[file] = self._digests[file]
            values = _adapter(kind).dump_python(outcome, mode="json", exclude={"run", *files})
            clock = asdict(each.clock)
            runs.append(
                {
                    "id": run_id,
                    "alive": each.alive,
                    "clock": clock,
                    "joined": each.joined,
                    "outcome": values,
                    "files": files,
                }
            )
        digests[f"state-{step}.safetensors"] = self._write(f"state-{step}.safetensors", checkpoint.tensors)
        common = {"format": _FORMAT, "seconds": checkpoint.seconds, "facts": self.facts}
        roster = {**common, "runs": runs, "digests": digests}
        text = json.dumps({"sha256": _roster_digest(roster), "roster": roster})
        write_atomically(self.directory / f"roster-{step}.json", text + "\n")
        self._digests = digests
        self._kept_at = time.monotonic()
        self._clear()

    def newest(self, warn: Callable[[str], None]) -> tuple[Checkpoint, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its facts; None if there is none.

        `warn` is called with a sentence on each that cannot be used.
        """
        for path in reversed(self._rosters()):
            try:
                return self._read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                reason = " ".join(str(error).split())
                warn(f"The checkpoint {path} is damaged ({reason}): it is left out, and an older one used, if any.")
                path.unlink(missing_ok=True)
        if any(self.directory.glob("[0-9]*.json")):  # of format 1, which held the tensors of all runs stacked
            warn(
                f"The checkpoints in {self.directory} are of an earlier version of manytune, which this one cannot go "
                "on from: their runs start anew, unless you stop now, before they are replaced at the next checkpoint, "
                "and let that version finish them."
            )
        return None

    def forget(self) -> None:
        """Remove them all, for a pack that starts anew: `newest` takes the highest step, which may be one of theirs."""
        for path in self._rosters():
            path.unlink(missing_ok=True)
        self._digests, self._written = {}, {}
        if self.directory.exists():
            self._clear()

    def _write(self, file: str, tensors: Mapping[str, Tensor]) -> str:
        """Write tensors; returns the file's SHA-256."""
        path = self.directory / file
        try:
            with replacing(path) as temporary:
                save_file(dict(tensors), temporary)
        except SafetensorError as error:  # what the system refused, wrapped
            raise StoreError(
                f"{path} cannot be written: {error}. Make room there; the same command goes on."
            ) from error
        return digest_of(path)

    def _read(self, path: Path) -> tuple[Checkpoint, dict[str, Any]]:
        roster = _roster(path)
        if roster["format"] != _FORMAT:
            raise ValueError(f"its format is {roster['format']!r}, and not {_FORMAT}")
        for file, digest in roster["digests"].items():
            if digest_of(self._inside(file)) != digest:
                raise ValueError(f"{file} is not what was written")
        by_id = {run.id: run for run in self.runs}
        runs = []
        self._written = {}
        for entry in roster["runs"]:
            run = by_id[entry["id"]]
            loaded = {name: _tensors(self._inside(file)) for name, file in entry["files"].items()}
            values = {**entry["outcome"], **loaded, "run": run}
            if missing := {field.name for field in fields(Outcome)} - values.keys():
                raise ValueError(f"it lacks {sorted(missing)}")
            outcome = _adapter(Outcome).validate_python(values)
            self._written |= {(run.id, name): (loaded[name], file) for name, file in entry["files"].items()}
            clock = _adapter(Clock).validate_python(entry["clock"])
            # Checkpoints of before, of packs that no run could join, do not say it.
            runs.append(RunCheckpoint(clock, outcome, entry["alive"], entry.get("joined", 0)))
        tensors = _tensors(self.directory / f"{path.stem.replace('roster', 'state')}.safetensors")
        self._digests = roster["digests"]
        return Checkpoint(runs, tensors, roster["seconds"]), roster["facts"]

    def _inside(self, file: str) -> Path:
        if Path(file).name != file:
            raise ValueError(f"{file!r} is no file of this directory")
        return self.directory / file

    def _rosters(self) -> list[Path]:
        return sorted(self.directory.glob("roster-*.json"))

    def _clear(self) -> None:
        """Remove the files that no kept checkpoint refers to."""
        newest = self._rosters()[-_KEPT:]
        kept = {path.name for path in newest}
        for path in newest:
            try:
                kept |= _roster(path)["digests"].keys()
            except (ValueError, KeyError, TypeError, AttributeError):
                kept.discard(path.name)  # damaged: nothing can go on from it
        for path in self.directory.iterdir():
            if path.name not in kept and path.suffix in (".json", ".safetensors", ".tmp"):
                path.unlink(missing_ok=True)


def _roster(path: Path) -> dict[str, Any]:
    """What a roster's file holds, if it is what was written."""
    whole = parse_json(read_bytes(path, _MOST_BYTES) or b"")
    roster: dict[str, Any] = whole["roster"]
    if _roster_digest(roster) != whole["sha256"]:
        raise ValueError("it is not what was written")
    return roster


def _roster_digest(roster: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(roster).encode()).hexdigest()


def _tensors(path: Path) -> dict[str, Tensor]:
    with open_regular(path):  # safetensors would wait for a pipe
        tensors: dict[str, Tensor] = load_file(path)
        return tensors


@cache
def _tensor_fields(kind: Any) -> list[str]:
    """The fields of a class of outcomes that are files of their own."""
    return [name for name, hint in get_type_hints(kind).items() if hint == dict[str, Tensor]]
