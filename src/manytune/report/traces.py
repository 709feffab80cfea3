"""Charts and traces for plotly.js, as plain data.

A colour is `@name`; the page's script replaces it by the value in the current theme, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chart:
    """A chart, and what it shows in words."""

    key: str
    title: str
    alt: str
    """The text for screen readers."""
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    """In pixels."""
    narrow: dict[str, Any] | None = None
    """Changes of the layout, and of the height, on small screens."""
    choices: tuple[dict[str, Any], ...] = ()
    """Other horizontal axes to choose from: title, x, y and text of every trace, whether `log`, more of the `axis`."""
    caption: str = ""
    """What the marks mean."""


def trace(mode: str, x: Iterable[Any], y: Iterable[Any], hover: str = "", **rest: Any) -> dict[str, Any]:
    """A trace of plotly; without a text in `hover`, none is shown under the pointer."""
    shown = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    return {"type": "scatter", "mode": mode, "x": list(x), "y": list(y), **shown, **rest}


def area(x: Sequence[float], low: Sequence[Any], high: Sequence[Any], color: str, **rest: Any) -> dict[str, Any]:
    """The area between two lines: along the upper one and back along the lower one."""
    fill: dict[str, Any] = {"fill": "toself", "fillcolor": color, "line": {"width": 0}, "showlegend": False}
    return trace("lines", [*x, *reversed(x)], [*high, *reversed(low)], **fill, **rest)


def short(values: Sequence[float]) -> list[float | None]:
    """Five digits: more cannot be seen, and the page would be twice as large; what is not finite is a gap."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
