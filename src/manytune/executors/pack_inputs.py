"""What packs are trained from: the study directory, the encoded tasks, the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from manytune.models.loading import Backbone, load_backbone
from manytune.models.spec import ModelSpec
from manytune.packing.sharing import on_device
from manytune.storage.lock import Held
from manytune.training.workload import TaskWork


class Backbones:
    """The backbone with as many outputs as a task asks for; the one loaded last is kept."""

    def __init__(self, model: str, loaded: Backbone | None = None) -> None:
        self._model = model
        self._loaded = loaded
        self._placed: tuple[Backbone, torch.device, Backbone] | None = None  # what was loaded, where it is, and as what

    def of(self, outputs: int) -> Backbone:
        """The backbone with `outputs` outputs; raises what `load_backbone` raises."""
        if self._loaded is None or self._loaded.config.num_labels != outputs:
            self._loaded = load_backbone(self._model, outputs)
        return self._loaded

    def on(self, device: torch.device, outputs: int) -> Backbone:
        """The same on a device, where it stays: packs train from it, and their runs are scored from it in fp32."""
        loaded = self.of(outputs)
        if self._placed is None or self._placed[0] is not loaded or self._placed[1] != device:
            self._placed = loaded, device, on_device(loaded, device)
        return self._placed[2]

    def spec(self, outputs: int) -> ModelSpec:
        """Its tensors and head; only the loaded weights say whether a pooler is the backbone's or the head's."""
        return self.of(outputs).model_spec

    @property
    def revision(self) -> str | None:
        """Of the weights that were loaded; None before any were."""
        return None if self._loaded is None else self._loaded.revision


@dataclass(frozen=True)
class PackInputs:
    """What an executor trains from."""

    root: Path  # the study directory
    works: Mapping[str, TaskWork]  # of each task that has runs to train
    backbones: Backbones  # what runs start from
    held: Held | None = None  # the lock of the study directory; None where the pack is trained in a folder of its own

    def check(self) -> None:
        """Raise StoreError where this process, or its driver, has lost the directory's lock; for every write."""
        if self.held is not None:
            self.held.check()
