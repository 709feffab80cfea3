"""The protocol by which progress, trackers, records, checkpoints and users' code follow a study.

The same calls are made wherever a pack trains; between processes they travel as JSON (`executors.messages`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from manytune.config.plan import Pack
from manytune.storage.record import HistoryRow, RunRecord
from manytune.utils.errors import ManytuneError

if TYPE_CHECKING:  # they hold tensors, and this module is loaded by commands that import no torch
    from manytune.training.outcome import Checkpoint, Outcome

Level = Literal["info", "warning", "error"]
"""How much a message matters; warnings and errors are shown even when quiet."""

How = Literal["done", "stopped", "broken", "refused", "lost"]
"""How a pack's time with an executor ended: all its runs ended; it was stopped where it can go on; an error broke it;
an error that the user can correct; the process or machine that trained it is gone."""

Best = tuple[str, float] | None
"""The run of a pack with the best score so far, and that score; None before any score is a number."""


@dataclass(frozen=True)
class PackEnd:
    """The end of a pack's time with an executor."""

    pack_id: str
    how: How
    seconds: float | None = None  # since it started there, where it is done
    reason: str | None = None  # what broke it, what the user can correct, or how its process died
    traceback: str | None = None
    out_of_memory: bool = False


class Callback:
    """What is called while a study runs. Every method does nothing until it is overridden.

    >>> class Losses(Callback):
    ...     def on_step_end(self, pack_id, step, losses):
    ...         print(pack_id, step, losses)

    Give instances to `run_study(study, out, callbacks=[Losses()])`. All calls are made in the process and thread that
    called `run_study`, wherever packs train. An exception that a method raises ends the study; what was done until then
    is kept, and the same call goes on from it.
    """

    def on_study_begin(self, packs: Sequence[Pack], ended: Mapping[str, RunRecord]) -> None:
        """Training begins; not called if every run has ended before.

        `packs` are all of the study; `ended` maps run id → record, of runs that are not trained again.
        """

    def on_train_begin(
        self, pack_id: str, task: str, metric: str, runs: Sequence[str], total_steps: int, first_step: int = 0
    ) -> None:
        """A pack begins to train, or goes on from a checkpoint after `first_step` optimizer steps.

        `metric` is the one that selects, `runs` are ids of its runs that have no record yet, `total_steps` is how many
        optimizer steps it takes if no run ends early: of a run, or, where runs join as others leave, from the first
        run's first to the last run's last.
        """

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Every run in a pack took an optimizer step; from another process, at most four a second are reported.

        `step` counts those of the pack from 1; `losses` are the training losses of the runs in it.
        """

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: Best) -> None:
        """Runs of a pack were evaluated after `step` steps of the pack.

        `rows` maps run id → its newest row of history; `best` is the best run so far, also of those that have left.
        """

    def on_room(self, pack_id: str, step: int, room: int, joined: Mapping[str, int]) -> None:
        """A pack of a search has room for so many more runs, or none, after `step` steps; called when that changes.

        `joined` maps the id of each run that it has, or had, → the pack's steps when the run joined.
        """

    def on_checkpoint(self, pack_id: str, step: int) -> None:
        """A checkpoint of a pack after `step` steps is on the disk."""

    def on_run_end(self, pack_id: str, record: RunRecord) -> None:
        """A run has ended: its history, snapshot and predictions are written, its state is in the record."""

    def on_pack_end(self, end: PackEnd) -> None:
        """A pack's time with its executor is over; unless it is done, it may begin again."""

    def on_message(self, text: str, level: Level = "info") -> None:
        """Something that the user should know; also called before and after training."""

    def on_study_end(self) -> None:
        """Training is over, also by an error or a signal; called after every `on_study_begin`."""


class PackCallback(Callback):
    """What the training loop calls besides, in the process that trains, where the tensors are."""

    def should_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is wanted after this step, although no run was evaluated or left."""
        return False

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; may raise to stop the training there."""

    def is_recorded(self, run_id: str) -> bool:
        """Whether the end of a run is kept elsewhere for good, so that later checkpoints may do without its tensors."""
        return False

    def on_run_trained(self, outcome: Outcome) -> None:
        """A run has left the pack. The newest checkpoint contains its end, so it is never trained again."""


class ForwardingCallback(Callback):
    """A callback that handles every call in one method, `forward`."""

    def forward(self, hook: str, arguments: Mapping[str, Any]) -> None:
        """Handle the call of the method `hook`; `arguments` maps name → value, in the method's order."""
        raise NotImplementedError


def _forwarding(hook: str) -> Any:
    original = getattr(Callback, hook)
    signature = inspect.signature(original)

    @wraps(original)
    def method(self: ForwardingCallback, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        self.forward(hook, {name: value for name, value in bound.arguments.items() if name != "self"})

    return method


for _hook in vars(Callback):
    if _hook.startswith("on_"):
        setattr(ForwardingCallback, _hook, _forwarding(_hook))


class CallbackList(ForwardingCallback):
    """Several callbacks as one, called in their order; the end of a study reaches them in reverse."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def forward(self, hook: str, arguments: Mapping[str, Any]) -> None:
        """Call each; at the end of the study, all of them, even where one fails at it."""
        if hook == "on_study_end":
            with ExitStack() as stack:
                for callback in self.callbacks:
                    stack.callback(callback.on_study_end)
            return
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments.values())


class GuardedCallback(ForwardingCallback):
    """A user's callback: its errors end the study, not only the runs of a pack. Raises TypeError for other objects."""

    def __init__(self, callback: object) -> None:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks: {callback!r} ({type(callback).__name__}) is no instance of manytune.Callback")
        self.callback = callback

    def forward(self, hook: str, arguments: Mapping[str, Any]) -> None:
        """Make the call; what it raises becomes a ManytuneError."""
        try:
            getattr(self.callback, hook)(*arguments.values())
        except ManytuneError:
            raise
        except Exception as error:
            name = type(self.callback).__name__
            raise ManytuneError(f"The callback {name} failed in {hook}: {type(error).__name__}: {error}") from error
