"""The files that a study directory keeps of one task: OUT/tasks/<task>/, see `evidence`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manytune.errors import StoreError
from manytune.evidence import Examples, Learned, Structure
from manytune.files import read_text, write_atomically, write_file
from manytune.tasks import Task

__all__ = ["TaskFiles"]

_MOST_EXAMPLES_BYTES = 2**31


@dataclass(frozen=True)
class TaskFiles:
    """What is kept of one task."""

    directory: Path
    """OUT/tasks/<task>."""

    def refuse_another(self, task: Task) -> None:
        """Refuse to train on where runs that are kept predict other classes, or other targets.

        Raises:
            StoreError: They do.
        """
        learned = self._learned() if task.own is not None else None
        if learned is not None and not learned.agrees(Learned.of(task)):
            raise StoreError(
                f"Task {task.name}: its data has other classes, or targets on another scale, than what the runs in "
                f"{self.directory.parent.parent} were trained on. Give another --out."
            )

    def keep(self, task: Task, examples: Examples, structure: Structure) -> None:
        """Keep a task's dev rows, its module tree, and what only its data says.

        Rows that are there stay: runs that have ended were scored on them. A tree that is there learns of methods that
        were added since.

        Raises:
            StoreError: It cannot be written.
        """
        if task.own is not None:
            write_atomically(self._path("learned"), Learned.of(task).to_json())
        if not self._path("examples").exists():
            write_atomically(self._path("examples"), examples.to_json())
        with suppress(StoreError):  # a damaged one is made anew
            if (there := self.structure()) is not None:
                structure = structure.model_copy(update={"trained": {**there.trained, **structure.trained}})
        write_file(self._path("structure"), structure.to_json())

    def complete(self, task: Task) -> Task:
        """A task with what only its data says.

        Raises:
            StoreError: That is not there, or damaged.
        """
        if task.own is None:
            return task
        learned = self._learned()
        if learned is None:
            raise StoreError(f"{self._path('learned')} is missing: without it, the outputs have no names.")
        try:
            return learned.complete(task)
        except ValueError as error:
            raise StoreError(
                f"{self._path('learned')} is damaged: {error}. Put back what `manytune run` wrote."
            ) from error

    def examples(self, task: Task | None = None) -> Examples | None:
        """The dev rows; None if they were not kept.

        Raises:
            StoreError: They are damaged, or rows of another task than `task`.
        """
        path = self._path("examples")
        text = read_text(path, _MOST_EXAMPLES_BYTES)
        found = None if text is None else Examples.from_json(text, where=str(path))
        if found is not None and task is not None and not found.fit(task):
            raise StoreError(f"{path} does not hold rows of {task.name}: their texts or labels are of another task.")
        return found

    def structure(self) -> Structure | None:
        """The module tree; None if it was not kept."""
        text = read_text(self._path("structure"))
        return None if text is None else Structure.from_json(text, where=str(self._path("structure")))

    def _learned(self) -> Learned | None:
        text = read_text(self._path("learned"))
        return None if text is None else Learned.from_json(text, where=str(self._path("learned")))

    def _path(self, kind: str) -> Path:
        return self.directory / f"{kind}.json"
