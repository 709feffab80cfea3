"""What there is."""

from __future__ import annotations

from manytune.cli.common import Json, app, joined, print_json, print_rich


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the tasks."""
    from manytune.report.views import plain_table
    from manytune.tasks import TASKS

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
    if as_json:
        print_json(rows)
        return
    print_rich(plain_table(list(rows[0]), [[joined(value) for value in row.values()] for row in rows]))


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods and their hyper-parameters."""
    from manytune.config import METHODS
    from manytune.report.views import plain_table

    rows = [
        {
            "method": name,
            "summary": (kind.__doc__ or "").splitlines()[0],
            "hyperparameters": [field for field in kind.model_fields if field != "method"],
            "paper": kind.paper,
        }
        for name, kind in METHODS.items()
    ]
    if as_json:
        print_json(rows)
        return
    columns = ("method", "what it does", "hyper-parameters", "paper")
    print_rich(plain_table(columns, [[joined(value) for value in row.values()] for row in rows]))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the study file.

    An editor that is given it completes and checks study files.
    """
    from manytune.config import study_json_schema

    print_json(study_json_schema())
