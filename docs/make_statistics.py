"""Write the tables of `statistics.md` from what simulations measured.

    python docs/make_statistics.py

`benchmarks/error_rates.py` measures `results/statistics.json`, `benchmarks/search_rates.py`
`results/search-statistics.json`.

What lies between `<!-- made: NAME -->` and `<!-- end -->` is made anew; a test fails where the page has anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "statistics.md"
RESULTS = {
    "facts": DOCS / "results" / "statistics.json",
    "search-facts": DOCS / "results" / "search-statistics.json",
}
"""What the facts of a result are called in the page → its file."""


def measured() -> dict[str, dict[str, Any]]:
    """The results, by what their facts are called."""
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in RESULTS.items()}


def made(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its tables made anew."""
    cells = [cell for result in results.values() for cell in result["cells"]]

    def anew(match: re.Match[str]) -> str:
        name = match[2]
        text = facts(results[name]) if name in results else table(name.replace("-", " "), cells)
        return f"{match[1]}\n{text}\n<!-- end -->"

    return re.sub(r"(<!-- made: (\S+) -->)\n.*?\n?<!-- end -->", anew, page, flags=re.DOTALL)


def facts(result: Mapping[str, Any]) -> str:
    """Where and with what the figures were made."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    counts = [cell["studies"] for cell in result["cells"]]
    between = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    return f"{between} simulated studies a figure; {versions}; {result['processor']}."


def table(group: str, cells: Iterable[Mapping[str, Any]]) -> str:
    """A line for each row of the group's cells, a column for each of theirs, and what no share may exceed."""
    own = [cell for cell in cells if cell["group"] == group]
    if not own:
        raise ValueError(f"the results have no figures of {group!r}")
    columns = list(dict.fromkeys(cell["column"] for cell in own))
    limited = any(cell["limit"] is not None for cell in own)
    named = [f"{name} seeds" if name.isdigit() else name for name in columns]
    heading = ["", *named, *(["at most"] if limited else [])]
    lines = [_line(heading), _line(["---"] * len(heading))]
    for row in dict.fromkeys(cell["row"] for cell in own):
        there = {cell["column"]: cell for cell in own if cell["row"] == row}
        limits = {f"{100 * cell['limit']:g} %" for cell in there.values() if cell["limit"] is not None}
        shares = [_share(there[name]) if name in there else "" for name in columns]
        lines.append(_line([row, *shares, *([", ".join(sorted(limits))] if limited else [])]))
    return "\n".join(lines)


def _share(cell: Mapping[str, Any]) -> str:
    seeds = f", {cell['seeds']} seeds" if "seeds" in cell else ""
    return f"{100 * cell['share']:.1f} ± {100 * cell['error']:.1f} %{seeds}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8"), measured()), encoding="utf-8")
