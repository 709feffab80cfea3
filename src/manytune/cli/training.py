"""Train a study and report on it: what `run`, `quick` and `extend` do in the end."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manytune.cli.common import print_rich
from manytune.utils.errors import ManytuneError
from manytune.utils.text import say

if TYPE_CHECKING:
    from manytune.config import Study


def train_and_report(
    study: Study,
    out: Path,
    *,
    report: bool = True,
    quiet: bool = False,
    open_page: bool = False,
    then: Sequence[str] = (),
    **options: Any,
) -> None:
    """Run a study with `run_study`'s options, print its tables, write the report, and say where it is, and `then`.

    Exits with 1 where a run failed, and with 128 + n where the signal n stopped it.
    """
    from manytune.report import render  # with torch, so late
    from manytune.report.guard import warnings_as_lines
    from manytune.report.search_table import search_tables
    from manytune.report.views import closing_lines
    from manytune.report.writing import headlines, read_headlines, write_report
    from manytune.storage.directory import Store
    from manytune.study import run_study
    from manytune.tracking.progress import TerminalProgress
    from manytune.utils.signals import Interrupted

    try:
        result = run_study(study, out, callbacks=[TerminalProgress(quiet=quiet)], **options)
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
        say("Interrupted. The same command goes on from what is kept.", error=True)
        raise typer.Exit(128 + number) from None
    page, sentences = None, {}
    store = Store(result.directory)
    found = search_tables(store)
    if result.records or found is not None:
        try:
            with warnings_as_lines():
                if report:
                    page, _ = write_report([result.directory])
                sentences = headlines(page) if page is not None else read_headlines(result.directory)
        except ManytuneError as error:  # the results are whole all the same
            say(f"warning: no {'report' if report else 'verdict'}: {error}", error=True)
    if found is not None:
        print_rich(found)
    print_rich(render(result.tables, sentences))
    written = store.study()
    searched = written.search is not None
    say(*closing_lines(result.directory, result.failed, page, len(written.seeds), searched=searched), *then)
    if open_page and page is not None and can_browse():
        typer.launch(page.resolve().as_uri())
    if result.failed:
        raise typer.Exit(1)


def can_browse() -> bool:
    """Whether somebody is there to see a page: on a terminal, and with a browser that has a window of its own."""
    if not sys.stdout.isatty():
        return False
    if sys.platform not in ("darwin", "win32") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # what is found without a display is a browser that takes the terminal
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
