"""What a study directory holds that must not depend on how it came about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["results_in"]

_CLOCKS = {"train_seconds", "eval_seconds", "samples_per_second", "peak_memory_bytes", "started", "finished"}
"""Fields of a record that are never compared."""


def results_in(out: Path) -> dict[str, Any]:
    """Path → content of every file of a study directory, clock fields and the report aside."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or name.startswith("report/"):
            continue
        if path.name == "record.json":
            found[name] = _without_clocks(json.loads(path.read_text()))
        elif path.name == "history.csv":
            found[name] = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        else:
            found[name] = path.read_bytes()
    return found


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(inner) for key, inner in value.items() if key not in _CLOCKS}
    return value
