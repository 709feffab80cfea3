"""The command line: arguments and exit codes, nothing else.

Exit codes: 0 done, 1 some run failed, 2 the user's input is wrong, 128 + n stopped by the signal n: 130 by Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from manytune.errors import ManytuneError, StoreError
from manytune.metrics import METRICS
from manytune.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="manytune",
    help="Fine-tune one pretrained text encoder in many ways at once, and see which way is best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MANY = 100  # runs that are listed one by one
_MOST_LABELS = 100_000


def _directory(text: str) -> Path:
    from manytune.store import named_directory

    return named_directory(text)


_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Directory = Annotated[Path, typer.Argument(help="The study directory.", metavar="DIR", parser=_directory)]


def main() -> NoReturn:
    """Run the command line; an error that a user can mend is one message and exit code 2."""
    try:
        try:
            app(prog_name="manytune")
        finally:
            if sys.stdout is not None:  # it is where the caller closed it
                sys.stdout.flush()
    except ManytuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is not None:  # a file's, and whoever opened it should have said so
            raise
        _let_go_of_output()
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            sys.exit(1)
        print(
            f"error: The output cannot be written: {error.strerror}. Send it elsewhere, or make room there.",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit()


def _let_go_of_output() -> None:
    """Send what is left to nowhere, so that the interpreter does not fail at it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"manytune {__version__}")
        raise typer.Exit()


@app.command()
def run(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY.SUB=VALUE", help="Values that replace the file's: training.epochs=2"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The study directory; goes on if it exists.", metavar="DIR", parser=_directory),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and train nothing.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; warnings and the table stay.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="Wait while another process uses the directory.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train runs that failed again.")] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Go on although study, data or versions differ from the directory's."),
    ] = False,
) -> None:
    """Run a study, or go on with it.

    Given the directory of a study that was begun, train the runs that have not ended yet.
    """
    from manytune.config import Study, check_device
    from manytune.plan import plan_runs
    from manytune.store import Store

    # What can be refused without torch is refused before it is imported.
    study = Study.from_file(study_file, overrides or ())
    plan_runs(study)
    check_device(device)
    if out is not None:
        Store.check(out, study, accept_changes=accept_changes)
    elif not dry_run:
        raise StoreError("--out is missing: give the directory that the results go to, such as --out results.")
    if out is None or dry_run:
        from manytune.dryrun import render_dry_run

        _print(*render_dry_run(study, device))
        return
    from manytune.executors import run_study
    from manytune.interrupts import Interrupted
    from manytune.progress import make_progress
    from manytune.report import render
    from manytune.report.views import closing_lines
    from manytune.report.write import write_report

    try:
        result = run_study(
            study,
            out,
            device=device,
            progress=make_progress(quiet),
            wait=wait,
            retry_failed=retry_failed,
            accept_changes=accept_changes,
        )
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
        print("Interrupted. The same command goes on from what is kept.", file=sys.stderr)
        raise typer.Exit(128 + number) from None
    _print(render(result.tables))
    page = None
    if report and result.records:
        try:
            page, _ = write_report([result.directory])
        except ManytuneError as error:  # the results are whole all the same
            print(f"warning: no report: {error}", file=sys.stderr)
    print(*closing_lines(result.directory, result.failed, page), sep="\n")
    if result.failed:
        raise typer.Exit(1)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.")] = Path("study.yaml"),
) -> None:
    """Write a commented study file to start from."""
    template = (resources.files("manytune") / "study_template.yaml").read_text()
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(template)
    except FileExistsError:
        raise StoreError(f"{file} exists already; give another name, or delete it.") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be written: {error.strerror}.") from error
    print(f"Wrote {file}. Edit it, then: manytune run {file} --out results")


@app.command()
def status(
    directory: _Directory,
    every_run: Annotated[bool, typer.Option("--all", help="A line a run, however many there are.")] = False,
    as_json: _Json = False,
) -> None:
    """Show how far a study is: a line a run, or, of more than a hundred, a line a method."""
    from manytune.report.views import status_line, status_summary, status_table
    from manytune.store import Store

    found = Store.open(directory).status()
    if as_json:
        _print_json(found.to_dict())
        return
    table = status_table if every_run or found.planned <= _MANY else status_summary
    _print(status_line(found), table(found))


@app.command()
def show(
    directory: _Directory,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the start of one.")],
    as_json: _Json = False,
) -> None:
    """Show one run: its record and its history."""
    from manytune.lookup import one_run
    from manytune.report.views import facts_table, history_table, record_facts
    from manytune.store import Store

    store = Store.open(directory)
    run_id = one_run(run_id, [run.run_id for run in store.status().runs], directory)
    record = store.read_record(run_id)
    if record is None:
        raise StoreError(f"The run {run_id} has not ended yet. `manytune status {directory}` shows which have.")
    if as_json:
        _print_json(record.model_dump(mode="json"))
        return
    _print(facts_table(record_facts(record)))
    if history := store.read_history(run_id):
        _print(history_table(history))
    if (snapshot := store.snapshot_dir(run_id)).exists():
        print(f"Snapshot: {snapshot}")


@app.command()
def predict(
    directory: _Directory,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="A .csv, .tsv, .jsonl or .parquet file, or -; or see --text.")
    ],
    run: Annotated[str, typer.Option(help="A run's id, or the start of one; several with commas; or best.")] = "best",
    task: Annotated[str | None, typer.Option(help="Whose best run, in a study of several tasks.")] = None,
    out: Annotated[str, typer.Option(help="Where to, in the format of its ending; - is the screen, in CSV.")] = "-",
    as_text: Annotated[bool, typer.Option("--text", help="INPUT is a text, or a pair of them, itself.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Predict with a run of a study, or with the mean of several.

    The input has the task's columns, such as sentence, or sentence1 and sentence2; labels are not needed. Its rows
    come out in order, with what is predicted and, for classes, their probabilities.
    """
    from manytune.config import check_device
    from manytune.lookup import chosen_records
    from manytune.rows import check_format, read_parts, writer
    from manytune.store import Store

    store = Store.open(directory)
    records = chosen_records(store, run, task)
    check_device(device)
    if not as_text:
        if len(inputs) != 1:
            raise typer.BadParameter("give one file, or --text before texts")
        check_format(inputs[0])
    check_format(out)
    from manytune.predictor import Predictor  # torch, so late

    predictor = Predictor(store, records, device)
    if as_text:
        (made,) = predictor.predict([tuple(inputs)])
        print(made.value if isinstance(made.value, str) else f"{made.value:.4f}")
        for name, probability in made.probabilities.items():
            print(f"  {name}: {probability:.4f}")
        return
    rows = empty = 0
    with writer(out) as target:
        for part in read_parts(inputs[0], predictor.task.text_columns):
            found, without = predictor.predict_rows(part)
            target.write(found)
            rows, empty = rows + len(found), empty + without
    if empty:
        print(f"warning: {empty} of {rows} rows have an empty text; their predictions are empty too.", file=sys.stderr)


@app.command()
def export(
    directory: _Directory,
    to: Annotated[Path, typer.Option("--to", help="The folder to make.", metavar="OUT")],
    run: Annotated[str, typer.Option(help="A run's id, or the start of one; or best.")] = "best",
    task: Annotated[str | None, typer.Option(help="Whose best run, in a study of several tasks.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add LoRA's update to the weights.")] = False,
    base: Annotated[
        str | None, typer.Option(help="The base model that an adapter names; the study's by default.", metavar="MODEL")
    ] = None,
) -> None:
    """Write a run for other libraries: LoRA as a PEFT adapter, all else, and LoRA merged, as a transformers model.

    It is loaded again by that library and must give the recorded logits on dev, or nothing is written.
    """
    from manytune.lookup import chosen_records
    from manytune.store import Store

    store = Store.open(directory)
    records = chosen_records(store, run, task)
    if len(records) > 1:
        raise typer.BadParameter("--run: an export is of one run")
    from manytune.export import export as write_export  # torch, so late

    made = write_export(store, records[0], to, merge=merge, base=base)
    title = METRICS[records[0].primary_metric].title
    print(f"Wrote {made.folder}, {records[0].run_id} for {made.form}.")
    print(f"Verified on {made.rows} dev rows: logits within {made.off:.1g} of the recorded, {title} {made.score:.4f}.")
    print(f"\n{made.call}")


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One or several study directories.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; DIR/report for one study.", show_default=False)
    ] = None,
    examples: Annotated[bool, typer.Option(help="Show dev sentences, such as the worst mistakes.")] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Write it anew while the study goes on.")] = False,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between two looks of --watch.")] = 20.0,
) -> None:
    """Turn records into an answer: a page, tables and figures.

    It reads what is on disk alone, also of a study that is still going on.
    """
    from manytune.report.views import watched
    from manytune.report.write import write_report

    for page, first in watched(lambda: write_report(directories, out, examples=examples), every if watch else None):
        if first:
            print(f"Report: {page}")
            if open_page:
                typer.launch(page.resolve().as_uri())


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR_A", help="A study directory.")],
    second: Annotated[Path, typer.Argument(metavar="DIR_B", help="Another one.")],
    as_json: _Json = False,
) -> None:
    """Say what changed between two studies: settings, machines, scores."""
    from manytune.report.compare import compare_studies, render_changes

    changes = compare_studies(first, second)
    if as_json:
        _print_json(changes.to_dict())
        return
    _print(render_changes(changes))


@app.command()
def params(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A hub name, a folder, or minilm.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="full, bitfit, lora or head; repeatable.")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="LoRA rank; repeatable.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="full, bias or frozen; repeatable.")] = None,
    labels: Annotated[
        int | None, typer.Option(min=1, max=_MOST_LABELS, help="Number of outputs; 1 for regression.", show_default="2")
    ] = None,
    study: Annotated[Path | None, typer.Option(help="Count for a study's methods instead.")] = None,
    as_json: _Json = False,
) -> None:
    """Count total and trainable parameters, by what trains.

    The figures of common models come with manytune; of another model on the hub, its config is downloaded.
    """
    if (model is None) == (study is None):
        raise typer.BadParameter("give a MODEL or --study, one of the two")
    if study is not None and (method or rank or head or labels):
        raise typer.BadParameter("--method, --rank, --head and --labels go with a MODEL; a study has its own")
    from manytune.config import Study, choose_methods

    loaded = None if study is None else Study.from_file(study)
    chosen = choose_methods(method or (), rank or (), head or ())
    from manytune.parameters import count_for_model, count_for_study, parameter_table  # torch, so late

    if loaded is not None:
        rows = count_for_study(loaded)
    else:
        rows = count_for_model(str(model), labels or 2, chosen, leave_out_too_wide=not rank)
    if as_json:
        _print_json([asdict(row) for row in rows])
        return
    _print(parameter_table(rows))


@app.command()
def tasks(as_json: _Json = False) -> None:
    """List the tasks."""
    from manytune.report.views import plain_table
    from manytune.tasks import TASKS

    rows = [
        {
            "task": task.name,
            "title": task.title,
            "kind": task.kind,
            "metrics": list(task.metrics),
            "train": task.sizes.get("train"),
            "dev": task.sizes.get("dev"),
        }
        for task in TASKS.values()
    ]
    if as_json:
        _print_json(rows)
        return
    _print(plain_table(list(rows[0]), [[_joined(value) for value in row.values()] for row in rows]))


@app.command()
def methods(as_json: _Json = False) -> None:
    """List the methods and their hyper-parameters."""
    from manytune.config import METHODS
    from manytune.report.views import plain_table

    rows = [
        {
            "method": name,
            "summary": (kind.__doc__ or "").splitlines()[0],
            "hyperparameters": [field for field in kind.model_fields if field != "method"],
            "paper": kind.paper,
        }
        for name, kind in METHODS.items()
    ]
    if as_json:
        _print_json(rows)
        return
    columns = ("method", "what it does", "hyper-parameters", "paper")
    _print(plain_table(columns, [[_joined(value) for value in row.values()] for row in rows]))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the study file.

    An editor that is given it completes and checks study files.
    """
    from manytune.config import study_json_schema

    _print_json(study_json_schema())


def _joined(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


def _print(*items: Any) -> None:
    from rich.console import Console

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 200
    for item in items:
        console.print(item, markup=False, highlight=False)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
