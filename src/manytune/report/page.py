"""Content → `index.html`: one self-contained file that asks nothing of anyone."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from manytune.errors import DependencyError
from manytune.report.content import Content
from manytune.report.sheets import UNKNOWN, Sheet
from manytune.version import __version__

__all__ = ["digests", "embedded", "render_page", "script"]

_LONG = 34  # characters; longer texts may be broken over lines


def render_page(content: Content) -> str:
    """The page. Everything from users' files is escaped: text in HTML by jinja, data in JSON by `embedded`.

    Raises:
        DependencyError: plotly is not installed whole.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("manytune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {chart.key: asdict(chart) for task in content.tasks for chart in task.charts}
    scripts = [script(name) for name in (*(["plotly"] if charts else []), "draw.js", "page.js")]
    return environment.get_template("page.html").render(
        content=content,
        charts=embedded(charts),
        style=script("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
        cells=_cells,
        version=__version__,
    )


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: no tag, comment or entity can begin in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _policy(scripts: list[str]) -> str:
    """What the browser may do: run these scripts and no other, and fetch nothing."""
    return f"default-src 'none'; script-src {digests(scripts)}; style-src 'unsafe-inline'; img-src data: blob:"


def digests(scripts: Iterable[str]) -> str:
    """Scripts as a content security policy names them."""
    found = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in found)


def _cells(sheet: Sheet) -> list[list[dict[str, Any]]]:
    """Rows of cells: what is shown, what is sorted by, and how it is set."""
    return [
        [
            {
                "text": text,
                "value": "" if cell is None or text == UNKNOWN else cell,
                "number": column.kind != "text",
                "long": column.kind == "text" and len(text) > _LONG,
            }
            for text, cell, column in zip(shown, row, sheet.columns, strict=True)
        ]
        for shown, row in zip(sheet.shown(), sheet.rows, strict=True)
    ]


def script(name: str) -> str:
    """One of the page's scripts or styles, or plotly.

    Raises:
        DependencyError: plotly is not installed whole.
    """
    if name == "plotly":
        return _plotly()
    return (resources.files("manytune.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js from the package of that name, which is not imported: that alone would take a second."""
    package = importlib.util.find_spec("plotly")
    places = list(package.submodule_search_locations or ()) if package else []
    for place in places:
        file = Path(place) / "package_data" / "plotly.min.js"
        if file.is_file():
            return file.read_text(encoding="utf-8").replace("</script", "<\\/script")
    raise DependencyError("The page's charts need the package plotly: pip install plotly.")
