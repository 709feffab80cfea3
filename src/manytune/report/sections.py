"""Sections of a report: text, charts and tables, each made by itself, so that one that fails costs no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from manytune.report.drawing import Drawing
from manytune.report.guard import attempt
from manytune.report.sheets import Sheet, to_csv, to_markdown, to_tex
from manytune.report.traces import Chart

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Section:
    """One section of a task's report."""

    key: str
    title: str
    text: tuple[str, ...]  # paragraphs; they say what is missing, and why
    charts: tuple[Chart, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    folded: tuple[Sheet, ...] = ()  # long tables, closed at first
    drawing: Drawing | None = None


def make_section(
    given: T,
    named: str,
    key: str,
    title: str,
    text: Callable[[T], Iterable[str]] = lambda given: (),
    *,
    charts: Sequence[Callable[[T], Any]] = (),
    sheets: Sequence[Callable[[T], Any]] = (),
    folded: Sequence[Callable[[T], Any]] = (),
    without: str = "",
) -> Section:
    """A section of what is `given`, with a sentence for each chart and table that could not be made.

    `named` is what such a sentence calls what is given; `without` stands there where there is no table and no text.
    """
    problems: list[str] = []

    def made(what: str, *functions: Callable[[T], Any]) -> tuple[Any, ...]:
        failure = f"{named}, {title}: {what} could not be made"
        results = (attempt(failure, partial(writable, make, given), (), problems) for make in functions)
        return tuple(each for result in results for each in result)

    paragraphs = made("the text", text)
    drawn, tables, closed = made("a chart", *charts), made("a table", *sheets), made("a table", *folded)
    paragraphs += tuple(problems)
    if without and not tables and not paragraphs:
        paragraphs = (without,)
    return Section(key, title, paragraphs, drawn, tables, closed)


def writable(make: Callable[[Any], Any], given: Any) -> tuple[Any, ...]:
    """What `make` makes (one thing, several or None), as a tuple; each is written once, in every form, as a trial.

    So what cannot be written fails here, where it alone is lost, and not when the report's files are written.
    """
    made = make(given)
    things = () if made is None else (made,) if isinstance(made, Sheet | Chart) else tuple(made)
    for thing in things:
        if isinstance(thing, Sheet):
            for form in (to_csv, to_tex, to_markdown):
                form(thing).encode()
        elif isinstance(thing, Chart):
            json.dumps(asdict(thing), ensure_ascii=False, allow_nan=False).encode()
    return things
