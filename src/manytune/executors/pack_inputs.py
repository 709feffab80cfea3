"""What packs are trained from: the study, its tasks made ready, its backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from manytune.config import Study
from manytune.models.loading import Backbone, load_backbone
from manytune.storage.lock import Held
from manytune.training.workload import TaskWork

__all__ = ["Backbones", "PackInputs"]


@dataclass(frozen=True)
class PackInputs:
    """What an executor trains from.

    Attributes:
        study: The study.
        root: The study directory.
        works: Of each task that has runs to train.
        backbone: The backbone for a task.
        held: The lock of the study directory; None where the pack is trained in a folder of its own.
    """

    study: Study
    root: Path
    works: Mapping[str, TaskWork]
    backbone: Callable[[TaskWork], tuple[TaskWork, Backbone]]
    held: Held | None = None

    def check(self) -> None:
        """To be called before each write.

        Raises:
            StoreError: This process, or the one that it works for, may not write to the study directory any more.
        """
        if self.held is not None:
            self.held.check()


class Backbones:
    """The backbone of the task at hand: one for all tasks with as many outputs."""

    def __init__(self) -> None:
        self._outputs: int | None = None
        self._backbone: Backbone

    def of(self, work: TaskWork) -> tuple[TaskWork, Backbone]:
        """A task's work and backbone; the loaded weights say whether the pooler is the backbone's or the head's."""
        if self._outputs != work.task.num_outputs:
            self._backbone = load_backbone(work.study.model, work.task.num_outputs)
            self._outputs = work.task.num_outputs
        return replace(work, model_spec=self._backbone.model_spec), self._backbone
