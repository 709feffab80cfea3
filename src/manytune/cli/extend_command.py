"""The command `extend`: more seeds and methods for a study that has results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from manytune.cli.common import AcceptChanges, Device, Directory, Quiet, RetryFailed, Wait, app
from manytune.cli.training import train_and_report
from manytune.utils.text import counted, listed, say

if TYPE_CHECKING:
    from manytune.config import Study
    from manytune.config.plan import Run

_SHOWN = 10


@app.command()
def extend(
    directory: Directory,
    seeds: Annotated[
        str | None, typer.Option(help="How many seeds there are to be in the end: 5; or which to add: 3,4")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help='A method and its hyper-parameters: "full learning_rate=2e-5"; repeatable.', metavar="METHOD"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be added, and train nothing.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    wait: Wait = False,
    retry_failed: RetryFailed = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Add seeds or methods to a study, and train only what is new.

    Runs that ended stay as they are; the study file in the directory gets what was added. Without --seeds and --method,
    it goes on with what has not ended.
    """
    from manytune.cli.looks_note import looks_note
    from manytune.config.extension import extend_study
    from manytune.storage.directory import Store
    from manytune.storage.study_state import StudyState
    from manytune.utils.devices import check_device

    check_device(device, "--device")
    store = Store.open(directory)
    known = store.study()

    def grow(study: Study) -> Study:
        """The study with what is asked for; says what that is where the study is no longer the one that is known."""
        nonlocal known
        if study != known:
            say(f"{directory} was changed by another process meanwhile.")
        grown = extend_study(study, seeds=seeds, methods=method or ())
        if study != known:
            say(f"{directory}: {_added(study, grown) or 'all that was asked for is part of its study now.'}")
        known = study
        return grown

    grown = grow(known)
    # Not by the plan, which may lack what was added when it was killed.
    state = StudyState.read(store, grown, retry_failed=retry_failed)
    if said := _added(known, grown):
        say(f"{directory}: {said}")
        if (note := looks_note(store.looks(), known, grown, begun=bool(state.ended))) is not None:
            say(note)
    elif state.has_work:
        say(f"{directory}: nothing to add; {counted(len(state.waiting), 'run')} of before to go on with.")
    else:
        how = ", such as --seeds 5" if seeds is None and not method else ""
        say(f"{directory}: nothing to add: all {len(state.runs):,} runs are there and have ended. Ask for more{how}.")
        return
    if dry_run:
        for run in _new_runs(known, grown)[: 10 * _SHOWN]:
            say(f"  {run.id}")
        return
    train_and_report(
        grown,
        directory,
        quiet=quiet,
        device=device,
        wait=wait,
        retry_failed=retry_failed,
        accept_changes=accept_changes,
        additions=grow,
    )


def _new_runs(study: Study, grown: Study) -> list[Run]:
    from manytune.config.plan import plan_runs

    there = {run.id for run in plan_runs(study)}
    return [run for run in plan_runs(grown) if run.id not in there]


def _added(study: Study, grown: Study) -> str:
    """What a study has more, in words; empty where that is nothing."""
    from manytune.config.plan import plan_runs

    if not (added := _new_runs(study, grown)):
        return ""
    before = plan_runs(study)
    known = {run.label for run in before}
    more = [f"seed {seed}" for seed in grown.seeds if seed not in study.seeds]
    more += [f"method {label}" for label in dict.fromkeys(run.label for run in added if run.label not in known)]
    return f"{counted(len(added), 'run')} to add ({listed(more, _SHOWN)}); {len(before):,} are there."
