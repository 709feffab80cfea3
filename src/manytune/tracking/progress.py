"""Progress of a study on the terminal; on standard error, so that standard output holds only results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from manytune.data.metrics import METRICS
from manytune.storage.record import HistoryRow, RunRecord, RunState
from manytune.tracking.pack_progress import PackObserver, PackProgress, TimeSource
from manytune.training.callbacks import Best, Level, PackEnd
from manytune.utils.text import counted, duration, printable

_WIDTH_FOR_A_BAR = 110  # columns; with fewer, the figures are shown without a bar
_LEVEL_OF_STATE: Mapping[str, Level] = MappingProxyType({"failed": "error", "collapsed": "warning"})
_STYLE: Mapping[Level, str] = MappingProxyType({"info": "", "warning": "yellow", "error": "bold red"})


class CleanConsole(Console):
    """A console that writes as escapes whatever in a text would command the terminal; colours are its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


class TerminalProgress(PackObserver):
    """On a terminal, a line for each pack that is redrawn, below messages that stay; elsewhere, plain lines.

    With `quiet`, only warnings, errors, and which runs failed or collapsed.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, clock: TimeSource = time.monotonic
    ) -> None:
        """Print nothing yet; without a console, it will be standard error."""
        super().__init__(clock)
        self._console = console or CleanConsole(stderr=True)
        self._quiet = quiet
        self._lines: dict[str, TaskID] = {}
        self._bar: Bar | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Bar(
                _PackColumn(),
                *([BarColumn(bar_width=16)] if self._console.width >= _WIDTH_FOR_A_BAR else []),
                TextColumn("{task.completed}/{task.total}", markup=False),
                _FactsColumn(self.seconds_since),
                console=self._console,
                refresh_per_second=4,
            )

    def on_train_begin(
        self, pack_id: str, task: str, metric: str, runs: Sequence[str], total_steps: int, first_step: int = 0
    ) -> None:
        super().on_train_begin(pack_id, task, metric, runs, total_steps, first_step)
        if self._bar is not None:
            self._bar.start()
            self._lines[pack_id] = self._bar.add_task(pack_id, total=total_steps, pack=self.packs[pack_id])
            self._redraw(pack_id)
        else:
            most = "" if runs else "at most "
            self.on_message(f"{pack_id}: {_runs(runs)} on {task}, {most}{counted(total_steps, 'step')}")

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        super().on_step_end(pack_id, step, losses)
        self._redraw(pack_id)

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: Best) -> None:
        super().on_evaluate(pack_id, step, rows, best)
        self._redraw(pack_id)
        if self._bar is None:
            pack = self.packs[pack_id]
            self.on_message(f"{pack_id}: step {step}/{pack.total_steps}, {_facts(pack, self.seconds_since(pack))}")

    def on_run_end(self, pack_id: str, record: RunRecord) -> None:
        """Show how a run ended, unless it went as planned."""
        super().on_run_end(pack_id, record)
        self._redraw(pack_id)
        advice = next(iter(record.notes), None) if record.state is RunState.COLLAPSED else None
        note = record.failure or advice
        if note or record.state is not RunState.FINISHED:
            text = f"{record.run_id} {record.state}" + (f": {note}" if note else "")
            self.on_message(text, _LEVEL_OF_STATE.get(record.state, "info"))

    def on_pack_end(self, end: PackEnd) -> None:
        pack = self.packs.pop(end.pack_id, None)
        if pack is None:  # it failed before it began
            return
        line = self._lines.pop(end.pack_id, None)
        if (
            self._bar is not None and line is not None and end.how != "stopped"
        ):  # where a stopped pack was stays in sight
            self._bar.remove_task(line)
        if end.how == "done" and end.seconds is not None:
            best = f", best {_title(pack)} {pack.best[1]:.3f} ({pack.best[0]})" if pack.best else ""
            steps = f"{counted(pack.step, 'step')} in {duration(end.seconds)}"
            self.on_message(f"{pack.pack_id}: {_runs(pack.runs)}, {steps}{best}")

    def on_message(self, text: str, level: Level = "info") -> None:
        """Print a text without wrapping it or reading brackets in it as markup."""
        if level != "info" or not self._quiet:
            prefix = "" if level == "info" else f"{level}: "
            self._console.print(Text(printable(prefix + text, keep="\n"), style=_STYLE[level]), soft_wrap=True)

    def on_study_end(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _redraw(self, pack_id: str) -> None:
        if self._bar is not None and pack_id in self._lines:
            self._bar.update(self._lines[pack_id], completed=self.packs[pack_id].step)


class _PackColumn(ProgressColumn):
    """The pack's id; it is cut where the terminal has too few columns, so that the figures stay."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _FactsColumn(ProgressColumn):
    """The figures of a pack; the time left is counted down between its steps."""

    def __init__(self, seconds_since: Callable[[PackProgress], float]) -> None:
        self._seconds_since = seconds_since
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        pack: PackProgress = task.fields["pack"]
        return Text(_facts(pack, self._seconds_since(pack)))


def _runs(runs: Sequence[str]) -> str:
    """How many there are; of a pack that trials join and leave, nobody knows beforehand."""
    return counted(len(runs), "run") if runs else "trials of the search"


def _facts(pack: PackProgress, since: float) -> str:
    """The figures of a pack: "8 runs, loss 0.512, best MCC 0.431, 3:20 min left"; its last step was `since` s ago."""
    left = pack.seconds_left(since)
    known = (
        counted(pack.left, "run"),
        None if pack.loss is None else f"loss {pack.loss:.3f}",
        None if pack.best is None else f"best {_title(pack)} {pack.best[1]:.3f}",
        None if left is None else f"{duration(left)} left",
    )
    return ", ".join(fact for fact in known if fact)


def _title(pack: PackProgress) -> str:
    return METRICS[pack.metric].title
