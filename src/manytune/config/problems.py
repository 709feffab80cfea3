"""What is wrong with a study, in its user's words: key path, value received, values allowed, what to do."""

from __future__ import annotations

import itertools
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from manytune.config.study_file import KeyPath, dotted
from manytune.utils.errors import choices
from manytune.utils.text import cut

__all__ = ["MOST_PROBLEMS", "Problem", "from_pydantic", "message", "show"]

MOST_PROBLEMS = 20
"""That are looked for; more than a screen of them helps nobody."""

_LONGEST, _MOST_CHARACTERS = 700, 2500  # of one problem, of a message


@dataclass(frozen=True)
class Problem:
    """One thing that must change in a study."""

    path: KeyPath
    """Where, as the user wrote it; () for the study as a whole."""
    what: str
    """What was received and what is allowed."""


def message(name: str, problems: Sequence[Problem], where: Callable[[KeyPath], str | None] | None = None) -> str:
    """Put the problems of `name` into one message, a line each; `where` finds a path's place in the file."""
    lines: list[str] = []
    for problem in problems[:MOST_PROBLEMS]:
        place = where(problem.path) if where else None
        key = dotted(problem.path) or "as a whole"
        lines.append(f"  {key}{f' ({place})' if place else ''}: {cut(problem.what, _LONGEST)}")
        if sum(map(len, lines)) > _MOST_CHARACTERS:
            break
    more = len(lines) < len(problems)
    count = "more problems than are listed" if more else f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"{name} has {count}:", *lines, *(["  and more"] if more else [])])


def from_pydantic(error: ValidationError, data: Any, unknown_key: Callable[[KeyPath, str], str]) -> list[Problem]:
    """Translate the first of pydantic's errors about `data`, one more than `MOST_PROBLEMS` at most.

    Args:
        error: What pydantic raised.
        data: What it was given, which knows the keys that the user really wrote.
        unknown_key: Says which keys are allowed instead of the second argument, at pydantic's location.
    """
    found = error.errors(include_url=False)
    # A list whose only entries are wrong counts as too short as well: the entries' own errors say enough.
    real = (details for details in found if not (details["type"] == "too_short" and details["input"]))
    first = itertools.islice(real, MOST_PROBLEMS + 1)
    return [Problem(_path(details, data), _what(details, unknown_key)) for details in first]


def show(value: Any) -> str:
    """A received value as YAML would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return cut(_SHORT.repr(value), 200)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Python writes out no number of more than some thousand digits."""
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"<a number of {x.bit_length():,} bits>"


_SHORT = _Short()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 80, 80, 8, 8, 8
_SHORT.maxlevel = 3


_ALLOWED: Mapping[str, str] = {
    # pydantic's name of the error: what to say, filled in from the error's context
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "finite_number": "it must be a finite number",
    "string_type": "it must be text",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a mapping (key: value)",
    "model_type": "it must be a mapping (key: value)",
    "model_attributes_type": "it must be a mapping (key: value)",
    "too_short": "it must not be empty",
    "string_unicode": "it must be text that UTF-8 can hold",
    "string_too_short": "it must not be empty",
    "string_too_long": "it must have at most {max_length} characters",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "value_error": "{error}",
    "recursion_loop": "it must not hold itself",
    "invalid_key": "keys must be text",
}


def _path(details: ErrorDetails, data: Any) -> KeyPath:
    """The user's path: pydantic's location without the union branches that types add to it."""
    path: list[str | int] = []
    for key in details["loc"]:
        in_mapping = isinstance(data, Mapping) and key in data
        in_list = isinstance(data, (list, tuple)) and isinstance(key, int)
        if in_mapping or in_list:
            data = data[key]
            path.append(key)
    return (*path, details["loc"][-1]) if details["type"] == "missing" else tuple(path)


def _what(details: ErrorDetails, unknown_key: Callable[[KeyPath, str], str]) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "missing":
        return "this key is missing."
    if kind == "extra_forbidden":
        return f"unknown key. {unknown_key(details['loc'][:-1], str(details['loc'][-1]))}"
    if kind == "literal_error":
        return _one_of(value, re.findall(r"'([^']*)'", context["expected"]))
    if kind == "union_tag_invalid":
        return _one_of(context["tag"].strip("<>"), re.findall(r"'<([^']*)>'", context["expected_tags"]))
    if kind not in _ALLOWED:
        return details["msg"]
    allowed = _ALLOWED[kind].format(**{name: _plain(bound) for name, bound in context.items()})
    return f"received {show(value)}; {allowed}.{_hint(kind, value)}"


def _one_of(value: Any, allowed: list[str]) -> str:
    if isinstance(value, str):
        return choices(value, allowed)
    return f"received {show(value)}; it must be one of: {', '.join(allowed)}."


def _plain(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _hint(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, (int, float)):
        return " If it is meant as text, put it in quotes."
    if kind in {"int_type", "float_type"} and isinstance(value, str) and re.fullmatch(r"[-+.\deE]+", value):
        return " Write it without quotes."
    return ""
