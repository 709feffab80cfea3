"""How a cell of a table is understood: as a text, as the name of a class, or as a number to be predicted.

Whatever reads rows (training, `check`, `predict`) understands them here, so that 5 in a CSV file, 5.0 in a Parquet file
and a null say the same everywhere. Each reason for a refusal fits behind the name of the cell's column.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
import unicodedata
from decimal import Decimal
from typing import Any

import numpy as np

# Characters without width or shape. Joiners between two characters that are not ASCII have a meaning: in Persian and
# Hindi words, and in emoji of several parts.
_INVISIBLE = re.compile(
    "[\x01-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]"
    "|(?<![^\0-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\0-\x7f])"
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 30  # of a decimal number that is written out


def text_of(cell: object) -> str:
    """What a cell says as text, without blanks at its ends; a ValueError where it is no text.

    A null, and a float that is no number, is empty. A whole number is written without a decimal point, as tools turn
    whole numbers beside nulls into floats. Bytes are UTF-8.
    """
    cell = _plain(cell)
    if isinstance(cell, (str, bool, np.bool_, int, np.integer)):
        text = str(cell)
    elif _is_null(cell):
        text = ""
    elif isinstance(cell, (float, np.floating, Decimal)):
        text = _number_as_text(cell)
    elif isinstance(cell, (bytes, bytearray)):
        try:
            text = cell.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"0x{cell[error.start]:02x} at byte {error.start}"
            raise ValueError(f"holds bytes that are not UTF-8: {byte}") from None
    else:
        raise ValueError(
            f"holds {reprlib.repr(cell)} ({type(cell).__name__}), which is no text; make it one before, such as by "
            "joining the parts of a list, or name another column"
        )
    if "\0" in text:
        raise ValueError("holds a NUL character; is the file text at all?")
    if not text.isascii() and (half := re.search("[\ud800-\udfff]", text)):
        raise ValueError(f"holds half of a character, U+{ord(half[0]):04X}, which no model can read; leave it out")
    return text.strip()


def label_of(cell: object) -> str:
    """The name of a class: as `text_of`, in NFC, without invisible characters, and with plain single blanks inside.

    So names that look the same are the same class. A ValueError says that the cell is no text.
    """
    text = text_of(cell)
    if text.isascii() and text.isprintable() and "  " not in text:
        return text
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split())


def same_to_the_eye(label: str) -> str:
    """What two labels have in common that only capitals, widths of letters or the way to write a number tell apart."""
    value = number_in(label)
    if value is not None and math.isfinite(value):
        return repr(value)
    return unicodedata.normalize("NFKC", label).casefold()


def number_in(text: str) -> float | None:
    """The number that a text is, nan and inf included; None where it is none."""
    return float(text) if _NUMBER.fullmatch(text) else None


def is_empty(cell: object) -> bool:
    """Whether a cell holds nothing: a null, a float that is no number, or blanks."""
    cell = _plain(cell)
    return cell.strip() == "" if isinstance(cell, str) else _is_null(cell)


def target_of(cell: object) -> float:
    """The number that a cell holds, in fp64; words such as nan and inf count as numbers that are not finite.

    A ValueError says that it is no number, or is written in a way that Python takes for one and a reader might not.
    """
    cell = _plain(cell)
    if isinstance(cell, (int, float, np.integer, np.floating, Decimal)) and not isinstance(cell, bool):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    if isinstance(cell, (bool, np.bool_)):
        raise ValueError(f"{cell} is not a number; write 1 and 0, or take type: classification")
    if not isinstance(cell, (str, bytes)):
        raise ValueError(f"{reprlib.repr(cell)} ({type(cell).__name__}) is not a number")
    text = text_of(cell)
    if (value := number_in(text)) is not None:
        return value
    raise ValueError(f"{reprlib.repr(cell)} is not a number; {_spelled(text)}")


def _spelled(text: str) -> str:
    """How to write what may be meant by a text that is not taken for a number."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    for meant in (plain, plain.replace("_", ""), plain.replace(",", ".") if plain.count(",") == 1 else ""):
        if _NUMBER.fullmatch(meant):
            return f"write {meant} if that is meant"
    return "write digits alone, with a point before decimals, such as 1234.5 or 1e-3"


def _plain(cell: Any) -> Any:
    """A value of pyarrow as Python's own."""
    pyarrow = sys.modules.get("pyarrow")
    return cell.as_py() if pyarrow is not None and isinstance(cell, pyarrow.Scalar) else cell


def _is_null(cell: Any) -> bool:
    if isinstance(cell, (float, np.floating)):
        return math.isnan(cell)
    if isinstance(cell, Decimal):
        return cell.is_nan()
    if isinstance(cell, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(cell))
    pandas = sys.modules.get("pandas")
    return cell is None or (pandas is not None and (cell is pandas.NA or cell is pandas.NaT))


def _number_as_text(cell: float | np.floating[Any] | Decimal) -> str:
    if isinstance(cell, Decimal):
        return format(cell.normalize(), "f") if abs(cell.adjusted()) < _MOST_DIGITS else str(cell)
    if math.isinf(cell) or cell != int(cell):
        return str(cell)
    exact = 2 ** (np.finfo(type(cell)).nmant + 1)
    if abs(cell) >= exact:
        raise ValueError(
            f"holds {cell!r}, a whole number that a float no longer tells from its neighbours; write the column as "
            "text or as integers"
        )
    return str(int(cell))
