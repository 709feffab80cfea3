"""A run's trained tensors on disk: save, load, and score what was loaded.

DIR/snapshot.safetensors   every tensor that belongs to the run: what it trained, and its head
DIR/snapshot.json          what the tensors mean: model, revision, method, task
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from manytune.config.plan import Run
from manytune.models.loading import Backbone
from manytune.packing import Member, PackedModel
from manytune.storage.directory import Store
from manytune.storage.lookup import SNAPSHOT, altered
from manytune.storage.record import RunRecord
from manytune.utils.errors import StoreError
from manytune.utils.files import MOST_BYTES, open_regular, replacing_directory
from manytune.utils.text import parse_json, shortened

_FORMAT = 1
_TENSORS = "snapshot.safetensors"
_FACTS = "snapshot.json"


def save(directory: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """Write or replace a snapshot, whole or not at all; returns its bytes on disk.

    `state` is what `Bank.state` gives, `facts` are JSON values. Raises StoreError where it cannot be written.
    """
    try:
        with replacing_directory(directory) as temporary:
            save_file(dict(state), temporary / _TENSORS)
            (temporary / _FACTS).write_text(json.dumps({"format": _FORMAT, **facts}, indent=2) + "\n")
        return sum(path.stat().st_size for path in directory.iterdir())
    except (OSError, SafetensorError) as error:
        raise StoreError(f"The snapshot {directory} cannot be written: {error}.") from error


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A snapshot's tensors by name, and its facts; raises StoreError where it is missing, damaged or too new."""
    try:
        with open_regular(directory / _FACTS) as file:
            facts = parse_json(file.read(MOST_BYTES))
        if not isinstance(facts, dict):
            raise ValueError(f"{_FACTS} holds no mapping")
        if facts.get("format") != _FORMAT:
            raise StoreError(
                f"The snapshot {directory} has format {shortened(repr(facts.get('format')))}; this manytune reads "
                f"{_FORMAT}."
            )
        with open_regular(directory / _TENSORS):  # safetensors would wait for a pipe
            return load_file(directory / _TENSORS), facts
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"The snapshot {directory} cannot be read: {error}.") from error


def load_own(store: Store, record: RunRecord, run: Run) -> dict[str, Tensor]:
    """The tensors of a run's best snapshot, after checking that this run wrote them.

    The files must have the digests that the record holds; a record of version 1 holds none, so only the facts beside
    the tensors can be compared with record and plan. Raises StoreError where the snapshot is missing, damaged, or was
    written by another run.
    """
    directory = store.snapshot_dir(run.id)
    state, facts = load(directory)
    if problem := altered(store, record, SNAPSHOT):
        raise StoreError(problem)
    store.task_artifacts(record.task).complete(store.study().task(record.task), [record])
    expected = {"run_id": run.id, "model": record.model, "task": record.task, "seed": record.seed}
    if record.provenance.model_revision is not None:
        expected["model_revision"] = record.provenance.model_revision
    expected |= run.method.model_dump(mode="json")
    method = facts.get("method")
    found = {**facts, **(method if isinstance(method, dict) else {})}
    for name in expected.keys() & found.keys():  # an earlier version wrote fewer facts
        if found[name] != expected[name]:
            raise StoreError(
                f"The snapshot {directory} is not of the run {run.id}: its {name} is {shortened(found[name])}, the "
                f"run's {shortened(expected[name])}. Put back the snapshot and the plan.json that belong to it, or "
                f"delete {directory.parent} and run the study again."
            )
    return state


def restore(
    backbone: Backbone,
    members: Sequence[Member],
    states: Sequence[Mapping[str, Tensor]],
    *,
    device: torch.device | str = "cpu",
) -> PackedModel:
    """A model of runs with their snapshots' tensors, in fp32; `best_score` is measured with one of a single run.

    Raises StoreError where the tensors are not those of such runs.
    """
    model = PackedModel(backbone, members, device=device)
    for index, state in enumerate(states):
        try:
            model.bank.load(index, state)
        except (KeyError, ValueError) as error:
            raise StoreError(f"The snapshot does not fit its run: {error}.") from error
    return model
