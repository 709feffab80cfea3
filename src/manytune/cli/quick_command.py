"""The command `quick`: from a file of rows to an answer."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manytune.cli.common import AcceptChanges, Device, RetryFailed, Wait, app, directory
from manytune.cli.reader_options import Encoding, Quoting, Separator, dialect_of
from manytune.cli.training import train_and_report
from manytune.data.text_lines import Dialect
from manytune.utils.errors import StoreError, choices
from manytune.utils.text import counted, duration, listed, say

if TYPE_CHECKING:
    from manytune.executors.probe import Probe

_OVERHEAD = 30.0
"""Seconds until the first step, and for the report at the end."""

_MINUTES, _MODEL = 10.0, "minilm"
_TRIAL_ROWS, _TRIAL_EPOCHS = 800, 3  # of `init`

TextColumns = Annotated[
    list[str] | None, typer.Option("--text", help="The column of the text; twice for a pair.", metavar="COLUMN")
]
LabelColumn = Annotated[str | None, typer.Option("--label", help="What is to be predicted.", metavar="COLUMN")]
KindOfTask = Annotated[str | None, typer.Option("--type", help="classification or regression (a number).")]


@dataclass(frozen=True)
class DataOptions:
    """A file of rows, or a task, and what its user says of it."""

    data: str
    text: tuple[str, ...]
    label: str | None
    kind: str | None
    dialect: Dialect

    def options(self) -> list[tuple[str, str]]:
        """What is said of the file: options of the command, each with its value."""
        single = {
            "--label": self.label,
            "--type": self.kind,
            "--separator": self.dialect.separator,
            "--quoting": self.dialect.quoting,
            "--encoding": self.dialect.encoding,
        }
        given = [(name, value) for name, value in single.items() if value is not None]
        return [*(("--text", column) for column in self.text), *given]

    def command(self, *words: str, **more: str | None) -> str:
        """The command of `words` with these options, and `more` of them, of which None stands for one not given."""
        added = [(f"--{name}", value) for name, value in more.items() if value is not None]
        return shlex.join(["manytune", *words, *(word for pair in (*self.options(), *added) for word in pair)])

    def task(self, model: str = _MODEL) -> tuple[Any, list[str]]:
        """The task as an entry of a study, checked like one, and in sentences what was found."""
        from manytune.config import Study
        from manytune.config.quick_study import Size, quick_study, quick_task
        from manytune.data.recognise import recognise
        from manytune.data.task_types import TASK_TYPES
        from manytune.data.tasks import TASKS

        def checked(entry: Any) -> Any:
            return Study.from_dict(quick_study(entry, Size(1, None, 1), model=model)).tasks[0]

        if self.data in TASKS and not Path(self.data).is_file():
            if given := [name for name, _ in self.options()]:
                raise typer.BadParameter(
                    f"{listed(list(dict.fromkeys(given)))}: {self.data} is a known task, whose columns are known too. "
                    f"Leave that out, or give a file of rows, such as ./{self.data}.csv."
                )
            return checked(self.data), []
        if self.kind is not None and self.kind not in TASK_TYPES:
            raise typer.BadParameter(f"--type: {choices(self.kind, TASK_TYPES)}")
        found = recognise(self.data, text=self.text, label=self.label, kind=self.kind, dialect=self.dialect)
        task = quick_task(self.data, found)
        checked(task)
        return task, list(found.found)


@app.command()
def quick(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A .csv, .tsv, .txt, .jsonl or .parquet file, or a task.")
    ],
    text: TextColumns = None,
    label: LabelColumn = None,
    kind: KindOfTask = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="About how long it may take.")] = _MINUTES,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The study directory; goes on if it exists. The study file is DIR.yaml.",
            metavar="DIR",
            parser=directory,
            show_default="DATA's name and -quick",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="The encoder: minilm, a hub name or a folder.")] = _MODEL,
    separator: Separator = None,
    quoting: Quoting = None,
    encoding: Encoding = None,
    device: Device = "auto",
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the report, on a desktop.")] = True,
    wait: Wait = False,
    retry_failed: RetryFailed = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Find out in some minutes which way of fine-tuning suits a file of texts and labels.

    It finds encoding, separator and columns, sets rows aside for scores, trains as much as fits into the time, and
    writes the report. The same command goes on after Ctrl-C.
    """
    from manytune.config import Study
    from manytune.storage.directory import Store, adds_to
    from manytune.utils.devices import check_device

    check_device(device, "--device")
    usual_out = Path(f"{Path(data).stem}-quick")
    out = out or usual_out
    file = out.with_name(f"{out.name}.yaml")
    rows = DataOptions(data, tuple(text or ()), label, kind, dialect_of(quoting, separator, encoding))
    made_by = rows.command(
        "quick",
        data,
        minutes=None if minutes == _MINUTES else f"{minutes:g}",
        out=None if out == usual_out else str(out),
        model=None if model == _MODEL else model,
    )
    probe = None
    if file.exists():
        _refuse_another(file, out, made_by)
        say(f"{file} is there: going on with it.")
    elif (out / "study.yaml").exists():
        raise StoreError(f"{out} holds a study already, but {file} is not there. Give another --out.")
    else:
        probe = _write_study(rows, file, out, made_by=made_by, minutes=minutes, model=model, device=device)
    results = shlex.quote(str(out))
    then = [
        f"Study file: {file}; change it, then: manytune run {shlex.quote(str(file))} --out NEW_DIR",
        f"Use the best run: manytune predict {results} FILE; more seeds: manytune extend {results} --seeds N",
    ]
    study = Study.from_file(file)
    if (out / "study.yaml").exists() and (there := Store.open(out).study()).hash != study.hash:
        if not adds_to(study, there) or there.name != study.name:
            raise StoreError(
                f"{file} was changed since {out} was begun. Run it by itself: "
                f"manytune run {shlex.quote(str(file))} --out NEW_DIR."
            )
        say(f"{out} was extended: its own study is used, which has all runs of {file} and more.")
        study = there
    train_and_report(
        study,
        out,
        device=device,
        open_page=open_page,
        then=then,
        wait=wait,
        retry_failed=retry_failed,
        accept_changes=accept_changes,
        probe=probe,
    )


def study_of(rows: DataOptions, file: Path) -> str:
    """The text of a study of a file that `init` writes, for a trial of some minutes; says what was found on the way."""
    from manytune.config.quick_study import Size, quick_study, quick_text

    task, found = rows.task()
    say(*found, error=True)
    study = quick_study(task, Size(3, _TRIAL_ROWS, _TRIAL_EPOCHS))
    run = f"manytune run {shlex.quote(str(file))} --out results"
    return quick_text(
        study, made_by=rows.command("init", str(file), "--data", rows.data), run=run, found="\n".join(found)
    )


def _refuse_another(file: Path, out: Path, made_by: str) -> None:
    """Refuse a study file that another command wrote."""
    from manytune.utils.files import read_text

    first = (read_text(file) or "").partition("\n")[0]
    if first != f"# Written by: {made_by}":
        raise StoreError(
            f"{file} is there, and was not written by this command, but its first line says: {first[:200]!r}. To go on "
            f"with it: manytune run {file} --out {out}. To begin anew, give another --out."
        )


def _write_study(
    rows: DataOptions, file: Path, out: Path, *, made_by: str, minutes: float, model: str, device: str
) -> Probe:
    """Look at the data, fit a study into the time, and write its file; each step says what it found.

    Returns what was measured of the machine, which `run_study` then does not measure again.
    """
    from manytune.config import Study
    from manytune.config.plan import plan_runs
    from manytune.config.quick_study import Size, quick_study, quick_text
    from manytune.utils.files import write_atomically

    task, found = rows.task(model)
    say(*found, f"Fitting a study into {minutes:g} min …")
    from manytune.executors.fit import fit  # torch, so late
    from manytune.executors.probe import Probe
    from manytune.models.loading import model_spec

    width = next(iter(model_spec(model, 1).linears.values()))[0]

    def draft(size: Size) -> Study:
        return Study.from_dict(quick_study(task, size, model=model, width=width))

    probe = Probe()
    fitted = fit(draft, device, 60 * minutes, _OVERHEAD, probe)
    size = fitted.size
    trained = f"{size.rows:,} of {fitted.rows:,}" if size.rows else f"all {fitted.rows:,}"
    study = quick_study(task, size, model=model, width=width)
    labels = list(dict.fromkeys(run.label for run in plan_runs(Study.from_dict(study))))
    summary = (
        f"{counted(size.seeds, 'seed')}, {trained} training rows, {counted(size.epochs, 'epoch')}: "
        f"about {duration(fitted.seconds)}. Compared: {'; '.join(labels)}."
    )
    run = f"manytune run {shlex.quote(str(file))} --out NEW_DIR"
    write_atomically(file, quick_text(study, made_by=made_by, run=run, found="\n".join([*found, summary])))
    say(f"Study: {summary}", f"Wrote {file}.")
    return probe
