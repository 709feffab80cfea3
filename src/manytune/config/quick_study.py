"""The study that `quick` and `init --data` write: a few ways to train on one task, as a commented study file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manytune.config.study_file import dump, read
from manytune.data.recognise import Recognised
from manytune.data.tasks import TASKS

MOST_DEV_ROWS = 1000
"""Rows that are set aside for scores; of fewer than five times as many rows, a fifth is."""

_STEPS = 600  # optimizer steps that small data is trained for
_BATCH = 16
_LARGE = 512  # hidden width from which on learning rates are those of BERT-base
_METHODS = Path(__file__).with_name("quick_methods.yaml")


@dataclass(frozen=True)
class Size:
    """How much of the data a study trains on, and how often."""

    seeds: int
    rows: int | None
    """Training rows; None for all."""
    epochs: int


def epochs_for(rows: int) -> int:
    """Passes over so many training rows: 3, and more of few rows, so that training takes off."""
    return max(3, min(20, round(_STEPS * _BATCH / rows)))


def quick_task(file: str, recognised: Recognised) -> dict[str, Any]:
    """The task's entry in a study file."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(file).stem).strip("-_")[:50] or "task"
    dialect, rows, text = recognised.dialect, recognised.rows, list(recognised.text)
    return {
        "name": f"{stem}-file" if stem.lower() in TASKS else stem,
        "train": file,
        "dev": 0.2 if rows <= 5 * MOST_DEV_ROWS else round(MOST_DEV_ROWS / rows, 4),
        **{key: value for key in ("separator", "encoding", "quoting") if (value := getattr(dialect, key)) is not None},
        "text": text if len(text) > 1 else text[0],
        "label": recognised.label,
        "type": recognised.kind,
    }


def quick_study(
    task: Mapping[str, Any] | str, size: Size, *, model: str = "minilm", width: int = 384
) -> dict[str, Any]:
    """The study as plain data; `width` is the backbone's hidden width, which learning rates go by."""
    return {
        "name": f"{task if isinstance(task, str) else task['name']}-quick",
        "model": model,
        "tasks": [task if isinstance(task, str) else dict(task)],
        "seeds": list(range(size.seeds)),
        **({} if size.rows is None else {"limit": size.rows}),
        "training": {
            "batch_size": _BATCH,
            "epochs": size.epochs,
            "max_length": 128,
            "warmup_ratio": 0.06,
            "weight_decay": 0.1,
        },
        "methods": read(_METHODS).data["512 or more" if width >= _LARGE else "below 512"],
    }


_COMMENTS = {
    "name": "What the study is called in reports.",
    "model": "The pretrained encoder: minilm, a name on the Hugging Face hub such as roberta-base, or a folder.",
    "tasks": "What to learn: the file, its columns, and the share set aside as dev, which scores (manytune check).",
    "seeds": "Every run is repeated with each seed. A verdict takes five; `manytune extend` adds some later.\n"
    "# Planned looks, {looks: [5, 10, 20]} instead of the list, keep a verdict right while seeds are added.",
    "limit": "Most training rows, for a trial. Leave it out to train on all of them: that is the study that counts.",
    "training": "How every run trains. epochs: passes over the training rows.",
    "methods": "The ways to train. A list tries every value: learning_rate: [1e-4, 3e-4]",
}


def quick_text(study: Mapping[str, Any], *, made_by: str, run: str, found: str = "") -> str:
    """The study as a commented file; `made_by` is the command that wrote it, `run` the one that runs it."""
    lines = [
        f"# Written by: {made_by}",
        *(f"#   {line}" for line in found.splitlines()),
        "#",
        f"# Change what you like, then: {run}",
        "# All keys, each with its meaning: manytune init study.yaml",
    ]
    commented = re.sub(r"^(\w+):", lambda key: f"\n# {_COMMENTS[key[1]]}\n{key[0]}", dump(study), flags=re.MULTILINE)
    return "\n".join(lines) + "\n" + commented
