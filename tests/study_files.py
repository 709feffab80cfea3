"""Small studies, and what a study directory holds that must not depend on how it came about."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from manytune.config import Study

__all__ = ["results_in", "small_study", "small_task", "write_small_study"]

_CLOCKS = {
    *("train_seconds", "eval_seconds", "samples_per_second", "peak_memory_bytes"),
    *("started", "finished", "began", "ended"),
}
"""Fields of a record that are never compared."""


def write_small_study(folder: Path, model: Path, training: Mapping[str, Any], **changes: Any) -> Path:
    """Write a study file: one built-in task, two seeds, one LoRA run each unless `changes` say otherwise."""
    content = _small(model, training=dict(training), **changes)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def small_study(model: Path, **changes: Any) -> Study:
    """The same as a study, of few steps unless `changes` say otherwise."""
    return Study.from_dict(_small(model, **changes))


def small_task(folder: Path) -> dict[str, Any]:
    """A task of 64 training rows and 24 rows of dev, written into the folder: scoring them takes milliseconds."""
    draw = random.Random(0)
    words = ("river", "lamp", "seven", "quiet", "horse", "paper", "window", "salt")
    rows = [f"{' '.join(draw.choices(words, k=draw.randint(1, 7)))} {row},{draw.random():.3f}" for row in range(88)]
    for split, chosen in (("train", rows[:64]), ("dev", rows[64:])):
        (folder / f"{split}.csv").write_text("\n".join(["text,score", *chosen, ""]))
    files = {split: str(folder / f"{split}.csv") for split in ("train", "dev")}
    return {"name": "small", **files, "text": "text", "label": "score", "type": "regression", "metric": "pearson"}


def _small(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "model": str(model),
        "tasks": ["builtin-similarity"],
        "seeds": [0, 1],
        "training": {"max_steps": 6, "eval_every": 2, "precision": "fp32"},
        "methods": [{"method": "lora", "rank": 2, "learning_rate": 1e-3}],
        **changes,
    }


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
        elif path.name == "plan.json":  # where packs trained, which may differ, is kept beside them
            found[name] = json.loads(path.read_text())["packs"]
        else:
            found[name] = path.read_bytes()
    return found


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(inner) for key, inner in value.items() if key not in _CLOCKS}
    return value
