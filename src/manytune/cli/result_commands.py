"""Commands on a study's results: status, show, report, compare, clean, watch."""

from __future__ import annotations

import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.cli.common import ArgumentError, Directory, Json, app, print_json, print_result, print_rich
from manytune.utils.errors import StoreError
from manytune.utils.text import counted, say

if TYPE_CHECKING:
    from manytune.storage.directory import Store


@app.command()
def status(
    directory: Directory,
    every_run: Annotated[bool, typer.Option("--all", help="A line a run, however many there are.")] = False,
    as_json: Json = False,
) -> None:
    """Show how far a study is: a line a run, or, of more than a hundred, a line a method.

    Of a study that searches: how many trials of each method have ended, are under way and wait,
    and how far its winners are.
    """
    from manytune.report.search_progress import progress_table, search_progress
    from manytune.report.views import MANY, status_line, status_summary, status_table
    from manytune.storage.directory import Store

    store = Store.open(directory)
    found = store.status()
    table = status_table if every_run or found.planned <= MANY else status_summary
    search = search_progress(store)
    facts = found.to_dict() | ({"search": [asdict(each) for each in search]} if search else {})
    # Each trial has settings of its own, so a line a method would be a line a trial.
    tables = [progress_table(search)] if search else []
    tables += [] if search and (table is status_summary or not found.planned) else [table(found)]
    print_result(facts, status_line(found), *tables, as_json=as_json)


@app.command()
def show(
    directory: Directory,
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id, or the start of one.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one run: its record and its history.

    Without RUN, of a study that searches: what its trials found, and how the winners compare.
    """
    from manytune.report.views import facts_table, history_table, record_facts
    from manytune.storage.artifacts import PREDICTIONS
    from manytune.storage.directory import Store
    from manytune.storage.lookup import SNAPSHOT, altered, one_run

    if run_id is None:
        if as_json or not _searches(directory):
            raise ArgumentError("Missing argument 'RUN'. `manytune status` lists the runs of a directory.")
        _print_search(Store.open(directory))
        return
    store = Store.open(directory)
    trials = () if store.study().search is None else store.trials()
    known = [*(run.run_id for run in store.status().runs), *(run.run_id for run in trials)]
    run_id = one_run(run_id, list(dict.fromkeys(known)), directory)
    record = store.read_record(run_id)
    if record is None:
        raise StoreError(f"The run {run_id} has not ended yet. `manytune status {directory}` shows which have.")
    if problem := altered(store, record, (*SNAPSHOT, PREDICTIONS)):
        say(f"warning: {problem}", error=True)
    if as_json:
        print_json(record.model_dump(mode="json"))
        return
    print_rich(facts_table(record_facts(record)))
    if history := store.read_history(run_id):
        print_rich(history_table(history))
    if (snapshot := store.snapshot_dir(run_id)).exists():
        say(f"Snapshot: {snapshot}")


def _searches(directory: Path) -> bool:
    """Whether a directory holds a study that searches."""
    from manytune.storage.directory import Store

    try:
        return Store.open(directory).study().search is not None
    except StoreError:
        return False  # what is missing on the command line is said first


def _print_search(store: Store) -> None:
    """What the trials of a study found, and the table and verdict of its winners."""
    from manytune.report import render
    from manytune.report.analysis import analyse
    from manytune.report.answer import answer
    from manytune.report.guard import warnings_as_lines
    from manytune.report.report_data import read
    from manytune.report.search_table import search_tables

    if (found := search_tables(store, remarks=True)) is None:
        raise StoreError(f"No trial of {store.root} has ended yet.")
    print_rich(found)
    with warnings_as_lines():
        judged = analyse(read([store.root]))
    sentences = {(each.table.task, each.table.model): answer(each).headline for each in judged}
    print_rich(render([each.table for each in judged], sentences))


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One or several study directories.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where to; DIR/report for one study. Files that no report wrote stay.", show_default=False
        ),
    ] = None,
    examples: Annotated[bool, typer.Option(help="Show dev sentences, such as the worst mistakes.")] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Write it anew while the study goes on.")] = False,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between two looks of --watch.")] = 20.0,
) -> None:
    """Turn records into an answer: a page, tables and figures.

    It reads what is on disk alone, also of a study that is still going on.
    """
    from manytune.report.guard import warnings_as_lines
    from manytune.report.search_table import search_tables
    from manytune.report.views import report_lines
    from manytune.report.writing import headlines, write_report
    from manytune.storage.directory import Store

    with warnings_as_lines():
        page, complete = write_report(directories, out, examples=examples)
    say(*report_lines(page))
    for store in map(Store.open, directories):
        if (found := search_tables(store)) is not None:
            print_rich(found)
    say(*headlines(page).values())
    if open_page:
        typer.launch(page.resolve().as_uri())
    while watch and not complete:
        time.sleep(every)
        with warnings_as_lines():
            _, complete = write_report(directories, out, examples=examples)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR_A", help="A study directory.")],
    second: Annotated[Path, typer.Argument(metavar="DIR_B", help="Another one.")],
    as_json: Json = False,
) -> None:
    """Say what changed between two studies: settings, machines, scores."""
    from manytune.report.compare import compare_studies, render_changes

    changes = compare_studies(first, second)
    print_result(changes.to_dict(), render_changes(changes), as_json=as_json)


@app.command()
def clean(
    name: Directory,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and leave it.")] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Also what your cache directory holds for all studies: it is made again.")
    ] = False,
) -> None:
    """Remove what a study no longer needs, such as checkpoints of packs that have ended; ask first.

    Records, histories, snapshots, predictions and reports stay, and so do checkpoints that a run still needs.
    """
    from rich.filesize import decimal

    from manytune.storage.clean import cached, remove, still_waste, unneeded
    from manytune.storage.directory import Store
    from manytune.storage.lock import Lock

    store = Store.open(name)
    Lock(store.root, say).look()
    found, kept = unneeded(store)
    if cache:
        found += cached()
    if kept:
        packs, theirs = counted(len(kept), "pack", "has|have"), "its" if len(kept) == 1 else "their"
        say(f"{packs} runs that have not ended, or failed: {theirs} checkpoints stay.")
    for waste in found:
        say(f"{decimal(waste.bytes):>9}  {len(waste.paths):>5}  {waste.what}")
    if not found:
        say("There is nothing to remove.")
        return
    total = decimal(sum(waste.bytes for waste in found))
    if dry_run:
        say(f"{total} would be freed.")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise StoreError("Nobody is there to be asked: give --yes to remove it, or --dry-run to leave it.")
        typer.confirm(f"Remove {total}?", abort=True)
    with Lock(store.root, say).held():
        now, _ = unneeded(store)  # while nobody held the lock, a checkpoint may have come to be needed
        found = still_waste(found, [*now, *(cached() if cache else ())])
        total = decimal(sum(waste.bytes for waste in found))
        remove(found)
    say(f"Freed {total}.")


@app.command()
def watch(
    directory: Directory,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any that is free.")] = 8765,
) -> None:
    """Show a study in the browser while it runs: packs, curves, time left, failures, the machine.

    The page is for this machine alone: it is served from 127.0.0.1, until Ctrl-C.
    """
    from manytune.report.live_page import serve
    from manytune.storage.directory import Store

    server = serve(Store.open(directory), port)

    def end(number: int, frame: object) -> None:
        threading.Thread(target=server.shutdown).start()  # it waits for the loop, which this signal has interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with server:
        say(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)")
        server.serve_forever(poll_interval=0.2)
