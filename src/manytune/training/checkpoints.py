"""What a pack that was killed goes on from.

DIR/<step>.safetensors      the bank: values, moments, touched rows
DIR/run<r>-<step>.safetensors  one run's tensors at a step, that of its best evaluation or its last
DIR/<step>.json             written last: all else, and the SHA-256 of each of those files

The two newest checkpoints are kept: when one turns out to be damaged, the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from manytune.config.plan import Run
from manytune.storage.record import HistoryRow, RunState
from manytune.training.evaluation import Evaluation
from manytune.training.loop import Checkpoint, Outcome
from manytune.utils.errors import StoreError
from manytune.utils.files import digest_of, open_regular, read_bytes, replacing, write_atomically
from manytune.utils.json_text import parse_json

__all__ = ["Checkpoints"]

_FORMAT = 1
_SECONDS = 300.0
"""Between two checkpoints, where evaluations are rarer."""

_KEPT = 2
_MOST_BYTES = 2**32  # of the JSON file
_PLAIN = ("steps", "best_step", "train_seconds", "eval_seconds", "losses", "evaluations_since_best", "failure")
"""Fields of an outcome that JSON holds as they are."""

_TENSORS = ("best_state", "last_state")


class Checkpoints:
    """The checkpoints of one pack.

    Attributes:
        facts: What else is kept in each, by its owner: JSON values.
    """

    def __init__(self, directory: Path, runs: Sequence[Run], every: int | None, facts: Mapping[str, Any]) -> None:
        """Look at a pack's directory.

        Args:
            directory: Where they are; made when the first one is kept.
            runs: The runs of the pack; of them, those that a checkpoint is of take their place when it is read.
            every: Optimizer steps between two; None for every five minutes.
            facts: Kept in each.
        """
        self.directory = directory
        self.runs = runs
        self.every = every
        self.facts = dict(facts)
        self._digests: dict[str, str] = {}
        self._kept_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether enough steps, or minutes, have gone by."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self._kept_at >= _SECONDS

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, whole or not at all, and then remove all but the two newest.

        Raises:
            StoreError: It cannot be written.
        """
        name = f"{checkpoint.step:09d}"
        digests = {f"{name}.safetensors": self._write(f"{name}.safetensors", checkpoint.tensors)}
        outcomes = []
        for index, outcome in enumerate(checkpoint.outcomes):
            files = {}
            for field, step in zip(_TENSORS, (outcome.best_step, outcome.steps), strict=True):
                state = getattr(outcome, field)
                if not state:
                    continue
                file = files[field] = f"run{index}-{step}.safetensors"
                # A run's tensors at a step never change, so they are written once.
                digests[file] = self._digests.get(file) or self._write(file, state)
            outcomes.append({**_outcome_to_json(outcome), "files": files})
        document = {
            "format": _FORMAT,
            "runs": [run.id for run in self.runs],
            "step": checkpoint.step,
            "alive": checkpoint.alive,
            "seconds": checkpoint.seconds,
            "outcomes": outcomes,
            "digests": digests,
            "facts": self.facts,
        }
        text = json.dumps({"sha256": _document_digest(document), "checkpoint": document})
        write_atomically(self.directory / f"{name}.json", text + "\n")
        self._digests = digests
        self._kept_at = time.monotonic()
        self._clear()

    def newest(self, told: Callable[[str], None]) -> tuple[Checkpoint, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its facts; None if there is none.

        Args:
            told: Given a sentence on each that is not.
        """
        for path in reversed(self._documents()):
            try:
                return self._read(path)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                reason = " ".join(str(error).split())
                told(f"The checkpoint {path} is damaged ({reason}): it is left out, and an older one used, if any.")
                path.unlink(missing_ok=True)
        return None

    def forget(self) -> None:
        """Remove them all, for a pack that starts anew: those of later steps would else be taken for newer ones."""
        for path in self._documents():
            path.unlink(missing_ok=True)
        self._digests = {}
        if self.directory.exists():
            self._clear()

    def _write(self, file: str, tensors: Mapping[str, Tensor]) -> str:
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
        document = _document(path)
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}, and not {_FORMAT}")
        by_id = {run.id: run for run in self.runs}
        runs = [by_id[run_id] for run_id in document["runs"]]
        for file, digest in document["digests"].items():
            if digest_of(self._inside(file)) != digest:
                raise ValueError(f"{file} is not what was written")
        outcomes = []
        for run, facts in zip(runs, document["outcomes"], strict=True):
            outcome = _outcome_from_json(run, facts)
            for field, file in facts["files"].items():
                setattr(outcome, field, _tensors(self._inside(file)))
            outcomes.append(outcome)
        tensors = _tensors(self.directory / f"{path.stem}.safetensors")
        checkpoint = Checkpoint(document["step"], document["alive"], outcomes, tensors, document["seconds"])
        self._digests = document["digests"]
        self.runs = runs
        return checkpoint, document["facts"]

    def _inside(self, file: str) -> Path:
        if Path(file).name != file:
            raise ValueError(f"{file!r} is no file of this directory")
        return self.directory / file

    def _documents(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.json"))

    def _clear(self) -> None:
        """Remove what no checkpoint that is kept refers to."""
        documents = self._documents()
        kept = {path.name for path in documents[-_KEPT:]}
        for path in documents[-_KEPT:]:
            try:
                kept |= _document(path)["digests"].keys()
            except (ValueError, KeyError, TypeError, AttributeError):
                kept.discard(path.name)  # damaged: of no use to anyone
        for path in self.directory.iterdir():
            if path.name not in kept and (path.suffix in (".json", ".safetensors", ".tmp")):
                path.unlink(missing_ok=True)


def _document(path: Path) -> dict[str, Any]:
    """What a checkpoint's JSON file holds, if it is what was written."""
    whole = parse_json(read_bytes(path, _MOST_BYTES) or b"")
    document: dict[str, Any] = whole["checkpoint"]
    if _document_digest(document) != whole["sha256"]:
        raise ValueError("it is not what was written")
    return document


def _tensors(path: Path) -> dict[str, Tensor]:
    with open_regular(path):  # safetensors would wait for a pipe
        tensors: dict[str, Tensor] = load_file(path)
        return tensors


def _document_digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    plain = {name: getattr(outcome, name) for name in _PLAIN}
    return plain | {
        "state": str(outcome.state),
        "history": [row.model_dump(mode="python") for row in outcome.history],
        "best": _evaluation_to_json(outcome.best),
        "last": _evaluation_to_json(outcome.last),
    }


def _outcome_from_json(run: Run, facts: Mapping[str, Any]) -> Outcome:
    return Outcome(
        run,
        state=RunState(facts["state"]),
        history=[HistoryRow(**row) for row in facts["history"]],
        best=_evaluation_from_json(facts["best"]),
        last=_evaluation_from_json(facts["last"]),
        **{name: facts[name] for name in _PLAIN},
    )


def _evaluation_to_json(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """What is needed to compare later ones with it; predictions are not."""
    if evaluation is None:
        return None
    return {"scores": evaluation.scores, "loss": evaluation.loss, "collapsed": evaluation.collapsed}


def _evaluation_from_json(facts: Mapping[str, Any] | None) -> Evaluation | None:
    return None if facts is None else Evaluation(**facts, predictions=np.empty(0))
