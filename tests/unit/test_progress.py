from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from manytune.data.tasks import TASKS
from manytune.tracking.progress import TerminalProgress
from manytune.training.callbacks import PackEnd
from record_factory import make_record

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


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(console: Console) -> list[str]:
    return printed(console).splitlines()


def last_drawn(console: Console) -> str:
    """What the live display showed last."""
    return printed(console).split("\r")[-1]


def start(progress: TerminalProgress, pack: str = PACK, task: str = "cola", runs: int = 3, steps: int = 10) -> None:
    progress.on_train_begin(pack, task, TASKS[task].primary_metric, RUNS[:runs], steps)


def end(progress: TerminalProgress, pack: str, run: str, state: str = "finished", **facts: Any) -> None:
    progress.on_run_end(pack, make_record(run_id=run, state=state, **facts))


def a_whole_pack(progress: TerminalProgress, clock: Clock | None = None) -> None:
    """Ten steps with one evaluation, one run that fails on the way and one that collapses."""
    progress.on_message("3 rows were truncated")
    start(progress)
    for step in range(1, 6):
        progress.on_step_end(PACK, step, [0.5, 0.7])
    if clock:
        clock.now += 100
    progress.on_evaluate(PACK, 5, {}, ("run-b", 0.5))
    end(progress, PACK, "run-a", "failed", failure="the loss was no number at step 6")
    progress.on_step_end(PACK, 10, [0.1, 0.2])
    progress.on_evaluate(PACK, 10, {}, ("run-b", 0.5))
    end(progress, PACK, "run-b", notes=["a note on the data"])
    end(progress, PACK, "run-c", "collapsed", notes=["try a lower learning rate", "a note on the data"])
    progress.on_pack_end(PackEnd(PACK, "done", seconds=3725))
    progress.on_study_end()


class TestKinds:
    @pytest.mark.parametrize(
        ("terminal", "quiet", "live"), [(True, False, True), (False, False, False), (True, True, False)]
    )
    def test_only_a_terminal_gets_a_live_line(self, terminal: bool, quiet: bool, live: bool) -> None:
        console = make_console(terminal)
        progress = TerminalProgress(console=console, quiet=quiet)
        start(progress)
        progress.on_study_end()
        assert ("\r" in printed(console)) is live

    def test_it_speaks_on_standard_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        TerminalProgress().on_message("hello")
        assert capsys.readouterr() == ("", "hello\n")


class TestPlain:
    def test_a_pack_from_start_to_end(self) -> None:
        console, clock = make_console(terminal=False), Clock()
        a_whole_pack(TerminalProgress(console=console, clock=clock), clock)
        assert lines(console) == [
            "3 rows were truncated",
            "cola-adapters-0: 3 runs on cola, 10 steps",
            "cola-adapters-0: step 5/10, 3 runs, loss 0.600, best MCC 0.500, 1:40 min left",
            "error: run-a failed: the loss was no number at step 6",
            "cola-adapters-0: step 10/10, 2 runs, loss 0.150, best MCC 0.500, 0 s left",
            "warning: run-c collapsed: try a lower learning rate",
            "cola-adapters-0: 3 runs, 10 steps in 1:02 h, best MCC 0.500 (run-b)",
        ]

    def test_lines_are_never_wrapped_and_brackets_are_no_markup(self) -> None:
        console = make_console(terminal=False, width=20)
        TerminalProgress(console=console).on_message("[bold]a long line[/bold] " * 5)
        assert lines(console) == ["[bold]a long line[/bold] " * 5]

    def test_what_is_unknown_is_not_shown(self) -> None:
        console = make_console(terminal=False)
        progress = TerminalProgress(console=console, clock=Clock())
        start(progress, "mine-full-0", "builtin-similarity", runs=1, steps=2)
        progress.on_step_end("mine-full-0", 1, [math.nan])
        progress.on_evaluate("mine-full-0", 1, {}, None)
        progress.on_pack_end(PackEnd("mine-full-0", "done", seconds=5))
        assert lines(console) == [
            "mine-full-0: 1 run on builtin-similarity, 2 steps",
            "mine-full-0: step 1/2, 1 run, 0 s left",
            "mine-full-0: 1 run, 1 step in 5 s",
        ]

    def test_the_loss_is_over_the_runs_that_have_one(self) -> None:
        console = make_console(terminal=False)
        progress = TerminalProgress(console=console, clock=Clock())
        start(progress, "p", steps=4)
        progress.on_step_end("p", 1, [0.5, math.nan, 1.0])
        progress.on_evaluate("p", 1, {}, ("run-a", 0.125))
        assert "loss 0.750, best MCC 0.125" in lines(console)[-1]

    def test_the_time_left_is_reckoned_from_the_step_that_a_pack_went_on_from(self) -> None:
        console, clock = make_console(terminal=False), Clock()
        progress = TerminalProgress(console=console, clock=clock)
        progress.on_train_begin("p", "cola", "matthews_correlation", RUNS, 100, first_step=80)
        clock.now += 10
        progress.on_evaluate("p", 90, {}, None)
        assert lines(console)[-1] == "p: step 90/100, 3 runs, 10 s left"

    def test_a_run_is_mentioned_unless_it_ended_as_planned(self) -> None:
        console = make_console(terminal=False)
        progress = TerminalProgress(console=console)
        end(progress, "p", "run-a", "pruned")
        end(progress, "p", "run-b", notes=["a note on the data"])
        assert lines(console) == ["run-a pruned"]

    def test_a_new_pack_starts_afresh(self) -> None:
        console = make_console(terminal=False)
        progress = TerminalProgress(console=console, clock=Clock())
        a_whole_pack(progress)
        start(progress, "second", "stsb", steps=4)
        progress.on_step_end("second", 1, [0.5])
        progress.on_pack_end(PackEnd("second", "done", seconds=1))
        assert lines(console)[-1] == "second: 3 runs, 1 step in 1 s"


@pytest.fixture
def console() -> Console:
    return make_console(terminal=True)


class TestLive:
    def test_the_line_shows_where_the_pack_is(self, console: Console) -> None:
        clock = Clock()
        progress = TerminalProgress(console=console, clock=clock)
        start(progress)
        progress.on_step_end(PACK, 4, [0.5, 0.7])
        end(progress, PACK, "run-c")
        clock.now += 60
        progress.on_evaluate(PACK, 5, {}, ("run-a", 0.25))
        progress.on_study_end()
        assert "cola-adapters-0 " in last_drawn(console)
        assert " 5/10 2 runs, loss 0.600, best MCC 0.250, 1:00 min left" in last_drawn(console)

    def test_what_stays_is_what_plain_lines_say_of_ends(self, console: Console) -> None:
        a_whole_pack(TerminalProgress(console=console))
        text = printed(console)
        for line in (
            "3 rows were truncated\n",
            "error: run-a failed: the loss was no number at step 6\n",
            "warning: run-c collapsed: try a lower learning rate\n",
            "cola-adapters-0: 3 runs, 10 steps in 1:02 h, best MCC 0.500 (run-b)\n",
        ):
            assert line in text
        assert "run-b finished" not in text
        assert "10/10" not in last_drawn(console)

    def test_a_narrow_terminal_keeps_the_figures(self) -> None:
        console = make_console(terminal=True, width=80)
        progress = TerminalProgress(console=console, clock=Clock())
        pack = "builtin-acceptability-adapters-0"
        start(progress, pack, steps=3000)
        progress.on_step_end(pack, 500, [0.5])
        progress.on_evaluate(pack, 500, {}, ("run-a", 0.25))
        progress.on_study_end()
        assert "… 500/3000 3 runs, loss 0.500, best MCC 0.250, 0 s left" in last_drawn(console)

    def test_a_stopped_pack_leaves_its_last_state_on_the_screen(self, console: Console) -> None:
        clock = Clock()
        progress = TerminalProgress(console=console, clock=clock)
        start(progress)
        clock.now += 40
        progress.on_step_end(PACK, 4, [0.5])
        progress.on_pack_end(PackEnd(PACK, "stopped"))
        progress.on_study_end()
        assert " 4/10 3 runs, loss 0.500, 1:00 min left" in last_drawn(console)

    def test_the_time_left_is_counted_down_between_steps(self, console: Console) -> None:
        clock = Clock()
        progress = TerminalProgress(console=console, clock=clock)
        start(progress)
        clock.now += 50
        progress.on_step_end(PACK, 5, [0.5])
        clock.now += 20
        progress.on_study_end()
        assert "loss 0.500, 30 s left" in last_drawn(console)

    def test_the_line_goes_when_its_pack_is_lost(self, console: Console) -> None:
        progress = TerminalProgress(console=console)
        start(progress, "first")
        progress.on_pack_end(PackEnd("first", "lost"))
        start(progress, "second")
        progress.on_study_end()
        assert "first" not in last_drawn(console)
        assert "second" in last_drawn(console)
        assert "first: " not in printed(console)

    def test_packs_that_train_at_once_have_a_line_each(self, console: Console) -> None:
        progress = TerminalProgress(console=console, clock=Clock())
        for pack in ("first", "second"):
            start(progress, pack)
        progress.on_step_end("second", 7, [0.5])
        progress.on_step_end("first", 3, [0.25])
        end(progress, "second", "run-a")
        progress.on_study_end()
        # What was drawn last is one frame of two lines.
        assert "3/10 3 runs, loss 0.250" in printed(console)
        assert "7/10 2 runs, loss 0.500" in printed(console)


KINDS = [(True, False), (False, False), (True, True)]


@pytest.mark.parametrize(("terminal", "quiet"), KINDS, ids=["live", "plain", "quiet"])
def test_a_run_may_fail_before_its_pack_has_started(terminal: bool, quiet: bool) -> None:
    console = make_console(terminal)
    progress = TerminalProgress(console=console, quiet=quiet)
    end(progress, PACK, "run-a", "failed", failure="its process died")
    progress.on_pack_end(PackEnd(PACK, "lost"))
    assert "error: run-a failed: its process died\n" in printed(console)


@pytest.mark.parametrize(("terminal", "quiet"), KINDS, ids=["live", "plain", "quiet"])
def test_every_kind_says_warnings_errors_and_bad_ends(terminal: bool, quiet: bool) -> None:
    console = make_console(terminal)
    progress = TerminalProgress(console=console, quiet=quiet)
    a_whole_pack(progress)
    progress.on_message("the disk is nearly full", "warning")
    progress.on_message("it is full", "error")
    for line in (
        "error: run-a failed: the loss was no number at step 6\n",
        "warning: run-c collapsed: try a lower learning rate\n",
        "warning: the disk is nearly full\n",
        "error: it is full\n",
    ):
        assert line in printed(console)


def test_quiet_says_nothing_else() -> None:
    console = make_console(terminal=False)
    a_whole_pack(TerminalProgress(console=console, quiet=True))
    assert lines(console) == [
        "error: run-a failed: the loss was no number at step 6",
        "warning: run-c collapsed: try a lower learning rate",
    ]
