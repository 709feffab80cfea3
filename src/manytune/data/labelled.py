"""Read labelled rows of a file, to be scored; those that cannot be scored are left out, named and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manytune.data.cells import is_empty, text_of
from manytune.data.rows import read_placed
from manytune.data.splits import Array
from manytune.data.tasks import Task
from manytune.data.text_lines import Dialect
from manytune.utils.errors import DataError


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows of a file that can be scored, and which cannot."""

    source: str
    """The file's name."""
    texts: tuple[tuple[str, ...], ...]
    """N rows of one or two sentences."""
    labels: Array
    """`[N]`, as the task's type makes them."""
    left_out: tuple[str, ...]
    """Each row that is not among these, and why."""
    unknown: Mapping[str, int]
    """Label that the task does not know → rows with it, which are among those left out."""


def read_labelled(
    task: Task, name: str, columns: Sequence[str] = (), label: str | None = None, dialect: Dialect | None = None
) -> LabelledRows:
    """The labelled rows of a CSV, TSV, JSONL or Parquet file, or of `-`.

    `columns` of the texts and `label` are by default the task's own; `dialect` is how the file holds its rows. Raises
    DataError where the file cannot be read, a column is missing, a cell is no text, or no row can be scored.
    """
    names, label = tuple(columns) or task.text_columns, label or task.label_column
    if len(names) != len(task.text_columns):
        wanted = f"{task.name} takes {len(task.text_columns)}: {', '.join(task.text_columns)}"
        raise DataError(f"{len(names)} columns of texts were given ({', '.join(names)}), but {wanted}")
    parse = task.type.parser(task)
    texts: list[tuple[str, ...]] = []
    labels: list[object] = []
    left_out: list[str] = []
    unknown = Counter[str]()
    for place, row in read_placed(name, (*names, label), dialect or Dialect()):
        cells = tuple(_text(place, column, row[column]) for column in names)
        if not task.is_whole(cells):
            left_out.append(f"{place}: {' and '.join(names)} {'are' if len(names) > 1 else 'is'} empty")
            continue
        cell = task.type.read_cell(row[label])
        if is_empty(cell):
            left_out.append(f"{place}: {label} is empty")
            continue
        try:
            labels.append(parse(cell))
            texts.append(cells)
        except ValueError as error:
            unknown[str(cell)] += 1
            left_out.append(f"{place}: {error}")
    if not texts:
        first = f"; of the first, {left_out[0]}" if left_out else ""
        raise DataError(f"{name}: none of its {len(left_out)} rows can be scored{first}")
    return LabelledRows(name, tuple(texts), task.type.as_array(task, labels), tuple(left_out), dict(unknown))


def _text(place: str, column: str, cell: object) -> str:
    try:
        return text_of(cell)
    except ValueError as error:
        raise DataError(f"{place}: {column} {error}") from None
