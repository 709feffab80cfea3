"""Texts that anybody may have written, on their way to a screen, a message or a document."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["cut", "listed", "markdown", "printable", "quoted", "shortened"]

# C0 and C1 controls, DEL, line and paragraph separators, bidirectional overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""Write as escapes the characters that command a terminal, reorder a line, or cannot be encoded.

    Args:
        text: Any text.
        keep: Those of them that stay as they are, such as a line feed.

    >>> printable("a\x1b[31m\n")
    'a\\x1b[31m\\n'
    """
    return _UNSAFE.sub(lambda sign: sign[0] if sign[0] in keep else sign[0].encode("unicode_escape").decode(), text)


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


def markdown(text: str) -> str:
    """Text that neither Markdown nor HTML in it takes for more than text: no markup, no link, one line."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|#&~!$])", r"\\\1", printable(" ".join(text.split())))
    return re.sub(r"(?i)\b(https?|ftp)://|\bwww\.", lambda link: f"{link[0][:-1]}\\{link[0][-1]}", escaped)
