"""The result file of `gpu.py` as a few tables: what passed, how fast it was, and how that compares with Trainer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manytune.utils.files import write_atomically

Row = dict[str, Any]
SPEEDS = ("speed", "speed-triton", "speed-plain")


def _change(out: Path, name: str, **values: Any) -> None:
    path = out / "gpu.json"
    kept = json.loads(path.read_text()) if path.exists() else {"steps": {}}
    kept["steps"].setdefault(name, {}).update(values)
    write_atomically(path, json.dumps(kept, indent=1) + "\n")


def begin_step(out: Path, name: str) -> None:
    """Forget what an earlier call found by this step."""
    _change(out, name, rows=[], ended="not yet")


def end_step(out: Path, name: str, how: str, seconds: float) -> None:
    _change(out, name, ended=how, seconds=round(seconds, 1))


def _rows(steps: Row, name: str) -> list[Row]:
    return [row for row in steps.get(name, {}).get("rows", ()) if "samples_per_second" in row]


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Columns of text, set flush."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def summary(out: Path) -> str:
    """All that OUT/gpu.json has, in short."""
    steps = json.loads((out / "gpu.json").read_text())["steps"]
    return "\n\n".join(["", _passed(steps), *_speeds(steps), *_at_once(steps)]) + "\n"


def _passed(steps: Row) -> str:
    def verdict(rows: list[Row]) -> str:
        failed = [row for row in rows if row.get("passed") is False or "failed" in row]
        if failed:
            return f"{len(failed)} of {len(rows)} rows FAIL"
        return "passed" if any(row.get("passed") for row in rows) else f"{len(rows)} rows"

    found = [(name, step["ended"], step.get("seconds", ""), verdict(step["rows"])) for name, step in steps.items()]
    return table(("step", "ended", "seconds", "found"), found)


def _speeds(steps: Row) -> list[str]:
    """For each model, ours by kernels and by work, and how many times Trainer's runs one after the other that is.

    Of Trainer the fastest way counts, of all that were measured.
    """
    best: dict[tuple[str, str], Row] = {}
    for row in [*_rows(steps, "trainer"), *_rows(steps, "trainer-compile")]:
        key = (row["model"], row["work"])
        if key not in best or row["samples_per_second"] > best[key]["samples_per_second"]:
            best[key] = row
    at_once = {(row["model"], row["work"], row["processes"]): row for row in _rows(steps, "trainers")}
    parts = []
    rows = [row for name in SPEEDS for row in _rows(steps, name)]
    columns = ("work", "runs", "kernels", "samples/s", "ms/step", "GB", "Trainer", "× Trainer", "× 4 at once", "× 8")
    for model in dict.fromkeys(row["model"] for row in rows):
        lines = []
        own = [row for row in rows if row["model"] == model]
        for row in sorted(own, key=lambda row: (row["work"], row["runs"])):
            other = best.get((model, row["work"]))
            speed = row["samples_per_second"]
            others = [at_once.get((model, row["work"], count)) for count in (4, 8)]
            ratios = [f"{speed / each['samples_per_second']:.2f}" if each else "–" for each in (other, *others)]
            shown = f"{other['samples_per_second']:.0f} ({other['way']})" if other else "–"
            memory = f"{row['peak_bytes'] / 1e9:.2f}" if row.get("peak_bytes") else "–"
            cells = (row["work"], row["runs"], row["kernels"], f"{speed:.0f}", f"{row['ms_per_step']:.2f}", memory)
            lines.append((*cells, shown, *ratios))
        parts.append(f"{model}, batch 16 of CoLA, samples a second of all runs together\n" + table(columns, lines))
    return parts


def _at_once(steps: Row) -> list[str]:
    rows = [row for name in ("trainer", "trainer-compile", "trainers") for row in _rows(steps, name)]
    if not rows:
        return []
    cells = [
        (row["model"], row["work"], row["way"], row["processes"], f"{row['samples_per_second']:.0f}") for row in rows
    ]
    return ["Trainer\n" + table(("model", "work", "way", "processes", "samples/s"), cells)]
