"""A part of a report that fails leaves the other parts whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from manytune.utils.errors import ManytuneError
from manytune.utils.text import say, shortened

T = TypeVar("T")
S = TypeVar("S")


class ReportWarning(UserWarning):
    """A part of a report is missing, or a file was not used, because of an error.

    Where Python's warning filter makes warnings errors, as in the tests of this project, an error in a part ends the
    report.
    """


def attempt(failure: str, make: Callable[[], T], instead: S, problems: list[str]) -> T | S:
    """What `make` returns, a part of a report; where it fails, `instead`.

    `failure` says what is missing then ("This table could not be made"): with the reason it is added to `problems`, and
    is a ReportWarning.
    """
    try:
        return make()
    except Exception as error:  # of any kind: the other parts are useful without this one
        reason = str(error) if isinstance(error, ManytuneError) else f"{type(error).__name__}: {shortened(error)}"
        problems.append(f"{failure}: {reason}")
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
