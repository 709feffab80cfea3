"""What the driver of a search tells a pack between two of its steps: which runs join it, and which leave it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from manytune.config.plan import Run
from manytune.training.live_run import Entry
from manytune.training.outcome import Outcome
from manytune.utils.signals import StopRequest

_LOOK_SECONDS = 0.2  # between two looks for a request to stop, where a pack waits for runs


@dataclass(frozen=True)
class Orders:
    """Orders for one pack. To give them twice changes nothing, so each answer holds all that still counts."""

    pack_id: str
    join: tuple[Run, ...] = ()
    leave: Mapping[str, int] = field(default_factory=dict)  # id of a run → optimizer steps that it takes before
    close: bool = False  # no run will join any more: the pack ends with the runs that it has


class Inbox:
    """Orders on their way to a pack, which may come from another thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._join: dict[str, Run] = {}
        self._leave: dict[str, int] = {}
        self._closed = False

    def put(self, orders: Orders) -> None:
        """Take orders in."""
        with self._changed:
            self._join |= {run.id: run for run in orders.join}
            self._leave |= orders.leave
            self._closed = self._closed or orders.close
            self._changed.notify_all()

    def take(self, room: int, known: Collection[str]) -> list[Run]:
        """Runs that join now, at most `room`, in the order in which they were sent; of `known` ones none does."""
        with self._changed:
            new = [run_id for run_id in self._join if run_id not in known][:room]
            taken = [self._join[run_id] for run_id in new]
            self._join = {key: run for key, run in self._join.items() if key not in known and key not in new}
            return taken

    def wait(self, stop: StopRequest, known: Collection[str]) -> None:
        """Wait until there is a run to join, or none will come; raises Interrupted where a stop is requested."""
        with self._changed:
            while not self._closed and not any(run_id not in known for run_id in self._join):
                stop.obey()
                self._changed.wait(_LOOK_SECONDS)

    def leaving(self) -> Mapping[str, int]:
        """Runs that are to leave; each is returned until the pack has ended, so that none is missed."""
        with self._changed:
            return dict(self._leave)


class OrderedRuns:
    """The source of a pack whose runs join and leave as the driver orders."""

    def __init__(
        self,
        inbox: Inbox,
        size: int,
        entry: Callable[[Run], Entry],
        ask: Callable[[int, int, Mapping[str, int]], None],
        stop: StopRequest,
    ) -> None:
        """`size` is how many runs the pack has room for; 0: none joins.

        `ask(tick, room, joined)` tells the driver that there is room; its answer comes through the inbox, at once or
        later.
        """
        self._inbox, self._size, self._entry, self._ask, self._stop = inbox, size, entry, ask, stop
        self._told: tuple[int, int] | None = None  # of how much room, and of how many runs, the driver was told

    def next(self, room: int, joined: Mapping[str, int], tick: int) -> Sequence[Entry]:
        """The runs that were ordered to join; an empty pack waits for them."""
        if not self._size:
            return ()
        if self._told != (now := (room, len(joined))):  # also without room: the driver learns when a run has joined
            self._told = now
            self._ask(tick, room, joined)
        if room == self._size:
            self._inbox.wait(self._stop, joined)
        return [self._entry(run) for run in self._inbox.take(room, joined)]

    def leaving(self) -> Mapping[str, int]:
        """The runs that were ordered to leave."""
        return self._inbox.leaving()

    def ended(self, outcome: Outcome) -> None:
        """The driver learns it from the run's record."""
