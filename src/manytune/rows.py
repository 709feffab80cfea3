"""Rows of a split before any check, and files of rows, read and written a part at a time: they may outgrow memory.

CSV and TSV with a header line, JSONL, Parquet; `-` is standard input, or output, in CSV.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from manytune.errors import DataError
from manytune.files import replacing
from manytune.row_writers import PART, Csv, JsonWriter, ParquetWriter, Part, Row, RowWriter, TableWriter, Tsv
from manytune.text_rows import (
    MOST_IN_CELL,
    Facts,
    Placed,
    json_rows,
    no_column,
    open_lines,
    open_table,
    refuse_twice,
)

__all__ = [
    "Facts",
    "Part",
    "RawRows",
    "Row",
    "RowWriter",
    "check_format",
    "read_parts",
    "read_placed",
    "refuse_taken",
    "writer",
]


class RawRows(NamedTuple):
    """The rows of a split, before any check."""

    texts: Sequence[tuple[str, ...]]
    """N rows of one or two sentences."""
    labels: Sequence[object]
    """N labels, as text or as numbers; None where there is none."""
    source: str
    """A path, `hub:nyu-mll/glue@<revision>`, or `builtin`."""
    place: Callable[[int], str]
    """Row index to the words that let a user find the row."""
    left_out: tuple[str, ...] = ()
    """Which rows are not among these, and why."""
    notes: tuple[str, ...] = ()
    """What a reader of the data should know of its file."""


_PART_SIZE = 1 << 25
"""Characters of a part, after which no row is added to it."""

_MOST_BYTES = 1 << 28
"""Text in `PART` rows of a Parquet file, where a small file may stand for very much of it."""


_DIALECTS: dict[str, type[csv.Dialect]] = {".csv": Csv, ".tsv": Tsv}
_FORMATS = (*_DIALECTS, ".jsonl", ".parquet")


def check_format(name: str) -> str:
    """The format of a file, by its ending.

    Raises:
        DataError: It has none that can be read and written.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if name == "-" or (not suffix and (name.startswith("/dev/") or path.is_fifo())):
        return ".csv"
    if suffix not in _FORMATS:
        packed = (
            " Compressed files are not read: decompress it." if suffix in (".gz", ".bz2", ".xz", ".zst", ".zip") else ""
        )
        raise DataError(f"{name}: a file of rows ends in {', '.join(_FORMATS)}, or is -, which is CSV.{packed}")
    return suffix


def read_parts(
    name: str,
    columns: Sequence[str],
    *,
    quoting: str | None = None,
    added: Collection[str] = (),
    facts: Facts | None = None,
) -> Iterator[Part]:
    """The rows of a file, some at a time; of a file without rows one empty part.

    Args:
        name: The file, or `-`.
        columns: Those that it must have; others are handed on.
        quoting: As for `read_placed`.
        added: Columns that it must not have, because they will be added.
        facts: Gets counts.

    Raises:
        DataError: As for `read_placed`; or it has one of `added`.
    """
    facts = Facts() if facts is None else facts
    with _readable(name):
        if check_format(name) == ".parquet":
            with _open_parquet(name) as (file, schema):
                refuse_twice(name, schema.names, None)
                refuse_taken(name, schema.names, added)
                yield from _parquet_parts(name, file, schema, columns, every=True)
            return
        with _open_text(name, columns, quoting, every=True, facts=facts) as (names, rows):
            refuse_taken(name, names or (), added)
            part: list[Row] = []
            size = 0
            for place, row, characters in rows:
                if names is None:
                    refuse_taken(place, row, added)
                part.append(row)
                size += characters
                if len(part) == PART or size > _PART_SIZE:
                    yield Part(part, names)
                    part, size = [], 0
            if part or not facts.rows:
                yield Part(part, names if facts.rows else names or tuple(columns))


def read_placed(
    name: str, columns: Sequence[str], *, quoting: str | None = None, facts: Facts | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with the words that let a user find it; nothing but `columns` is looked at.

    Args:
        name: The file, or `-`.
        columns: Those that rows are to have.
        quoting: `double` if cells of a CSV or TSV file may stand in double quotes, `none` if these are characters like
            any other; None for what is usual: `double` in CSV, `none` in TSV.
        facts: Gets counts.

    Raises:
        DataError: It cannot be read, a row is malformed, or a column is missing or there twice.
    """
    with _readable(name):
        if check_format(name) == ".parquet":
            with _open_parquet(name) as (file, schema):
                refuse_twice(name, schema.names, columns)
                number = 0
                for part in _parquet_parts(name, file, schema, columns, every=False):
                    for row in part.rows:
                        number += 1
                        yield f"{name}, row {number}", row
            return
        with _open_text(name, columns, quoting, every=False, facts=facts or Facts()) as (_, rows):
            for placed in rows:
                yield placed[:2]


def refuse_taken(place: str, names: Collection[str], added: Collection[str]) -> None:
    """Refuse rows that have a column which will be added to them.

    Raises:
        DataError: They have one.
    """
    taken = [name for name in added if name in names]
    if taken:
        shown = ", ".join(taken[:5]) + (f" and {len(taken) - 5} more" if len(taken) > 5 else "")
        raise DataError(
            f"{place}: it has columns that the predictions are written to: {shown}. Rename or remove them there, or "
            "give the file without predictions."
        )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{name} cannot be read: {_first_line(error)}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {_first_line(error.strerror or error)}") from error


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _open_text(
    name: str, columns: Sequence[str], quoting: str | None, *, every: bool, facts: Facts
) -> Iterator[tuple[tuple[str, ...] | None, Iterator[Placed]]]:
    """The columns of a CSV, TSV or JSONL file, of which the last has none of its own, and its rows."""
    suffix = check_format(name)
    if suffix == ".jsonl":
        with open_lines(name) as lines:
            yield None, json_rows(lines, columns, every=every, facts=facts)
        return
    quoted = (quoting or ("double" if suffix == ".csv" else "none")) == "double"
    with open_table(name, _DIALECTS[suffix].delimiter, columns, quoted=quoted, every=every, facts=facts) as table:
        yield table


@contextmanager
def _open_parquet(name: str) -> Iterator[tuple[Any, Any]]:
    """A Parquet file and its schema; texts are read as dictionaries, so that a value of many rows is there once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(name)
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    # Without a buffer, a row group's part of a column would be read at once, whatever its size.
    with pq.ParquetFile(name, read_dictionary=texts, buffer_size=1 << 20) as file:
        yield file, schema


def _parquet_parts(name: str, file: Any, schema: Any, columns: Sequence[str], *, every: bool) -> Iterator[Part]:
    import pyarrow as pa

    for column in columns:
        if column not in schema.names:
            raise DataError(f"{name}: {no_column(column, schema.names)}")
    if not every:
        schema = pa.schema([schema.field(column) for column in columns])
    _refuse_bombs(name, file.metadata, schema.names)
    first = 1
    for read in file.iter_batches(PART, columns=schema.names):
        place = f"{name}, rows {first:,} to {first + read.num_rows - 1:,}"
        whole = [_decoded(place, field, read.column(field.name)) for field in schema]
        batch = pa.RecordBatch.from_arrays(whole, schema=schema)
        values = [_wanted(name, first, column, batch.column(column)) for column in columns]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        yield Part(rows, tuple(schema.names), batch)
        first += read.num_rows
    if first == 1:
        yield Part([], tuple(schema.names), pa.RecordBatch.from_pylist([], schema=schema))


def _refuse_bombs(name: str, metadata: Any, columns: Collection[str]) -> None:
    """Refuse columns that unpack to so much more than their size that hardly any data would."""
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            unpacked = chunk.total_uncompressed_size
            if unpacked > max(_MOST_BYTES, 500 * chunk.total_compressed_size):
                raise DataError(
                    f"{name}: {chunk.path_in_schema[:40]} unpacks from {chunk.total_compressed_size:,} to {unpacked:,} "
                    f"bytes in row group {group + 1}; write the file anew with smaller row groups, or is it damaged?"
                )


def _decoded(place: str, field: Any, values: Any) -> Any:
    """A column of the type that the file gives it."""
    import pyarrow.compute as pc

    if values.type == field.type:
        return values
    lengths = pc.binary_length(values.dictionary)
    longest, together = pc.max(lengths).as_py() or 0, pc.sum(lengths.take(values.indices)).as_py() or 0
    if longest > 4 * MOST_IN_CELL or together > _MOST_BYTES:  # a character has at most four bytes
        raise DataError(
            f"{place}: {field.name[:40]} has {together:,} bytes of text there, a cell of it {longest:,}; a cell may "
            f"have {MOST_IN_CELL:,} characters, {PART:,} rows together {_MOST_BYTES:,} bytes"
        )
    decoded = values.dictionary_decode()
    return decoded if decoded.type == field.type else decoded.cast(field.type)


def _wanted(name: str, first: int, column: str, values: Any) -> list[Any]:
    """A column as Python's values; a cell that has none is named."""
    try:
        return list(values.to_pylist())
    except (ValueError, OverflowError):
        for index, value in enumerate(values):
            try:
                value.as_py()
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{name}, row {first + index}: {column} cannot be read: {_first_line(error)}"
                ) from error
        raise


@contextmanager
def writer(name: str, added: Mapping[str, type]) -> Iterator[RowWriter]:
    """Write rows to `-`, or to a file, which is there when the context ends without an error, and else not.

    Args:
        name: The file, or `-`.
        added: Name of each column that is added to the rows → `str` or `float`.

    Raises:
        StoreError: It cannot be written.
        DataError: A value is none that the format can hold.
    """
    suffix = check_format(name)
    if name == "-":
        with TableWriter(sys.stdout, Csv, added, None) as rows:
            yield rows
        return
    with replacing(Path(name)) as temporary:
        if suffix == ".parquet":
            with ParquetWriter(temporary, added) as rows:
                yield rows
        else:
            # Bytes of the input that are not UTF-8 are handed on as they were.
            with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                if suffix == ".jsonl":
                    yield JsonWriter(file)
                else:
                    with TableWriter(file, _DIALECTS[suffix], added, temporary.parent) as rows:
                        yield rows
