"""The errors that a user can cause; each message says what is wrong, where, what is allowed and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

from manytune.utils.text import listed, printable, quoted

_LONGEST = 3000  # characters of a message
_NAMES = 50  # that a message lists


class ManytuneError(Exception):
    """An error whose message the command line prints before it exits with `exit_code`; a long one loses its middle."""

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        text = printable(super().__str__(), keep="\n")
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 600]} … {text[-500:]}"


class StudyError(ManytuneError):
    """The study file, or an override of it, cannot be used."""


class DataError(ManytuneError):
    """Data is missing, malformed or not of the size it must have."""


class ModelError(ManytuneError):
    """A backbone or its tokenizer cannot be used."""


class StoreError(ManytuneError):
    """The study directory cannot be used."""


class DependencyError(ManytuneError):
    """An optional package is missing."""


def choices(received: str, allowed: Iterable[str]) -> str:
    """Say that `received` is not among `allowed`, and name the nearest one if there is one.

    >>> choices("lorra", ["full", "bitfit", "lora", "head"])
    "'lorra' is not one of: full, bitfit, lora, head. Did you mean 'lora'?"
    """
    names = list(allowed)
    message = f"{quoted(received)} is not one of: {listed(names, _NAMES, 200)}."
    near = difflib.get_close_matches(received[:80], names, n=1, cutoff=0.6)
    return f"{message} Did you mean {near[0]!r}?" if near else message
