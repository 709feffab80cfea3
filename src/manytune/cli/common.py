"""The application, and what its commands share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from manytune.utils.text import say, shortened
from manytune.utils.version import __version__

ArgumentError: Any = typer.BadParameter.__base__
"""What all errors about arguments are: typer has no public name for it."""


_ORDER = (
    *(
        "init",
        "quick",
        "check",
        "params",
        "plan",
        "run",
        "status",
        "watch",
        "show",
        "report",
        "best",
        "extend",
        "compare",
    ),
    *("predict", "evaluate", "export", "submit", "clean", "tasks", "methods", "models", "schema"),
)
"""Commands in the order of work, as `--help` lists them."""


class _Commands(TyperGroup):
    """Lists commands in the order of work, and quotes wrong arguments in its messages so that they can be printed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands; those that are not in the order come last."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _printable_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _printable_errors():
            return super().invoke(ctx)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # whose message is the whole help
            error.message = shortened(error.message, 500)
        raise


app = typer.Typer(
    name="manytune",
    cls=_Commands,
    help="Fine-tune one pretrained text encoder in many ways at once, and see which way is best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def directory(text: str) -> Path:
    """A study directory's name, as an option or an argument gives it."""
    from manytune.storage.directory import named_directory

    return named_directory(text)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Directory = Annotated[Path, typer.Argument(help="The study directory.", metavar="DIR", parser=directory)]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.SUB=VALUE", help="Values that replace the file's: training.epochs=2"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress; warnings and the table stay.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait while another process uses the directory.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train runs that failed again.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although data or versions differ from the directory's.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(f"manytune {__version__}")
        raise typer.Exit()


def joined(value: Any) -> Any:
    """A list as one cell of a table."""
    return ", ".join(value) if isinstance(value, list) else value


def print_rich(*items: Any) -> None:
    """Print tables and texts, in a terminal's width, or in 200 columns where there is none."""
    from manytune.tracking.progress import CleanConsole

    console = CleanConsole(soft_wrap=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    for item in items:
        console.print(item, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print JSON for programs; in ASCII, so that every terminal and encoding can show it."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_result(value: Any, *tables: Any, as_json: bool) -> None:
    """Print a value as JSON, or the tables and texts that show it."""
    if as_json:
        print_json(value)
    else:
        print_rich(*tables)
