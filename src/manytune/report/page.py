"""Content → `index.html`: one self-contained file that loads nothing over the network."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from manytune.report.content import Content
from manytune.report.sheets import UNKNOWN, Cell, Column, Sheet
from manytune.utils.errors import DependencyError
from manytune.utils.version import __version__

_TEMPLATES = resources.files("manytune.report") / "templates"

_LONG = 34  # characters; longer texts may be broken over lines


def render_page(content: Content) -> str:
    """The page. Text from users' files is escaped: by jinja in HTML, by `embedded` in JSON.

    Raises DependencyError where there is no plotly.js.
    """
    charts = {chart.key: asdict(chart) for chart in content.charts}
    return render_template(
        "page.html",
        f"{content.title} · manytune",
        (*(["plotly"] if charts else []), "draw.js", "page.js"),
        content=content,
        charts=embedded(charts),
        cells=_cells,
        version=__version__,
    )


def render_template(name: str, title: str, scripts: Iterable[str], *, served: bool = False, **values: Any) -> str:
    """A page from the template `name`, with `scripts` in their order and `values` as the template's variables.

    A `served` page may send requests to the server that it comes from. Raises as `render_page` does.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("manytune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    programs = [_text(each) for each in scripts]
    # The browser runs these scripts and no other, and fetches nothing.
    digests = (base64.b64encode(hashlib.sha256(program.encode()).digest()).decode() for program in programs)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    policy += "; connect-src 'self'" if served else ""
    environment.filters["code"] = _with_code
    template = environment.get_template(name)
    return template.render(title=title, style=_text("page.css"), scripts=programs, policy=policy, **values)


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: no tag, comment or entity can begin in it."""
    escapes = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(escapes)


def _with_code(text: str) -> Any:
    """Text whose `commands` in backticks are set as code; everything is escaped."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick of the user's own
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def _cells(sheet: Sheet) -> list[list[dict[str, Any]]]:
    """Rows of cells: the text, the value to sort by, and how the cell is set; tallies by their shares of the row's."""
    return [
        [
            {
                "text": text,
                "value": "" if cell is None or text == UNKNOWN else cell,
                "number": column.is_number,
                "long": not column.is_number and len(text) > _LONG,
                "share": share,
                "extra": column.extra,
            }
            for text, (cell, column), share in zip(shown, _shown_cells(sheet, row), _shares(sheet, row), strict=True)
        ]
        for shown, row in zip(sheet.shown(), sheet.rows, strict=True)
    ]


def _shown_cells(sheet: Sheet, row: Sequence[Cell]) -> list[tuple[Cell, Column]]:
    return [pair for pair in zip(row, sheet.columns, strict=True) if pair[1].kind != "deviation"]


def _shares(sheet: Sheet, row: Sequence[Cell]) -> list[float | None]:
    """Of each tally in a row, its share of all tallies there, 0 to 1; None for other cells."""
    tallies = [
        float(cell) if column.kind == "tally" and isinstance(cell, int | float) else None
        for cell, column in _shown_cells(sheet, row)
    ]
    total = sum(each for each in tallies if each is not None) or 1.0
    return [None if each is None else each / total for each in tallies]


def _text(name: str) -> str:
    """One of the pages' scripts or styles, or plotly."""
    if name == "plotly":
        return _plotly()
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js as this package's wheel has it, or else, in a source tree, as the package plotly does."""
    package = importlib.util.find_spec("plotly")
    folders = (package.submodule_search_locations or ()) if package else ()
    for file in (
        Path(str(_TEMPLATES)) / "plotly.min.js",
        *(Path(each) / "package_data/plotly.min.js" for each in folders),
    ):
        if file.is_file():
            return file.read_text(encoding="utf-8").replace("</script", "<\\/script")
    raise DependencyError(
        "Without the wheel of manytune, the page's charts need the package plotly: pip install plotly."
    )
