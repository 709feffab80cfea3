"""The command `extend`: more seeds and methods for a study that has results."""

from __future__ import annotations

from typing import Annotated

import typer

from manytune.cli.common import AcceptChanges, Device, Directory, Quiet, RetryFailed, Wait, app
from manytune.cli.training import train_and_report
from manytune.utils.text import counted, listed, say

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
    from manytune.config.extension import extend_study
    from manytune.config.plan import plan_runs
    from manytune.storage.directory import Store
    from manytune.storage.study_state import StudyState
    from manytune.utils.devices import check_device

    check_device(device, "--device")
    store = Store.open(directory)
    study = store.study()
    grown = extend_study(study, seeds=seeds, methods=method or ())
    before = {run.id: run.label for run in plan_runs(study)}
    added = [run for run in plan_runs(grown) if run.id not in before]
    # Not by the plan, which may lack what was added when it was killed.
    state = StudyState.read(store, grown, retry_failed=retry_failed)
    if added:
        more = [f"seed {seed}" for seed in grown.seeds if seed not in study.seeds]
        labels = dict.fromkeys(run.label for run in added if run.label not in before.values())
        more += [f"method {label}" for label in labels]
        say(f"{directory}: {counted(len(added), 'run')} to add ({listed(more, _SHOWN)}); {len(before):,} are there.")
    elif state.has_work:
        say(f"{directory}: nothing to add; {counted(len(state.waiting), 'run')} of before to go on with.")
    else:
        how = ", such as --seeds 5" if seeds is None and not method else ""
        say(f"{directory}: nothing to add: all {len(before):,} runs are there and have ended. Ask for more{how}.")
        return
    if dry_run:
        for run in added[: 10 * _SHOWN]:
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
        additions=True,
    )
