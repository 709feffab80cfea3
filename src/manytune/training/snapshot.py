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
from manytune.packing import Adaptation, Member, PackedModel
from manytune.storage.directory import Store
from manytune.storage.lookup import SNAPSHOT, altered
from manytune.storage.record import RunRecord
from manytune.utils.errors import StoreError
from manytune.utils.files import MOST_BYTES, open_regular, replacing_directory
from manytune.utils.json_text import parse_json
from manytune.utils.text import shortened

__all__ = ["load", "load_own", "restore", "restore_pack", "save"]

_FORMAT = 1
_TENSORS = "snapshot.safetensors"
_FACTS = "snapshot.json"


def save(directory: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """Write a snapshot, whole or not at all; one that is there is replaced.

    Args:
        directory: Where to; its parent is made if need be.
        state: Tensors by name, as the bank gives them.
        facts: JSON-able; `format` is added.

    Returns:
        Bytes on disk.

    Raises:
        StoreError: It cannot be written.
    """
    try:
        with replacing_directory(directory) as temporary:
            save_file(dict(state), temporary / _TENSORS)
            (temporary / _FACTS).write_text(json.dumps({"format": _FORMAT, **facts}, indent=2) + "\n")
        return sum(path.stat().st_size for path in directory.iterdir())
    except (OSError, SafetensorError) as error:
        raise StoreError(f"The snapshot {directory} cannot be written: {error}.") from error


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a snapshot: its tensors by name, and its facts.

    Raises:
        StoreError: It is missing, damaged, or of a newer format.
    """
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
    """The tensors of a run's best snapshot, once they are known to be the run's own.

    The files must have the digests of the record; one of version 1 has none, so there the snapshot's facts alone can
    tell.

    Args:
        store: The study directory.
        record: Of the run.
        run: The same run, as it is planned.

    Raises:
        StoreError: The snapshot is missing, damaged, or another one than the run wrote.
    """
    directory = store.snapshot_dir(run.id)
    state, facts = load(directory)
    if said := altered(store, record, SNAPSHOT):
        raise StoreError(said)
    store.task_artifacts(record.task).complete(store.study().task(record.task), [record])
    own = {"run_id": run.id, "model": record.model, "task": record.task, "seed": record.seed}
    if record.provenance.model_revision is not None:
        own["model_revision"] = record.provenance.model_revision
    own |= run.method.model_dump(mode="json")
    method = facts.get("method")
    found = {**facts, **(method if isinstance(method, dict) else {})}
    # A fact that an earlier version did not write cannot differ.
    for name in own.keys() & found.keys():
        if found[name] != own[name]:
            raise StoreError(
                f"The snapshot {directory} is not of the run {run.id}: its {name} is {shortened(found[name])}, the "
                f"run's {shortened(own[name])}. Put back the snapshot and the plan.json that belong to it, or delete "
                f"{directory.parent} and run the study again."
            )
    return state


def restore(
    backbone: Backbone,
    adaptation: Adaptation,
    state: Mapping[str, Tensor],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PackedModel:
    """A model of one run with a snapshot's tensors, alone and in fp32: what `best_score` is measured with.

    Raises:
        StoreError: The tensors are not those of such a run.
    """
    return restore_pack(backbone, [Member(seed, adaptation)], [state], device=device)


def restore_pack(
    backbone: Backbone,
    members: Sequence[Member],
    states: Sequence[Mapping[str, Tensor]],
    *,
    device: torch.device | str = "cpu",
) -> PackedModel:
    """A model of several runs with their snapshots' tensors, in fp32.

    Raises:
        StoreError: The tensors are not those of such runs.
    """
    model = PackedModel(backbone, members, device=device)
    for index, state in enumerate(states):
        try:
            model.bank.load(index, state)
        except (KeyError, ValueError) as error:
            raise StoreError(f"The snapshot does not fit its run: {error}.") from error
    return model
