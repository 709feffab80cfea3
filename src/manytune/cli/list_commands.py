"""Commands that list what there is: tasks, methods, models, schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manytune.cli.common import Json, app, joined, print_json, print_result, print_rich
from manytune.utils.text import say

if TYPE_CHECKING:
    from manytune.methods import Method


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
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A method, to list its settings.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or the settings of one."""
    from manytune.methods import METHODS
    from manytune.report.views import plain_table
    from manytune.utils.errors import StudyError, choices

    if name is not None and name not in METHODS:
        raise StudyError(choices(name, METHODS))
    rows = [_described(METHODS[each]) for each in ([name] if name else METHODS)]
    if as_json:
        print_json(rows)
        return
    if name is None:
        groups = sorted(rows, key=lambda row: [kind.group for kind in METHODS.values()].index(row["group"]))
        shown = [
            [*([""] if index else [row["group"]]), row["method"], row["summary"], row["paper"]]
            for _, same in groupby(groups, key=itemgetter("group"))
            for index, row in enumerate(same)
        ]
        print_rich(plain_table(("what trains", "method", "what it does", "paper"), shown))
        say("The settings of a method: manytune methods NAME")
        return
    (row,) = rows
    say(f"{row['method']}: {row['summary']} {row['paper'] or ''}".rstrip())
    settings = [[key, each["default"], each["meaning"]] for key, each in row["settings"].items()]
    print_rich(plain_table(("setting", "default", "meaning"), settings))


def _described(kind: type[Method]) -> dict[str, Any]:
    """A method as JSON."""
    settings = {
        name: {
            "default": "must be given" if field.is_required() else _written(field.default),
            "meaning": " ".join((field.description or "").split()),
        }
        for name, field in kind.model_fields.items()
        if name != "method"
    }
    return {
        "method": kind.model_fields["method"].default,
        "group": kind.group,
        "summary": (kind.__doc__ or "").splitlines()[0],
        "hyperparameters": [*settings],
        "paper": kind.paper,
        "settings": settings,
    }


def _written(default: Any) -> str:
    """A default value as a study file holds it."""
    if default is None or isinstance(default, bool):
        return {None: "–", True: "true", False: "false"}[default]
    if isinstance(default, tuple):
        return ", ".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


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
    same: dict[Any, list[str]] = {}  # default targets → the methods that have them
    for name, kind in METHODS.items():
        if "targets" in kind.model_fields:
            same.setdefault(kind.model_fields["targets"].default, []).append(name)
    targets = {f"{', '.join(names)} adapts": words for words, names in same.items()}
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
