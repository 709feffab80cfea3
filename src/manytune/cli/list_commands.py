"""Commands that list what there is: tasks, methods, models, schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manytune.cli.common import Json, app, joined, print_json, print_result, print_rich
from manytune.utils.text import say


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the tasks."""
    from manytune.data.tasks import TASKS

    rows = [
        {
            "task": task.name,
            "title": task.title,
            "kind": task.kind,
            "metrics": list(task.metrics),
            "train": task.sizes.get("train"),
            "dev": task.sizes.get("dev"),
        }
        for task in TASKS.values()
    ]
    print_result(rows, _table(list(rows[0]), rows), as_json=as_json)


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods and their hyper-parameters."""
    from manytune.methods import METHODS

    rows = [
        {
            "method": name,
            "summary": (kind.__doc__ or "").splitlines()[0],
            "hyperparameters": [field for field in kind.model_fields if field != "method"],
            "paper": kind.paper,
        }
        for name, kind in METHODS.items()
    ]
    columns = ("method", "what it does", "hyper-parameters", "paper")
    print_result(rows, _table(columns, rows), as_json=as_json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the study file.

    An editor that is given it completes and checks study files.
    """
    from manytune.config import study_json_schema

    print_json(study_json_schema())


@app.command()
def models(as_json: Json = False) -> None:
    """List the encoder families, which layers methods adapt in them by default, and models in the local cache.

    Any other encoder that transformers can classify with is trained too, in padded batches.
    """
    from manytune.methods import METHODS
    from manytune.models.families import FAMILIES, cached_models
    from manytune.report.views import plain_table

    cached = cached_models()
    targets = {
        f"{name} adapts": kind.model_fields["targets"].default
        for name, kind in METHODS.items()
        if "targets" in kind.model_fields
    }
    rows = [
        {
            "family": name,
            "such as": family.checkpoint,
            "batches": family.path,
            **{column: family.layers(words) for column, words in targets.items()},
            "query, key and value are one layer": family.is_fused,
            "in the local cache": cached.pop(name, []),
        }
        for name, family in FAMILIES.items()
    ]
    if as_json:
        print_json({"families": rows, "others in the local cache": cached})
        return
    fused = "query, key and value are one layer"
    columns = ("family", "such as", "batches", *targets, "in the local cache")
    cells = []
    for row in rows:
        star = " *" if row[fused] else ""
        cells.append([(joined(row[each]) or "–") + (star if each in targets else "") for each in columns])
    print_rich(plain_table(columns, cells))
    say("flat: the sequences of all runs end to end, no padding; padded: each run in its turn, slower.")
    say("A layer with a * is query, key and value in one: all of it is adapted.")
    for name, names in cached.items():
        say(f"Also in the local cache, of {name}: {', '.join(names)}")


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Any:
    from manytune.report.views import plain_table

    return plain_table(columns, [[joined(value) for value in row.values()] for row in rows])
