"""The files that a study directory keeps of one task: OUT/tasks/<task>/, see `artifacts`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manytune.data.tasks import Task
from manytune.storage.artifacts import Examples, Learned, Structure
from manytune.storage.record import RunRecord
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_atomically, write_file

_MOST_EXAMPLES_BYTES = 2**31


@dataclass(frozen=True)
class TaskArtifacts:
    """What is kept of one task."""

    directory: Path
    """OUT/tasks/<task>."""

    def refuse_another(self, task: Task, records: Iterable[RunRecord]) -> None:
        """Refuse to go on where runs that have ended predict other classes, or other targets, than the data has now.

        `task` has what its data says now; `records` are those of all its runs that the study has.

        Raises:
            StoreError: They do.
        """
        if task.own is None:
            return
        now, known = Learned.of(task), {record.learned for record in records}
        there = self._learned() if None in known else None  # of an earlier version's records, it alone can tell
        if known - {None, now.digest} or (there is not None and not there.agrees(now)):
            raise StoreError(
                f"Task {task.name}: its data has other classes, or targets on another scale, than what the runs in "
                f"{self.directory.parent.parent} were trained on. Give another --out."
            )

    def fit(self, records: Iterable[RunRecord]) -> bool:
        """Whether the classes, or the scale of targets, that are kept are those that these runs learned."""
        known = {record.learned for record in records} - {None}
        with suppress(StoreError):
            there = self._learned() if known else None
            return known <= {there and there.digest}
        return False

    def keep(
        self, task: Task, examples: Examples, structure: Structure, scored: Collection[str | None] | None = None
    ) -> None:
        """Keep a task's dev rows, its module tree, and what only its data says.

        A tree that is there learns of methods that were added since. Rows that are there stay if their fingerprint is
        in `scored`, those of the data of the study's runs that have ended; where it is not given, all do.

        Raises:
            StoreError: It cannot be written.
        """
        if task.own is not None:
            write_atomically(self._path("learned"), Learned.of(task).to_json())
        if not self._stay(scored):
            write_atomically(self._path("examples"), examples.to_json())
        with suppress(StoreError):  # a damaged one is made anew
            if (there := self.structure()) is not None:
                structure = structure.model_copy(update={"trained": {**there.trained, **structure.trained}})
        write_file(self._path("structure"), structure.to_json())

    def _stay(self, scored: Collection[str | None] | None) -> bool:
        """Whether the dev rows that are there must stay, because runs that have ended were scored on them."""
        if scored is None or not self._path("examples").exists():
            return self._path("examples").exists()
        with suppress(StoreError):
            there = self.examples()
            return there is not None and there.fingerprint in {*scored, None}
        return False

    def complete(self, task: Task, records: Iterable[RunRecord] = ()) -> Task:
        """A task of the study with what only its data says, which is what these runs have learned.

        Raises:
            StoreError: That is not there, damaged, or not what a run has learned.
        """
        if task.own is None:
            return task
        learned = self._learned()
        if learned is None:
            raise StoreError(f"{self._path('learned')} is missing: without it, the outputs have no names.")
        try:
            whole = learned.complete(task)
        except ValueError as error:
            raise StoreError(
                f"{self._path('learned')} is damaged: {error}. Put back what `manytune run` wrote."
            ) from error
        for record in records:
            if record.learned not in (None, learned.digest):
                raise StoreError(
                    f"{self._path('learned')} is not what the run {record.run_id} was trained with: it has other "
                    "classes, or another scale of targets. Run the study again: it is made anew from the data."
                )
        return whole

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
