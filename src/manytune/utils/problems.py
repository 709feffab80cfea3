"""Problems of a configuration in the user's words: key path, value received, values allowed, what to do."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from manytune.utils.errors import choices
from manytune.utils.text import cut, shortened

KeyPath = tuple[str | int, ...]
"""The way to a value from the top of the file: ("methods", 0, "rank")."""

MOST_PROBLEMS = 20
"""Most problems that are looked for: a message of more than one screen is not read."""

_LONGEST, _MOST_CHARACTERS = 700, 2500  # of one problem, of a message


@dataclass(frozen=True)
class Problem:
    """One thing that must change in a study."""

    path: KeyPath  # the key, as the user wrote it; () for the study as a whole
    what: str  # what was received and what is allowed


def dotted(path: KeyPath) -> str:
    """Write a path as overrides do: methods.0.rank; a long key is cut."""
    return ".".join(shortened(key, 80) for key in path)


def message(name: str, problems: Sequence[Problem], where: Callable[[KeyPath], str | None] | None = None) -> str:
    """Put the problems of `name` into one message, a line each; `where` finds the line of a path."""
    lines: list[str] = []
    for problem in problems[:MOST_PROBLEMS]:
        location = where(problem.path) if where else None
        key = dotted(problem.path) or "as a whole"
        lines.append(f"  {key}{f' ({location})' if location else ''}: {cut(problem.what, _LONGEST)}")
        if sum(map(len, lines)) > _MOST_CHARACTERS:
            break
    more = len(lines) < len(problems)
    count = "more problems than are listed" if more else f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"{name} has {count}:", *lines, *(["  and more"] if more else [])])


def from_pydantic(error: ValidationError, data: Any, unknown_key: Callable[[KeyPath, str], str]) -> list[Problem]:
    """Translate pydantic's errors about `data`, of which it takes one more than `MOST_PROBLEMS` at most.

    `unknown_key` takes the location of a mapping and an unknown key in it, and says which keys are allowed instead.
    """
    found = error.errors(include_url=False)
    # pydantic calls a list of wrong entries too short as well; the entries' own errors say enough.
    real = [details for details in found if not (details["type"] == "too_short" and details["input"])]
    return [Problem(_path(each, data), _what(each, unknown_key)) for each in real[: MOST_PROBLEMS + 1]]


def show(value: Any) -> str:
    """A received value as YAML would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return cut(_SHORT.repr(value), 200)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """A whole number, unless it has more digits than Python agrees to write."""
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"<a number of {x.bit_length():,} bits>"


_SHORT = _Short()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 80, 80, 8, 8, 8
_SHORT.maxlevel = 3

_ALLOWED: Mapping[str, str] = {
    # pydantic's name of the error: what to say, filled in from the error's context
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "bool_type": "it must be true or false",
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
        allowed = re.findall(r"'([^']*)'", context["expected"])
        if isinstance(value, str):
            return choices(value, allowed)
        return f"received {show(value)}; it must be one of: {', '.join(allowed)}."
    if kind not in _ALLOWED:
        return details["msg"]
    bounds = {name: int(b) if isinstance(b, float) and b.is_integer() else b for name, b in context.items()}
    answer = f"received {show(value)}; {_ALLOWED[kind].format(**bounds)}."
    if kind == "string_type" and isinstance(value, (int, float)):
        return f"{answer} If it is meant as text, put it in quotes."
    if kind in {"int_type", "float_type"} and isinstance(value, str) and re.fullmatch(r"[-+.\deE]+", value):
        return f"{answer} Write it without quotes."
    return answer
