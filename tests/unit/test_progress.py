from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from manytune.data.tasks import TASKS
from manytune.tracking.progress import LiveProgress, PlainProgress, Progress, QuietProgress, make_progress

RUNS = ["run-a", "run-b", "run-c"]
PACK = "cola-adapters-0"


class Clock:
    """Seconds that only a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_console(terminal: bool, width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(console: Console) -> list[str]:
    return said(console).splitlines()


def last_drawn(console: Console) -> str:
    """What the live display showed last."""
    return said(console).split("\r")[-1]


def a_whole_pack(progress: Progress, clock: Clock | None = None) -> None:
    """Ten steps with one evaluation, one run that fails on the way and one that collapses."""
    progress.message("3 rows were truncated")
    progress.pack_started(PACK, TASKS["cola"], RUNS, total_steps=10)
    for step in range(1, 6):
        progress.step(PACK, step, [0.5, 0.7])
    if clock:
        clock.now += 100
    progress.evaluated(PACK, 5, ("run-b", 0.5))
    progress.run_ended(PACK, "run-a", "failed", "the loss was no number at step 6")
    progress.step(PACK, 10, [0.1, 0.2])
    progress.evaluated(PACK, 10, ("run-b", 0.5))
    progress.run_ended(PACK, "run-b", "finished")
    progress.run_ended(PACK, "run-c", "collapsed", "try a lower learning rate")
    progress.pack_finished(PACK, 3725)


@pytest.fixture(params=[LiveProgress, PlainProgress, QuietProgress])
def kind(request: pytest.FixtureRequest) -> Iterator[Callable[[Console], Progress]]:
    return request.param  # type: ignore[no-any-return]


class TestMakeProgress:
    def test_a_terminal_gets_a_live_line(self) -> None:
        assert isinstance(make_progress(False, make_console(terminal=True)), LiveProgress)

    def test_a_pipe_gets_plain_lines(self) -> None:
        assert isinstance(make_progress(False, make_console(terminal=False)), PlainProgress)

    @pytest.mark.parametrize("terminal", [True, False])
    def test_quiet_is_quiet(self, terminal: bool) -> None:
        assert isinstance(make_progress(True, make_console(terminal)), QuietProgress)

    def test_it_speaks_on_standard_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with make_progress(False) as progress:
            progress.message("hello")
        assert capsys.readouterr() == ("", "hello\n")


class TestPlain:
    def test_a_pack_from_start_to_end(self) -> None:
        console, clock = make_console(terminal=False), Clock()
        with PlainProgress(console, clock) as progress:
            a_whole_pack(progress, clock)
        assert lines(console) == [
            "3 rows were truncated",
            "cola-adapters-0: 3 runs on cola, 10 steps",
            "cola-adapters-0: step 5/10, 3 runs, loss 0.600, best MCC 0.500, 1:40 left",
            "error: run-a failed: the loss was no number at step 6",
            "cola-adapters-0: step 10/10, 2 runs, loss 0.150, best MCC 0.500, 0:00 left",
            "warning: run-c collapsed: try a lower learning rate",
            "cola-adapters-0: 3 runs, 10 steps in 1:02:05, best MCC 0.500 (run-b)",
        ]

    def test_lines_are_never_wrapped_and_brackets_are_no_markup(self) -> None:
        console = make_console(terminal=False, width=20)
        PlainProgress(console).message("[bold]a long line[/bold] " * 5)
        assert lines(console) == ["[bold]a long line[/bold] " * 5]

    def test_what_is_unknown_is_not_shown(self) -> None:
        console = make_console(terminal=False)
        progress = PlainProgress(console, Clock())
        progress.pack_started("mine-full-0", TASKS["builtin-similarity"], ["run-a"], total_steps=2)
        progress.step("mine-full-0", 1, [math.nan])
        progress.pack_finished("mine-full-0", 5)
        assert lines(console) == [
            "mine-full-0: 1 run on builtin-similarity, 2 steps",
            "mine-full-0: 1 run, 1 step in 0:05",
        ]

    def test_the_loss_is_over_the_runs_that_have_one(self) -> None:
        console = make_console(terminal=False)
        progress = PlainProgress(console, Clock())
        progress.pack_started("p", TASKS["cola"], RUNS, total_steps=4)
        progress.step("p", 1, [0.5, math.nan, 1.0])
        progress.evaluated("p", 1, ("run-a", 0.125))
        assert "loss 0.750, best MCC 0.125" in lines(console)[-1]

    def test_a_finished_run_is_mentioned_where_there_is_something_to_say(self) -> None:
        console = make_console(terminal=False)
        progress = PlainProgress(console)
        progress.run_ended("p", "run-a", "finished", "stopped early at step 5")
        progress.run_ended("p", "run-b", "pruned")
        progress.run_ended("p", "run-c", "finished")
        assert lines(console) == ["run-a finished: stopped early at step 5", "run-b pruned"]

    def test_a_new_pack_starts_afresh(self) -> None:
        console = make_console(terminal=False)
        progress = PlainProgress(console, Clock())
        a_whole_pack(progress)
        progress.pack_started("second", TASKS["stsb"], RUNS, total_steps=4)
        progress.step("second", 1, [0.5])
        progress.pack_finished("second", 1)
        assert lines(console)[-1] == "second: 3 runs, 1 step in 0:01"


class TestLive:
    def test_the_line_shows_where_the_pack_is(self) -> None:
        console, clock = make_console(terminal=True), Clock()
        with LiveProgress(console, clock) as progress:
            progress.pack_started(PACK, TASKS["cola"], RUNS, total_steps=10)
            progress.step(PACK, 4, [0.5, 0.7])
            progress.run_ended(PACK, "run-c", "finished")
            clock.now += 60
            progress.evaluated(PACK, 5, ("run-a", 0.25))
        assert "cola-adapters-0 " in last_drawn(console)
        assert " 5/10 2 runs, loss 0.600, best MCC 0.250, 1:00 left" in last_drawn(console)

    def test_what_stays_is_what_plain_lines_say_of_ends(self) -> None:
        console = make_console(terminal=True)
        with LiveProgress(console) as progress:
            a_whole_pack(progress)
        text = said(console)
        for line in (
            "3 rows were truncated\n",
            "error: run-a failed: the loss was no number at step 6\n",
            "warning: run-c collapsed: try a lower learning rate\n",
            "cola-adapters-0: 3 runs, 10 steps in 1:02:05, best MCC 0.500 (run-b)\n",
        ):
            assert line in text
        assert "run-b finished" not in text

    def test_a_narrow_terminal_keeps_the_figures(self) -> None:
        console = make_console(terminal=True, width=80)
        with LiveProgress(console, Clock()) as progress:
            pack = "builtin-acceptability-adapters-0"
            progress.pack_started(pack, TASKS["cola"], RUNS, total_steps=3000)
            progress.step(pack, 500, [0.5])
            progress.evaluated(pack, 500, ("run-a", 0.25))
        assert "… 500/3000 3 runs, loss 0.500, best MCC 0.250, 0:00 left" in last_drawn(console)

    def test_the_line_goes_when_its_pack_is_cut_short(self) -> None:
        console = make_console(terminal=True)
        with LiveProgress(console) as progress:
            progress.pack_started("first", TASKS["cola"], RUNS, total_steps=10)
            progress.pack_finished("first", None)
            progress.pack_started("second", TASKS["cola"], RUNS, total_steps=10)
        assert "first" not in last_drawn(console)
        assert "second" in last_drawn(console)
        assert "first: " not in said(console)

    def test_packs_that_train_at_once_have_a_line_each(self) -> None:
        console = make_console(terminal=True)
        with LiveProgress(console, Clock()) as progress:
            for pack in ("first", "second"):
                progress.pack_started(pack, TASKS["cola"], RUNS, total_steps=10)
            progress.step("second", 7, [0.5])
            progress.step("first", 3, [0.25])
            progress.run_ended("second", "run-a", "finished")
        # What was drawn last is one frame of two lines.
        assert "3/10 3 runs, loss 0.250" in said(console)
        assert "7/10 2 runs, loss 0.500" in said(console)

    def test_the_line_goes_when_the_pack_is_done(self) -> None:
        console = make_console(terminal=True)
        with LiveProgress(console) as progress:
            a_whole_pack(progress)
        assert "10/10" not in last_drawn(console)


def test_a_run_may_fail_before_its_pack_has_started(kind: Callable[[Console], Progress]) -> None:
    console = make_console(terminal=True)
    with kind(console) as progress:
        progress.run_ended(PACK, "run-a", "failed", "its process died")
        progress.pack_finished(PACK, None)
    assert "error: run-a failed: its process died\n" in said(console)


def test_every_kind_passes_errors_on(kind: Callable[[Console], Progress]) -> None:
    console = make_console(terminal=True)
    progress = kind(console)
    with progress:
        progress.pack_started(PACK, TASKS["cola"], RUNS, total_steps=10)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt


def test_every_kind_says_warnings_errors_and_bad_ends(kind: Callable[[Console], Progress]) -> None:
    console = make_console(terminal=True)
    with kind(console) as progress:
        a_whole_pack(progress)
        progress.message("the disk is nearly full", "warning")
        progress.message("it is full", "error")
    for line in (
        "error: run-a failed: the loss was no number at step 6\n",
        "warning: run-c collapsed: try a lower learning rate\n",
        "warning: the disk is nearly full\n",
        "error: it is full\n",
    ):
        assert line in said(console)


def test_quiet_says_nothing_else() -> None:
    console = make_console(terminal=False)
    with QuietProgress(console) as progress:
        a_whole_pack(progress)
    assert lines(console) == [
        "error: run-a failed: the loss was no number at step 6",
        "warning: run-c collapsed: try a lower learning rate",
    ]
