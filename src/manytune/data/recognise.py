"""Recognise what a file of rows holds: its encoding and separator, and which columns are text and label."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from manytune.data.cells import is_empty, label_of, number_in, text_of
from manytune.data.rows import check_format, read_parts
from manytune.data.task_types import TASK_TYPES
from manytune.data.text_lines import Dialect, FileFacts, encoding_of, separator_word
from manytune.utils.errors import DataError
from manytune.utils.text import column_shown, counted, listed, no_column, shortened

LEAST_ROWS = 20
"""Rows with a text and a label below which nothing can be learned and scored."""

_LABEL_NAMES = (
    # The first group that has a column in the file says which it is.
    ("label", "labels", "class", "target", "y", "gold_label"),
    ("category", "sentiment", "score", "rating", "stars", "intent", "topic", "similarity", "is_duplicate", "kategorie"),
)
"""Names of labels, and names that mostly are of a label, but also of ids, counts and other facts of a text."""
_PAIRS = (("premise", "hypothesis"), ("question", "answer"), ("question", "sentence"), ("query", "passage"))
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a]")
_FEW = 20  # distinct values of a column that may be classes
_MOST_VALUES = 20_000  # distinct values of a column that are counted
_LONGEST_NAME = 60  # characters of a column's name; longer, it is a text


@dataclass
class _ColumnFacts:
    """What the cells of a column are."""

    name: str
    values: Counter[str] = field(default_factory=Counter)
    filled: int = 0
    characters: int = 0
    no_text: bool = False  # whether a cell is a list, or anything else that is no text

    def add(self, cell: object) -> None:
        if is_empty(cell):
            return
        try:
            text = text_of(cell)
        except ValueError:
            self.no_text = True
            return
        self.filled += 1
        self.characters += len(text)
        if text in self.values or len(self.values) < _MOST_VALUES:
            self.values[text] += 1

    @property
    def are_numbers(self) -> bool:
        return bool(self.values) and all(number_in(value) is not None for value in self.values)

    @property
    def are_whole(self) -> bool:
        return self.are_numbers and all(float(value).is_integer() for value in self.values)

    @property
    def is_text(self) -> bool:
        """Whether it reads like sentences: words, mostly other ones in each row."""
        words = any(" " in value for value in self.values)
        return not (self.no_text or self.are_numbers or self.is_few) and (
            words or len(self.values) > max(_FEW, self.filled / 2)
        )

    @property
    def is_few(self) -> bool:
        """Whether its values can be classes: few of them, each in several rows."""
        return not self.no_text and 2 <= len(self.values) <= min(_FEW, self.filled / 3)

    @property
    def mean_length(self) -> float:
        return self.characters / max(self.filled, 1)

    @property
    def shown(self) -> str:
        """Its name, and some of its values."""
        some = listed([value for value, _ in self.values.most_common(3)], 3, 20)
        name = column_shown(self.name) or "one without a name"
        return f"{name} ({len(self.values):,} different: {some}{', …' * (len(self.values) > 3)})"


@dataclass(frozen=True)
class Recognised:
    """What a file of rows holds, and in sentences what was taken for what."""

    dialect: Dialect
    rows: int  # that have a text and a label
    text: tuple[str, ...]
    label: str
    kind: str  # classification or regression
    found: tuple[str, ...]


def recognise(
    name: str,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: str | None = None,
    dialect: Dialect | None = None,
) -> Recognised:
    """Read a file once, and find what of `text`, `label` and `kind` is not given.

    Raises DataError where the file cannot be read or learned from, or where several columns may be meant.
    """
    dialect, notes = _dialect(name, dialect or Dialect())
    columns, rows, facts = _read(name, dialect)
    if facts.separator is not None:
        notes.append(f"A {separator_word(facts.separator)} parts the cells, as the header shows (other: --separator).")
    if facts.in_quotes:
        notes.append(
            f"Cells of {counted(facts.in_quotes, 'row')} stand in double quotes, which are read as part of the text. "
            "If a program added them: --quoting double"
        )
    for given in (*text, *([label] if label else [])):
        if given not in columns:
            raise DataError(f"{name}: {no_column(given, list(columns))}")
    label_column, why_label = _label(name, columns, label, text)
    texts, why_text = _texts(name, columns, label_column.name, text)
    if "" in (*texts, label_column.name):
        what = f"the label, {label_column.shown}" if not label_column.name else f"the text, {columns[''].shown}"
        raise DataError(
            f"{name}: {what}, cannot be used: the first line has no name for this column. Write one there, or name "
            "other columns with --text and --label."
        )
    usable = sum(_usable(row, texts, label_column.name) for row in rows)
    if left := len(rows) - usable:
        notes.append(f"{counted(left, 'row')} without a text or a label: left out.")
    if usable < LEAST_ROWS:
        raise DataError(
            f"{name}: {counted(usable, 'row')} with a text ({listed(texts)}) and a label "
            f"({column_shown(label_column.name)}); some are learned from and others scored on, so at least "
            f"{LEAST_ROWS} are needed. Give more rows, or other columns with --text and --label."
        )
    kind, why_kind = _kind(name, label_column, kind)
    found = (f"{name}: {counted(len(rows), 'row')}, columns {listed(list(columns))}.", *notes)
    return Recognised(dialect, usable, texts, label_column.name, kind, (*found, why_text, why_label, *why_kind))


def _dialect(name: str, given: Dialect) -> tuple[Dialect, list[str]]:
    if check_format(name) == ".parquet" or given.encoding is not None:
        return given, []
    try:
        encoding = encoding_of(Path(name))
        if encoding not in (None, "utf-16") and _CONTROL.search(Path(name).read_bytes()[:4096]):
            raise DataError(f"{name} holds bytes that no text has. Save the rows as plain text: CSV, TSV or JSONL.")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error
    if encoding is None:
        return given, []
    return replace(given, encoding=encoding), [f"It is not UTF-8; read as {encoding} (other: --encoding)."]


_Row = tuple[object, ...]


def _read(name: str, dialect: Dialect) -> tuple[dict[str, _ColumnFacts], list[frozenset[str]], FileFacts]:
    """The columns, and of each row the columns that have something in it."""
    columns: dict[str, _ColumnFacts] = {}
    rows: list[frozenset[str]] = []
    kinds: dict[frozenset[str], frozenset[str]] = {}  # most rows have the same columns: one set stands for them all
    facts = FileFacts()
    for part in read_parts(name, (), dialect, facts=facts):
        for column in part.columns or ():
            columns.setdefault(column, _ColumnFacts(column))
        for row in part.whole():
            for column, cell in row.items():
                columns.setdefault(column, _ColumnFacts(column)).add(cell)
            filled = frozenset(column for column, cell in row.items() if not is_empty(cell))
            rows.append(kinds.setdefault(filled, filled))
    odd = [column for column in columns if number_in(column) is not None or len(column) > _LONGEST_NAME]
    if odd and check_format(name) not in (".jsonl", ".parquet"):
        raise DataError(
            f"{name}, line 1: {shortened(odd[0], 60)!r} looks like a cell, and not like the name of a column. The "
            "first line must name the columns: write one before it, such as text,label."
        )
    if not rows:
        raise DataError(f"{name} has no rows, so there is nothing to learn from. Give a file with a row a text.")
    return columns, rows, facts


def _usable(filled: frozenset[str], texts: Sequence[str], label: str) -> bool:
    return label in filled and any(column in filled for column in texts)


def _label(
    name: str, columns: Mapping[str, _ColumnFacts], given: str | None, texts: Sequence[str]
) -> tuple[_ColumnFacts, str]:
    """The column of the label, and a sentence that says why."""
    if given is not None:
        return columns[given], f"label: {columns[given].shown}"
    left = [column for column in columns.values() if column.name not in texts and column.filled]
    few = [column for column in left if column.is_few]
    for names in _LABEL_NAMES:
        named = [column for column in left if column.name.strip().casefold() in names and not column.no_text]
        others = [column for column in few if column not in named]
        # Many whole numbers may be ids or counts, whatever their name: beside classes, they are no sure label.
        doubtful = names is not _LABEL_NAMES[0] and any(one.are_whole and not one.is_few for one in named)
        if len(named) > 1 or (others and doubtful):
            raise DataError(_several(name, "label", [*others, *named] if doubtful else named))
        if named:
            more = [column_shown(one.name) for one in others if one.name]
            why = f"by its name (of few values too: {listed(more)})" if more else "by its name"
            return named[0], f"label: {named[0].shown}, {why}. Another: --label COLUMN"
    numbers = [column for column in left if column.are_numbers and not column.are_whole]
    for group, why in ((few, "the only column of few values"), (numbers, "the only column of numbers")):
        if len(group) == 1:
            return group[0], f"label: {group[0].shown}, {why}. Another: --label COLUMN"
        if group:
            raise DataError(_several(name, "label", group))
    raise DataError(
        f"{name}: no column is called label, class, target or the like, and none has a few values that come again. Say "
        f"which one is to be predicted, with --label: {listed([column.shown for column in columns.values()], 10, 100)}."
    )


def _texts(
    name: str, columns: Mapping[str, _ColumnFacts], label: str, given: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """The column of the text, or the two of a pair, and a sentence that says why."""
    if given:
        return tuple(given), f"text: {' and '.join(map(column_shown, given))}"
    texts = sorted(
        (column for column in columns.values() if column.name != label and column.is_text),
        key=lambda column: -column.mean_length,
    )
    if not texts:
        raise DataError(
            f"{name}: no column holds text. Say which one does, with --text: "
            f"{listed([column.shown for column in columns.values() if column.name != label], 10, 100)}."
        )
    for first in texts:  # the longest pair
        for second in texts:
            if _are_pair(first.name, second.name):
                names = f"{column_shown(first.name)} and {column_shown(second.name)}"
                return (first.name, second.name), f"text: the pair {names}, by their names. Other: --text COLUMN"
    longest, *others = texts
    why = f"text: {column_shown(longest.name)}, "
    if not others:
        return (longest.name,), why + "the only column of text. Another: --text COLUMN"
    both = f"--text {shlex.quote(others[0].name)} --text {shlex.quote(longest.name)}"
    others_shown = listed([column_shown(column.name) for column in others])
    return (longest.name,), why + f"the longest of the texts (others: {others_shown}). A pair of them: {both}"


def _are_pair(first: str, second: str) -> bool:
    one, other = first.strip().casefold(), second.strip().casefold()
    if (one, other) in _PAIRS:
        return True
    ends = re.fullmatch(r"(.*?)[ _-]?(1|a)", one), re.fullmatch(r"(.*?)[ _-]?(2|b)", other)
    return bool(ends[0] and ends[1] and ends[0][1] == ends[1][1] and (ends[0][2] + ends[1][2]) in ("12", "ab"))


def _kind(name: str, column: _ColumnFacts, given: str | None) -> tuple[str, list[str]]:
    """Classes or a number, and sentences that say why."""
    classes = Counter[str]()
    for value, count in column.values.items():
        classes[label_of(value)] += count
    where = f"{name}: the label {column_shown(column.name)}"
    if len(classes) == 1:
        raise DataError(
            f"{where} is {listed(list(classes))!s} in every row: there is nothing to tell apart. Name another column "
            "with --label, or add rows of other classes."
        )
    as_number = given is not None and not TASK_TYPES[given].has_classes
    commas = [value for value in column.values if re.fullmatch(r"-?\d+,\d+", value)]
    if commas and not column.are_numbers and (as_number or len(classes) > _FEW):
        raise DataError(
            f"{where} has numbers with a decimal comma, such as {commas[0]}. Write them with a point, "
            f"{commas[0].replace(',', '.')}, to predict numbers."
        )
    if as_number and not column.are_numbers:
        word = next(value for value in column.values if number_in(value) is None)
        raise DataError(f"{where} cannot be a number to predict: {shortened(word, 40)!r} is none. Leave --type out.")
    if given is None and column.are_numbers and (not column.are_whole or len(classes) > _FEW):
        low, high = (pick(map(float, column.values)) for pick in (min, max))
        return "regression", [f"kind: a number from {low:g} to {high:g} (regression). Classes: --type classification"]
    if given is not None and as_number:
        return given, [f"kind: a number ({given}), as you say"]
    if len(classes) > column.filled / 2:
        raise DataError(
            f"{where} has {len(classes):,} different values in {column.filled:,} rows, so most come once and there is "
            "nothing to learn them from. Name another column with --label"
            + (", or say that it is a number, with --type regression." if column.are_numbers else ".")
        )
    sizes = [f"{shortened(value, 30)}: {count:,}" for value, count in classes.most_common()]
    kind = f"kind: {len(classes):,} classes (rows of each: {listed(sizes, 8)})"
    if column.are_numbers and len(classes) > 2:
        kind += ". Their values are numbers; if their order counts, as of ratings: --type regression"
    return "classification", [kind]


def _several(name: str, what: str, columns: Sequence[_ColumnFacts]) -> str:
    first = next(column.name for column in columns if column.name)  # at most one has none
    unnamed = (
        ""
        if all(column.name for column in columns)
        else " To take the one without a name, write a name for it into the first line."
    )
    return (
        f"{name}: the {what} may be one of several columns: {listed([column.shown for column in columns], 10, 100)}. "
        f"Say which, such as --{what} {shlex.quote(first)}.{unnamed}"
    )
