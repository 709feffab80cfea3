"""Commands that use what was trained: predict, evaluate, export, submit."""

from __future__ import annotations

import io
import json
import re
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from manytune.cli.common import Device, Directory, Json, app, print_result
from manytune.cli.reader_options import Encoding, Quoting, Separator, completed, dialect_of
from manytune.data.metrics import METRICS
from manytune.data.tasks import Task
from manytune.storage.record import plain
from manytune.utils.errors import choices
from manytune.utils.text import counted, say, shortened


class _TakesTexts(TyperCommand):
    """A command whose inputs may begin with a dash, such as "-5 degrees", unless they look like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put all options before `--` and all inputs behind it."""
        flags = {name: getattr(option, "is_flag", False) for option in self.get_params(ctx) for name in option.opts}
        options: list[str] = []
        inputs: list[str] = []
        left = iter(args)
        for arg in left:
            name = arg.partition("=")[0]
            if arg == "--":
                inputs += left
            elif name in flags:
                options += [arg, *islice(left, 0 if flags[name] or "=" in arg else 1)]
            elif re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", arg):
                known = choices(name, [option for option in flags if option.startswith("-")])
                raise typer.BadParameter(f"{known} If it is the input itself, put -- before it.")
            else:
                inputs.append(arg)
        return super().parse_args(ctx, [*options, "--", *inputs])


def _rows_of(texts: list[str], task: Task) -> list[tuple[str, ...]]:
    """The rows that texts of the command line make: each one, or each pair of them."""
    columns = len(task.text_columns)
    if len(texts) % columns:
        raise typer.BadParameter(
            f"--text: {task.name} takes {' and '.join(task.text_columns)} for each prediction, so texts come in pairs; "
            f"{counted(len(texts), 'text', 'was|were')} given. Put each text in quotes."
        )
    return [tuple(texts[at : at + columns]) for at in range(0, len(texts), columns)]


@app.command(cls=_TakesTexts)
def predict(
    directory: Directory,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="A .csv, .tsv, .txt, .jsonl or .parquet file, or -; or see --text."),
    ],
    run: Annotated[str, typer.Option(help="A run's id, or the start of one; several with commas; or best.")] = "best",
    task: Annotated[str | None, typer.Option(help="Whose best run, in a study of several tasks.")] = None,
    out: Annotated[
        str,
        typer.Option(
            help="Where to, in the format of its ending; a file that is there is replaced. - is the screen, in CSV."
        ),
    ] = "-",
    as_text: Annotated[
        bool, typer.Option("--text", help="INPUT are texts themselves; pairs of them where the task has pairs.")
    ] = False,
    separator: Separator = None,
    quoting: Quoting = None,
    encoding: Encoding = None,
    device: Device = "auto",
) -> None:
    """Predict with a run of a study, or with the mean of several.

    The input has the task's columns, such as sentence, or sentence1 and sentence2; labels are not needed. Its rows
    come out in order, with what is predicted and, for classes, their probabilities. A file is read as those of the
    task's own data, unless --separator, --quoting or --encoding say otherwise.
    """
    from manytune.data.rows import check_format, output_format, read_parts, writer
    from manytune.data.text_lines import FileFacts
    from manytune.storage.lookup import chosen_records, open_trained, refuse_own_folders
    from manytune.utils.devices import check_device

    store = open_trained(directory, task)
    records = chosen_records(store, run, task)
    check_device(device)
    texts = _rows_of(inputs, store.task(records[0].task)) if as_text else []
    if not as_text:
        if len(inputs) != 1:
            raise typer.BadParameter("give one file, or --text before texts")
        check_format(inputs[0])
        output_format(out, inputs[0])
        refuse_own_folders([store] if out != "-" else [], Path(out))
    given = dialect_of(quoting, separator, encoding)
    from manytune.inference.predictor import Predictor  # torch, so late

    predictor = Predictor(store, records, device)
    for note in predictor.notes:
        say(f"warning: {note}", error=True)
    if as_text:
        for number, (row, made) in enumerate(zip(texts, predictor.predict(texts), strict=True)):
            if len(texts) > 1:  # several predictions: each below its texts, an empty line between
                say(*([""] if number else []), *(shortened(text) for text in row))
            say(made.value if isinstance(made.value, str) else f"{made.value:.4f}")
            say(*(f"  {name}: {probability:.4f}" for name, probability in made.probabilities.items()))
        return
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # Rows are UTF-8, as in a file, whatever the terminal has; other bytes go on to a pipe as they were.
            stream.reconfigure(encoding="utf-8", errors="strict" if stream.isatty() else "surrogateescape")
    dialect = completed(given, predictor.task, inputs[0])
    rows = empty = 0
    facts = FileFacts()
    added = predictor.added
    with writer(out, added) as write:
        for part in read_parts(inputs[0], predictor.task.text_columns, dialect, added=added, facts=facts):
            found, without = predictor.predict_columns(part.rows, f"{inputs[0]}, ", rows)
            write(part, found)
            rows, empty = rows + len(found), empty + without
    if facts.blank:
        say(f"warning: {counted(facts.blank, 'blank line')} of {inputs[0]} left out: no rows.", error=True)
    if empty:
        theirs = "its prediction is" if empty == 1 else "their predictions are"
        some = counted(empty, "row", "has|have", of=rows)
        say(f"warning: {some} an empty text; {theirs} empty too.", error=True)


@app.command()
def evaluate(
    directory: Directory,
    rows: Annotated[
        str, typer.Argument(metavar="FILE", help="Labelled rows: a .csv, .tsv, .jsonl or .parquet file, or -.")
    ],
    run: Annotated[str, typer.Option(help="A run's id, or the start of one; several with commas; or best.")] = "best",
    task: Annotated[str | None, typer.Option(help="Whose best run, in a study of several tasks.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="The column of the texts, the task's own by default; for pairs, twice.", metavar="COLUMN"),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The column of the labels; the task's own by default.", metavar="COLUMN")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Also write every figure there: a .csv or .json file.", show_default=False),
    ] = None,
    separator: Separator = None,
    quoting: Quoting = None,
    encoding: Encoding = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a run of a study, or several and their mean, on labelled rows.

    Every metric of the task with a 95 % bootstrap interval over the rows; of classes the confusion matrix, precision,
    recall and F1; of numbers the errors by the target's size. Baselines that learned from the training rows are scored
    on the same rows, where these can be had. The file is read as those of the task's own data, unless --separator,
    --quoting or --encoding say otherwise.
    """
    from manytune.data.labelled import read_labelled
    from manytune.data.rows import check_format
    from manytune.storage.lookup import chosen_records, open_trained, refuse_own_folders
    from manytune.utils.devices import check_device
    from manytune.utils.errors import DataError
    from manytune.utils.files import check_output, output_file

    store = open_trained(directory, task)
    records = chosen_records(store, run, task)
    check_device(device)
    check_format(rows)
    if out is not None:
        if out.suffix not in (".csv", ".json"):
            raise typer.BadParameter(f"--out: {out} must end in .csv or .json")
        refuse_own_folders([store], out)
        check_output(out)
    asked = store.task(records[0].task)
    dialect = completed(dialect_of(quoting, separator, encoding), asked, rows)
    try:
        labelled = read_labelled(asked, rows, text or (), label, dialect)
    except DataError as error:
        hint = " Name the columns with --text and --label." if "no column" in str(error) else ""
        raise DataError(f"{error}{hint}") from None
    from manytune.cli.evaluate import evaluate_runs  # torch, so late
    from manytune.inference.predictor import Predictor

    made = evaluate_runs(store, Predictor(store, records, device), labelled)
    print_result(plain(made.to_dict()), *made.render(), as_json=as_json)
    if out is not None:
        from manytune.report.sheets import to_csv

        figures = to_csv(made.to_sheet()) if out.suffix == ".csv" else json.dumps(plain(made.to_dict()), indent=2)
        with output_file(out) as file:
            file.write_text(f"{figures.rstrip()}\n", encoding="utf-8")


@app.command()
def export(
    directory: Directory,
    to: Annotated[
        Path, typer.Option("--to", help="The folder to make; it may be there if it is empty.", metavar="OUT")
    ],
    run: Annotated[str, typer.Option(help="A run's id, or the start of one; or best.")] = "best",
    task: Annotated[str | None, typer.Option(help="Whose best run, in a study of several tasks.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="peft, transformers or onnx; by default what the method is.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into the weights.")] = False,
    base: Annotated[
        str | None, typer.Option(help="The base model that an adapter names; the study's by default.", metavar="MODEL")
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Upload it to the Hugging Face hub as well, private.", metavar="NAME")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everybody to see.")] = False,
) -> None:
    """Write a run for other libraries: an adapter for PEFT; all else, and merged adapters, for transformers.

    With --format onnx, for onnxruntime. It is loaded again by that library and must give the recorded logits on dev, or
    nothing is written.
    """
    from manytune.storage.lookup import chosen_records, open_trained

    store = open_trained(directory, task)
    records = chosen_records(store, run, task)
    if len(records) > 1:
        raise typer.BadParameter("--run: an export is of one run")
    from manytune.inference.export import export as write_export  # torch, so late

    if push is not None:
        from manytune.inference.push import may_push
        from manytune.inference.push import push as upload

        may_push(push)
    elif public:
        raise typer.BadParameter("--public goes with --push")
    made = write_export(store, records[0], to, form=form, merge=merge, base=base, known_as=push)
    title = METRICS[records[0].primary_metric].title
    say(f"Wrote {made.folder}, {records[0].run_id} for {made.form}.")
    say(
        f"Verified on {counted(made.rows, 'dev row')}: logits within {made.off:.1g} of the recorded, "
        f"{title} {made.score:.4f}."
    )
    if push is not None:
        say(f"Uploaded to {upload(made.folder, push, public=public)}")
    say(f"\n{made.call}")


@app.command()
def submit(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Studies of GLUE's tasks.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The zip to write; of files that are there, an earlier submission alone is replaced.",
            metavar="ZIP",
        ),
    ] = Path("glue.zip"),
    run: Annotated[
        str | None, typer.Option(help="Runs by their ids, with commas, instead of the best; an ensemble a task.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", help="A folder in GLUE's layout, instead of the study's.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Predict GLUE's test rows and pack them for its server.

    The tasks that were not trained are filled with a constant, and named. With one argument that is a zip, say what
    the server would not take of it.
    """
    from manytune.data.glue_zip import check_zip
    from manytune.storage.directory import Store
    from manytune.utils.devices import check_device

    if len(directories) == 1 and directories[0].suffix == ".zip":
        problems = check_zip(directories[0])
        say(*(problems or [f"{directories[0]} is as GLUE's server takes it."]))
        raise typer.Exit(2 if problems else 0)
    check_device(device)
    opened = [Store.open(directory) for directory in directories]
    stores = [each for store in opened for each in (store.confirm_stores() if store.study().search else [store])]
    from manytune.inference.submission import submit as write_submission  # torch, so late

    made = write_submission(stores, out, run=run, data_dir=data_dir, device=device)
    for note in made.notes:
        say(f"warning: {note}", error=True)
    for name, runs in made.runs.items():
        say(f"{name}: {', '.join(runs) or 'a placeholder; no run of this task has finished'}")
    say(f"Wrote {out}; upload it at https://gluebenchmark.com/submit")
