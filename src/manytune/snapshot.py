"""A run's trained tensors on disk: save, load, and score what was loaded.

DIR/snapshot.safetensors   every tensor that belongs to the run: what it trained, and its head
DIR/snapshot.json          what the tensors mean: model, revision, method, task
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from manytune.backbones import Backbone
from manytune.errors import StoreError
from manytune.json_text import parse_json
from manytune.packing import Adaptation, Member, PackedModel

__all__ = ["load", "restore", "save"]

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
    # A name of its own, in case another process writes the same snapshot at the same time.
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        save_file(dict(state), temporary / _TENSORS)
        (temporary / _FACTS).write_text(json.dumps({"format": _FORMAT, **facts}, indent=2) + "\n")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _replace(directory, temporary)
        return sum(path.stat().st_size for path in directory.iterdir())
    except (OSError, SafetensorError) as error:
        raise StoreError(f"The snapshot {directory} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a snapshot: its tensors by name, and its facts.

    Raises:
        StoreError: It is missing, damaged, or of a newer format.
    """
    try:
        facts = parse_json((directory / _FACTS).read_text())
        if not isinstance(facts, dict):
            raise ValueError(f"{_FACTS} holds no mapping")
        if facts.get("format") != _FORMAT:
            raise StoreError(
                f"The snapshot {directory} has format {facts.get('format')!r}; this manytune reads {_FORMAT}."
            )
        return load_file(directory / _TENSORS), facts
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"The snapshot {directory} cannot be read: {error}.") from error


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
    model = PackedModel(backbone, [Member(seed, adaptation)], device=device)
    try:
        model.bank.load(0, state)
    except (KeyError, ValueError) as error:
        raise StoreError(f"The snapshot does not fit its run: {error}.") from error
    return model


def _replace(directory: Path, new: Path) -> None:
    """Put `new` in the place of `directory`, which stays as it was if that fails."""
    old = new.with_suffix(".old")
    if directory.exists():
        directory.rename(old)
    try:
        new.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
