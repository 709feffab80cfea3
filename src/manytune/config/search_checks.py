"""What is wrong with a search although every value of the study file is right by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from manytune.config.own_task import OwnTask
from manytune.config.search import Search
from manytune.config.spaces import Choice, Range, Space, search_spaces
from manytune.utils.errors import StudyError
from manytune.utils.problems import KeyPath, Problem
from manytune.utils.text import listed

if TYPE_CHECKING:
    from manytune.config.schema import Study


def search_problems(study: Study) -> Iterator[Problem]:
    """The contradictions of a study's search; of a study without one, what only a search can have."""
    if study.search is None:
        yield from _without_search(study)
        return
    if "selection" in study.model_fields_set:
        yield Problem(
            ("selection",),
            "a search has its own: search.select says which rows compare the trials, and winners are trained to their "
            "last step. Leave selection out.",
        )
    yield from _early_stopping(
        study, "a search ends trials by its own rule, search.pruning, and compares them at equal steps. Leave it out."
    )
    yield from _confirmation(study, study.search)
    try:
        spaces = [space for task in study.task_names for space in search_spaces(study, task)]
    except StudyError as error:
        yield Problem(("methods",), str(error))
        return
    if not any(space.dimensions for space in spaces):
        yield Problem(
            ("search",),
            "nothing is to be searched: no setting under methods has a range or a choice. Give one, such as "
            "learning_rate: {low: 1e-5, high: 1e-3} or rank: {choice: [2, 8, 64]}, or leave search out.",
        )
    yield from _sampler(study.search, [space for space in spaces if space.dimensions])


def _items(study: Study) -> Iterator[tuple[KeyPath, str, Any]]:
    """What each setting of the entries may be: its path, its name, and a value, Range or Choice."""
    for index, sweep in enumerate(study.methods):
        for name, axis in sweep.axes.items():
            path: KeyPath = ("methods", index, *name.split("."))
            for task, items in axis.items() if isinstance(axis, Mapping) else ((None, axis),):
                for item in items:
                    yield path if task is None else (*path, task), name, item


def _without_search(study: Study) -> Iterator[Problem]:
    if study.selection == "none":
        yield from _early_stopping(study, "without a selection no score may decide when a run ends. Leave it out.")
    if study.confirm is not None:
        yield Problem(
            ("confirm",),
            "it judges the winners of a search, and this study has none. Leave it out, or add search: {trials: 24}.",
        )
    for path, _, item in _items(study):
        if isinstance(item, Range | Choice):
            kind = "range" if isinstance(item, Range) else "choice"
            what = f"a {kind} is drawn from by a search, and this study has none. Add search: {{trials: 24}}"
            yield Problem(path, f"{what}, or give a value, or a list to try all of.")


def _early_stopping(study: Study, what: str) -> Iterator[Problem]:
    if study.training.early_stopping is not None:
        yield Problem(("training", "early_stopping"), what)
    for path, name, item in _items(study):
        if name == "training.early_stopping" and item is not None:
            yield Problem(path, what)


def _confirmation(study: Study, search: Search) -> Iterator[Problem]:
    if study.confirm is None:
        return
    if study.confirm.on == "dev" and search.select == "dev":
        yield Problem(
            ("confirm", "on"),
            "dev rows that compare the trials cannot confirm the winner. Use search.select: train-split, or, with a "
            "test file, confirm: {on: test}; or confirm: none.",
        )
    for index, task in enumerate(study.tasks) if study.confirm.on == "test" else ():
        if not isinstance(task, OwnTask):
            what = f"{task} has no labelled test rows, which confirm: {{on: test}} judges by. Use confirm: {{on: dev}}."
            yield Problem(("tasks", index), what)
        elif task.test is None:
            what = f"{task.name} has no test, the file that confirm: {{on: test}} judges by. Add it: test: FILE."
            yield Problem(("tasks", index), what)


def _sampler(search: Search, spaces: list[Space]) -> Iterator[Problem]:
    path = ("search", "sampler")
    for space in spaces:
        ranges = [name for name, dimension in space.dimensions.items() if isinstance(dimension, Range)]
        if search.sampler == "sobol" and not ranges:
            what = f"sobol spreads trials over ranges, and {space.name} on {space.task} has choices alone."
            yield Problem(path, f"{what} Use random or grid.")
        if search.sampler == "grid" and ranges:
            yield Problem(
                path,
                f"a grid needs choices, and {listed(ranges)} of {space.name} on {space.task} is a range. List its "
                "values instead: {choice: [1e-4, 4e-4, 1e-3]}.",
            )
        elif search.sampler == "grid" and space.points != search.trials:
            yield Problem(
                ("search", "trials"),
                f"received {search.trials}, but the grid of {space.name} on {space.task} has {space.points} points, "
                f"and all of them are tried. Give trials: {space.points}.",
            )
