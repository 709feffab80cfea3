"""Commands before and while a study runs: init, check, params, run."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from manytune.cli import executor_options
from manytune.cli.common import (
    Device,
    Json,
    Overrides,
    Quiet,
    RetryFailed,
    StudyFile,
    Wait,
    app,
    directory,
    print_result,
    print_rich,
)
from manytune.cli.quick_command import DataOptions, KindOfTask, LabelColumn, TextColumns, study_of
from manytune.cli.reader_options import Encoding, Quoting, Separator, dialect_of
from manytune.cli.training import train_and_report
from manytune.utils.errors import StoreError
from manytune.utils.text import say

_MOST_LABELS = 100_000


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.")] = Path("study.yaml"),
    data: Annotated[
        str | None, typer.Option(help="A file of rows that the study is to be of, instead of built-in tasks.")
    ] = None,
    text: TextColumns = None,
    label: LabelColumn = None,
    kind: KindOfTask = None,
    separator: Separator = None,
    quoting: Quoting = None,
    encoding: Encoding = None,
) -> None:
    """Write a commented study file to start from.

    With --data, a study of your own file: its columns are found as `quick` finds them, and said.
    """
    from manytune.utils.files import check_output, is_stream, open_stream

    check_output(file, streams=True)
    rows = DataOptions(data or "", tuple(text or ()), label, kind, dialect_of(quoting, separator, encoding))
    if data is None:
        if rows.options():
            raise typer.BadParameter(
                "--text, --label, --type, --separator, --quoting and --encoding go with --data FILE"
            )
        template = (resources.files("manytune.config") / "study_template.yaml").read_text()
    elif file.exists() and not is_stream(file):  # before the data is read
        raise StoreError(f"{file} exists already; give another name, or delete it.")
    else:
        template = study_of(rows, file)
    try:
        if is_stream(file):
            with open_stream(file) as stream:
                stream.write(template)
            return
        with file.open("x", encoding="utf-8") as target:
            try:
                target.write(template)
                target.flush()
            except BaseException:
                file.unlink()
                raise
    except FileExistsError:
        raise StoreError(f"{file} exists already; give another name, or delete it.") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be written: {error.strerror}.") from error
    say(f"Wrote {file}. Edit it, then: manytune run {file} --out results")
    if data is None:
        say("As it is, that takes about five minutes on two CPU cores; with --dry-run, it says how long here.")


@app.command()
def check(study_file: StudyFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Look at a study's data and model without training.

    Sizes, labels, lengths in tokens, rows that are left out or cut, texts of dev that train has too, and the same text
    with different labels; and what the commonest class, or the mean, and TF-IDF with a linear model score on dev.
    """
    from manytune.config import Study

    study = Study.from_file(study_file, overrides or ())
    from manytune.cli.check import check_study  # torch, so late

    found = check_study(study)
    print_result(asdict(found), *found.render(), as_json=as_json)


@app.command()
def params(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A hub name, a folder, or minilm.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Name of a method; repeatable.")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="Rank of methods that have one; repeatable.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="full, bias or frozen; repeatable.")] = None,
    labels: Annotated[
        int | None, typer.Option(min=1, max=_MOST_LABELS, help="Number of outputs; 1 for regression.", show_default="2")
    ] = None,
    study: Annotated[Path | None, typer.Option(help="Count for a study's methods instead.")] = None,
    as_json: Json = False,
) -> None:
    """Count total and trainable parameters, by what trains.

    The figures of common models come with manytune; of another model on the hub, its config is downloaded.
    """
    if (model is None) == (study is None):
        raise typer.BadParameter("give a MODEL or --study, one of the two")
    if study is not None and (method or rank or head or labels):
        raise typer.BadParameter("--method, --rank, --head and --labels go with a MODEL; a study has its own")
    from manytune.config import Study
    from manytune.methods.registry import choose_methods

    loaded = None if study is None else Study.from_file(study)
    chosen = choose_methods(method or (), {"rank": rank or ()}, head or ())
    from manytune.cli.parameters import count_for_model, count_for_study, parameter_table  # torch, so late

    rows = count_for_model(str(model), labels or 2, chosen) if loaded is None else count_for_study(loaded)
    print_result([row.to_dict() for row in rows], parameter_table(rows), as_json=as_json)


@app.command()
def run(
    study_file: StudyFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The study directory; goes on if it exists.", metavar="DIR", parser=directory),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and train nothing.")] = False,
    device: Device = "auto",
    workers: executor_options.WorkerCount = 0,
    threads: executor_options.Threads = 0,
    devices: executor_options.Devices = None,
    executor: executor_options.ExecutorName = "local",
    ray_address: executor_options.RayAddress = None,
    pack_resources: executor_options.PackResources = None,
    ray_storage: executor_options.RayStorage = None,
    quiet: Quiet = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    wait: Wait = False,
    retry_failed: RetryFailed = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Go on although study, data or versions differ from the directory's."),
    ] = False,
) -> None:
    """Run a study, or go on with it.

    Given the directory of a study that was begun, train the runs that have not ended yet.
    """
    from manytune.config import Study
    from manytune.config.plan import plan_runs
    from manytune.storage.directory import Store
    from manytune.utils.devices import check_device

    # What can be refused without torch is refused before it is imported.
    study = Study.from_file(study_file, overrides or ())
    plan_runs(study)
    for name in [device, *(devices.split(",") if devices is not None else ())]:
        check_device(name.strip(), "--devices" if devices is not None else "--device")
    if out is not None:
        Store.check(out, study, accept_changes=accept_changes)
    elif not dry_run:
        raise StoreError("--out is missing: give the directory that the results go to, such as --out results.")
    options = (executor, device, devices, workers, threads, ray_address, pack_resources, ray_storage)
    if out is None or dry_run:
        from manytune.cli.dry_run import render_dry_run
        from manytune.cli.dry_run_search import render_search

        show = render_dry_run if study.search is None else render_search
        print_rich(*show(study, device, executor_options.executor_of(*options)))
        return
    train_and_report(
        study,
        out,
        report=report,
        quiet=quiet,
        device=device,
        executor=executor_options.executor_of(*options),
        wait=wait,
        retry_failed=retry_failed,
        accept_changes=accept_changes,
    )
