"""A part of a report that fails takes no other part along."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from manytune.utils.errors import ManytuneError
from manytune.utils.text import say, shortened

__all__ = ["ReportWarning", "attempt", "warnings_as_lines"]

T = TypeVar("T")
S = TypeVar("S")


class ReportWarning(UserWarning):
    """A report goes without a part, or without a file, because of an error.

    Python's warning filter is the one switch: where it makes warnings errors, as in the tests of this project, an error
    in a part ends the report.
    """


def attempt(said: str, make: Callable[[], T], instead: S, problems: list[str]) -> T | S:
    """Make a part of a report, or say why it cannot be made.

    Args:
        said: What is said where it fails, such as "This table could not be made"; the reason follows.
        make: Makes it.
        instead: What is given where it fails.
        problems: Gets the sentence where it fails.

    Warns:
        ReportWarning: It failed.
    """
    try:
        return make()
    except Exception as error:  # whatever it is, the other parts are of use
        reason = str(error) if isinstance(error, ManytuneError) else f"{type(error).__name__}: {shortened(error)}"
        problems.append(f"{said}: {reason}")
        warnings.warn(problems[-1], ReportWarning, stacklevel=2)
        return instead


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each ReportWarning as a line on standard error; other warnings as before."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, ReportWarning):
                say(f"warning: {message}", error=True)
            else:
                usual(message, category, *rest, **named)

        warnings.showwarning = show
        yield
