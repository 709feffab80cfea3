"""The options that say how a file holds its rows, of every command that is given one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manytune.data.tasks import Task
from manytune.data.text_lines import QUOTINGS, SEPARATORS, Dialect, check_encoding, encoding_of, separator_word
from manytune.utils.errors import choices

Quoting = Annotated[
    str | None, typer.Option(help="double or none: whether cells of CSV and TSV may stand in double quotes.")
]
Separator = Annotated[str | None, typer.Option(help="What parts the cells: comma, semicolon, tab or pipe.")]
Encoding = Annotated[str | None, typer.Option(help="Of the file, such as cp1252.")]


def dialect_of(quoting: str | None, separator: str | None, encoding: str | None) -> Dialect:
    """What the options say; a BadParameter names the one that cannot be."""
    separator = None if separator is None else separator_word(separator)
    for option, value, allowed in (("--quoting", quoting, QUOTINGS), ("--separator", separator, SEPARATORS)):
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{option}: {choices(value, allowed)}")
    try:
        return Dialect(quoting, separator, None if encoding is None else check_encoding(encoding))
    except ValueError as error:
        raise typer.BadParameter(f"--encoding: received {encoding!r}; {error}.") from None


def completed(given: Dialect, task: Task, file: str) -> Dialect:
    """What the options say, and else what the task says of its own files; but a file in UTF-8 is read as that."""
    own = task.own.dialect if task.own is not None else Dialect()
    encoding = given.encoding or (None if own.encoding is None or _may_be_utf8(Path(file)) else own.encoding)
    return Dialect(given.quoting or own.quoting, given.separator or own.separator, encoding)


def _may_be_utf8(path: Path) -> bool:
    """Whether a file is in UTF-8, or cannot be looked at: pipes can be read once alone."""
    try:
        return not path.is_file() or encoding_of(path) is None
    except OSError:  # the reader says why
        return True
