"""What a study says while it trains: a live line a pack, plain lines without a terminal, or nothing.

    with make_progress(quiet=False) as progress:
        progress.pack_started("cola-adapters-0", task, run_ids, total_steps)
        progress.step("cola-adapters-0", 1, losses)
        ...

Everything goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, TracebackType
from typing import Literal, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarLine
from rich.segment import Segment
from rich.text import Text

from manytune.data.metrics import METRICS
from manytune.data.tasks import Task
from manytune.tracking.live import mean_loss
from manytune.utils.text import printable

__all__ = ["CleanConsole", "Level", "LiveProgress", "PlainProgress", "Progress", "QuietProgress", "make_progress"]

Level = Literal["info", "warning", "error"]
"""How much a message matters; warnings and errors are said even when quiet."""

Clock = Callable[[], float]
"""Seconds from any fixed moment, never backwards."""


class Progress(Protocol):
    """What is told how packs get on, several at once too; a context, entered before the first call."""

    def pack_started(self, pack_id: str, task: Task, runs: Sequence[str], total_steps: int) -> None:
        """A pack starts to train.

        Args:
            pack_id: The pack.
            task: Its task.
            runs: Ids of its runs.
            total_steps: Optimizer steps it will take if no run ends early.
        """

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """An optimizer step was taken, of which not every one need be told.

        Args:
            pack_id: The pack.
            step: Steps taken so far, from 1.
            losses: Training loss of each run still in the pack.
        """

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
        """The runs of a pack were evaluated.

        Args:
            pack_id: The pack.
            step: Steps taken so far.
            best: The run with the best score so far, and that score.
        """

    def run_ended(self, pack_id: str, run_id: str, state: str, note: str | None = None) -> None:
        """A run left the pack, or ended with it.

        Args:
            pack_id: The pack.
            run_id: The run.
            state: finished, failed, collapsed or pruned.
            note: Why, or what to do about it.
        """

    def pack_finished(self, pack_id: str, seconds: float | None) -> None:
        """The pack is done, `seconds` after it started; None: it was cut short, and may start again."""

    def message(self, text: str, level: Level = "info") -> None:
        """Something a user should know."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class CleanConsole(Console):
    """A console that writes as escapes whatever in a text would command the terminal; colours are its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything to segments."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


def make_progress(quiet: bool, console: Console | None = None) -> Progress:
    """Choose what fits the console.

    Args:
        quiet: Say nothing but warnings and errors.
        console: Where to; standard error if None.
    """
    console = console or CleanConsole(stderr=True)
    if quiet:
        return QuietProgress(console)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


@dataclass(frozen=True)
class _PackState:
    """What is known of the pack that trains now."""

    id: str
    metric: str
    runs: int
    alive: int
    total_steps: int
    started: float
    steps: int = 0
    loss: float | None = None
    best: tuple[str, float] | None = None

    @classmethod
    def start(cls, pack_id: str, task: Task, runs: Sequence[str], total_steps: int, now: float) -> _PackState:
        return cls(pack_id, METRICS[task.primary_metric].title, len(runs), len(runs), total_steps, now)

    def stepped(self, step: int, losses: Sequence[float]) -> _PackState:
        return replace(self, steps=step, loss=mean_loss(losses))

    def left_by_one(self) -> _PackState:
        return replace(self, alive=max(self.alive - 1, 0))

    def facts(self, now: float) -> str:
        """What is known: "8 runs, loss 0.512, best MCC 0.431, 3:20 left"."""
        seconds_left = None
        if self.steps:
            seconds_left = (now - self.started) / self.steps * max(self.total_steps - self.steps, 0)
        known = (
            _count(self.alive, "run"),
            None if self.loss is None else f"loss {self.loss:.3f}",
            None if self.best is None else f"best {self.metric} {self.best[1]:.3f}",
            None if seconds_left is None else f"{_duration(seconds_left)} left",
        )
        return ", ".join(fact for fact in known if fact)

    def summary(self, seconds: float) -> str:
        """The line that stays when the pack is done."""
        best = f", best {self.metric} {self.best[1]:.3f} ({self.best[0]})" if self.best else ""
        took = f"{_count(self.steps, 'step')} in {_duration(seconds)}"
        return f"{self.id}: {_count(self.runs, 'run')}, {took}{best}"


_LEVEL_OF_STATE: Mapping[str, Level] = MappingProxyType({"failed": "error", "collapsed": "warning"})
_STYLE: Mapping[Level, str] = MappingProxyType({"info": "", "warning": "yellow", "error": "bold red"})


def _say(console: Console, text: str, level: Level = "info") -> None:
    """Print a text as it is: never wrapped, and brackets in it are no markup."""
    prefix = "" if level == "info" else f"{level}: "
    console.print(Text(printable(prefix + text, keep="\n"), style=_STYLE[level]), soft_wrap=True)


def _say_end(console: Console, run_id: str, state: str, note: str | None) -> None:
    _say(console, f"{run_id} {state}" + (f": {note}" if note else ""), _LEVEL_OF_STATE.get(state, "info"))


class QuietProgress:
    """Says nothing but warnings, errors, and which runs failed or collapsed."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def pack_started(self, pack_id: str, task: Task, runs: Sequence[str], total_steps: int) -> None:
        """Say nothing."""

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Say nothing."""

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
        """Say nothing."""

    def run_ended(self, pack_id: str, run_id: str, state: str, note: str | None = None) -> None:
        """Say it of a run that failed or collapsed."""
        if state in _LEVEL_OF_STATE:
            _say_end(self._console, run_id, state, note)

    def pack_finished(self, pack_id: str, seconds: float | None) -> None:
        """Say nothing."""

    def message(self, text: str, level: Level = "info") -> None:
        """Say it if it is a warning or an error."""
        if level != "info":
            _say(self._console, text, level)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PlainProgress:
    """A line when a pack starts, at each evaluation, and when the pack is done: for logs and pipes."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._packs: dict[str, _PackState] = {}

    def pack_started(self, pack_id: str, task: Task, runs: Sequence[str], total_steps: int) -> None:
        """Say what starts."""
        self._packs[pack_id] = _PackState.start(pack_id, task, runs, total_steps, self._clock())
        _say(self._console, f"{pack_id}: {_count(len(runs), 'run')} on {task.name}, {_count(total_steps, 'step')}")

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Take note."""
        self._packs[pack_id] = self._packs[pack_id].stepped(step, losses)

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
        """Say how far the pack is, and the best score so far."""
        pack = self._packs[pack_id] = replace(self._packs[pack_id], steps=step, best=best)
        _say(self._console, f"{pack_id}: step {step}/{pack.total_steps}, {pack.facts(self._clock())}")

    def run_ended(self, pack_id: str, run_id: str, state: str, note: str | None = None) -> None:
        """Say it, unless it ended as planned and there is nothing to add."""
        if pack_id in self._packs:  # else it failed without having started
            self._packs[pack_id] = self._packs[pack_id].left_by_one()
        if note or state != "finished":
            _say_end(self._console, run_id, state, note)

    def pack_finished(self, pack_id: str, seconds: float | None) -> None:
        """Say what the pack came to."""
        pack = self._packs.pop(pack_id, None)
        if pack is not None and seconds is not None:
            _say(self._console, pack.summary(seconds))

    def message(self, text: str, level: Level = "info") -> None:
        """Say it."""
        _say(self._console, text, level)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


_WIDTH_FOR_A_BAR = 110  # the figures come first; they and a bar take about so many columns


class _PackColumn(ProgressColumn):
    """The pack's id; in a narrow terminal it is what gets shorter, so that the figures stay."""

    def render(self, task: BarLine) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class LiveProgress:
    """One line a pack that is redrawn in place; what stays is written above them."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._packs: dict[str, _PackState] = {}
        self._lines: dict[str, TaskID] = {}
        self._bar = Bar(
            _PackColumn(),
            *([BarColumn(bar_width=16)] if console.width >= _WIDTH_FOR_A_BAR else []),
            TextColumn("{task.completed}/{task.total}", markup=False),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            refresh_per_second=4,
        )

    def pack_started(self, pack_id: str, task: Task, runs: Sequence[str], total_steps: int) -> None:
        """Start the pack's line."""
        self._packs[pack_id] = _PackState.start(pack_id, task, runs, total_steps, self._clock())
        self._lines[pack_id] = self._bar.add_task(pack_id, total=total_steps, facts="")
        self._redraw(pack_id)

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Move the line on."""
        self._packs[pack_id] = self._packs[pack_id].stepped(step, losses)
        self._redraw(pack_id)

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
        """Show the best score so far."""
        self._packs[pack_id] = replace(self._packs[pack_id], steps=step, best=best)
        self._redraw(pack_id)

    def run_ended(self, pack_id: str, run_id: str, state: str, note: str | None = None) -> None:
        """Say it, unless it ended as planned and there is nothing to add; count the runs that are left."""
        if pack_id in self._packs:  # else it failed without having started
            self._packs[pack_id] = self._packs[pack_id].left_by_one()
            self._redraw(pack_id)
        if note or state != "finished":
            _say_end(self._console, run_id, state, note)

    def pack_finished(self, pack_id: str, seconds: float | None) -> None:
        """Replace the line by what the pack came to."""
        pack = self._packs.pop(pack_id, None)
        if pack is None:
            return
        self._bar.remove_task(self._lines.pop(pack_id))
        if seconds is not None:
            _say(self._console, pack.summary(seconds))

    def message(self, text: str, level: Level = "info") -> None:
        """Say it above the line."""
        _say(self._console, text, level)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _redraw(self, pack_id: str) -> None:
        pack = self._packs[pack_id]
        self._bar.update(self._lines[pack_id], completed=pack.steps, facts=pack.facts(self._clock()))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03", "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
