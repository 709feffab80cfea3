"""Texts that anybody may have written: as JSON, and on their way to a screen, a message or a document."""

from __future__ import annotations

import difflib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

_WIDE = 40  # characters of a name that is shown

# C0 and C1 controls, DEL, line and paragraph separators, bidirectional overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""Write as escapes what commands a terminal, reorders a line or has no encoding, but for the characters of `keep`.

    >>> printable("a\x1b[31m\n")
    'a\\x1b[31m\\n'
    """
    return _UNSAFE.sub(lambda sign: sign[0] if sign[0] in keep else sign[0].encode("unicode_escape").decode(), text)


def say(*lines: object, error: bool = False) -> None:
    """Print lines of text, to standard error with `error`; what is no printable character in them is escaped."""
    for line in lines:
        print(printable(str(line), keep="\n"), file=sys.stderr if error else sys.stdout, flush=True)


def cut(text: str, limit: int) -> str:
    """`text`, or its first characters where it has more than `limit`."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def shortened(value: object, limit: int = 120) -> str:
    """`value` as one line of text, cut where it is longer than a message should be."""
    return cut(printable(" ".join(str(value).split())), limit)


def quoted(text: str, limit: int = 80) -> str:
    """`text` in quotes, on one line, cut where it is longer than a message should be."""
    return repr(cut(text, limit))


def listed(names: Sequence[object], most: int = 20, limit: int = 60) -> str:
    """The first `most` of some names, each `shortened`, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shortened(name, limit) for name in names[:most]) + more


def counted(number: int, noun: str, verb: str = "", *, of: int | None = None) -> str:
    """A number of things, with the form of the verb that goes with it, and of how many they are.

    >>> counted(1, "run"), counted(2, "row", "has|have", of=3), counted(1, "row", "has|have", of=3)
    ('1 run', '2 of 3 rows have', '1 of 3 rows has')
    """
    whole, total = ("", number) if of is None else (f" of {of:,}", of)
    one, _, several = verb.partition("|")
    form = one if number == 1 else several
    return f"{number:,}{whole} {noun}{'' if total == 1 else 's'}{form and f' {form}'}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3:20 min, 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def markdown(text: str) -> str:
    """Text that neither Markdown nor HTML in it takes for more than text: no markup, no link, one line."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|#&~!$])", r"\\\1", printable(" ".join(text.split())))
    return re.sub(r"(?i)\b(https?|ftp)://|\bwww\.", lambda link: f"{link[0][:-1]}\\{link[0][-1]}", escaped)


def no_column(missing: str, found: Iterable[str]) -> str:
    """Say that a column is missing, and which one may be meant."""
    names = [str(name) for name in found]
    folded = {_folded(name): name for name in names}
    near = difflib.get_close_matches(_folded(missing), [*folded][:1000], n=1, cutoff=0.5)
    hint = f" Is it {column_shown(folded[near[0]])!r}?" if near else ""
    if near and unicodedata.normalize("NFC", missing) == unicodedata.normalize("NFC", folded[near[0]]):
        hint = f" It is there in other characters that look the same: {folded[near[0]][:_WIDE]!a}, not {missing!a}."
    return f"no column {missing!r}; the columns found are: {listed(names, limit=_WIDE) or 'none'}.{hint}"


def column_shown(name: str) -> str:
    """A column's name as a message can hold it."""
    return shortened(name, _WIDE)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def short_number(value: float) -> str:
    """Write a number exactly and shortly, in scientific notation: 0.0004 is 4e-4, 1.5e-05 is 1.5e-5."""
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    mantissa = "".join(map(str, digits))
    point = f".{mantissa[1:]}" if len(mantissa) > 1 else ""
    return f"{'-' if sign else ''}{mantissa[0]}{point}e{int(exponent) + len(mantissa) - 1}"


def parse_json(text: str | bytes, decoder: json.JSONDecoder | None = None) -> Any:
    """What a JSON text holds. Text for a `decoder` may have halves of surrogate pairs, which its caller judges.

    Raises ValueError where it is no JSON, is nested too deeply, or, without `decoder`, has half of a surrogate pair,
    which is no character and cannot be written as UTF-8.
    """
    try:
        if decoder is not None:
            return decoder.decode(text if isinstance(text, str) else text.decode())
        value = json.loads(text)
        if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which is no character") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:  # Python's limit on the digits of an integer
        raise ValueError("an integer has thousands of digits") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
