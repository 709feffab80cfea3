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
from manytune.methods.adaptation import Adaptation
from manytune.models.loading import Backbone
from manytune.packing import Member, PackedModel
from manytune.storage.directory import Store
from manytune.storage.lookup import SNAPSHOT, altered
from manytune.storage.record import RunRecord
from manytune.utils.errors import StoreError
from manytune.utils.files import MOST_BYTES, open_regular, replacing_directory
from manytune.utils.json_text import parse_json
from manytune.utils.text import shortened

_FORMAT = 1
_TENSORS = "snapshot.safetensors"
_FACTS = "snapshot.json"


def save(directory: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """Write a snapshot in place of the one that may be there; returns its bytes on disk.

    Args:
        directory: It is there whole or not at all; its parent is made if need be.
        state: Tensors by name, as `Bank.state` gives them.
        facts: JSON values; `format` is added.

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
    """The tensors of a run's best snapshot, after checking that this run wrote them.

    The files must have the digests that the record holds. A record of version 1 holds none: there the facts beside the
    tensors are all that can be compared with the record and the planned run.

    Raises:
        StoreError: The snapshot is missing, damaged, or was written by another run.
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
    for name in own.keys() & found.keys():  # an earlier version wrote fewer facts
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
    """A model of one run with a snapshot's tensors, alone and in fp32; `best_score` is measured with it.

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
