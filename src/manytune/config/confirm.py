"""Studies of settings that were chosen: the confirm stage of a search, and what `manytune best` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manytune.config.own_task import OwnTask
from manytune.config.schema import Study
from manytune.config.search import Confirm
from manytune.config.spaces import Space, search_spaces
from manytune.config.training_settings import STUDY_WIDE, TWO_FORMS, Training
from manytune.methods import Method
from manytune.utils.errors import StudyError

FIRST_SEED = 2**31
"""The winners' first seed; the others follow. Trials have seeds below it, so none judges a winner."""

_LONGEST_NAME = 100  # of a study

Configuration = tuple[Method, Training | None]
"""A method, and how it trains, where that is not as the study says."""


def confirm_study(study: Study, task: str, winners: Sequence[tuple[Space, Mapping[str, Any]]]) -> Study:
    """The study that judges the winners of a task's spaces, each a space and the values of its dimensions.

    It trains each with `confirm.seeds` seeds that no trial had, on all training rows, to the last step; dev, or the
    task's test file, only judges. Winners of several spaces that are the same are there once.
    """
    confirm = study.confirm or Confirm()
    seeds = range(FIRST_SEED, FIRST_SEED + confirm.seeds)
    configurations = [space.at(values) for space, values in winners]
    return fixed_study(study, task, configurations, "confirm", seeds=seeds, selection="none", on=confirm.on)


def judging_study(study: Study, task: str) -> Study:
    """A study of one run by which a task's data is prepared as the confirm stage does; dev are the rows that judge."""
    space = search_spaces(study, task)[0]
    on = study.confirm.on if study.confirm else "dev"
    return fixed_study(study, task, [space.at(space.edges[0])], "confirm", seeds=[0], selection="dev", on=on)


def fixed_study(
    study: Study,
    task: str,
    configurations: Sequence[Configuration],
    suffix: str,
    *,
    seeds: Sequence[int],
    selection: str,
    on: str = "dev",
) -> Study:
    """A study of these configurations on one of a study's tasks; `on` are the rows that score, `dev` or `test`.

    Raises StudyError where `on` is `test` and the task has no test file.
    """
    data = study.model_dump(mode="json", exclude_none=True)
    entry = dict(zip(study.task_names, study.tasks, strict=True))[task]
    if on == "test":
        if not isinstance(entry, OwnTask) or entry.test is None:
            raise StudyError(f"{task} has no test, the file that judges: add it to the task, test: FILE.")
        entry = entry.model_copy(update={"dev": entry.test, "test": None})
    for key in ("search", "confirm", "limit", "report"):
        data.pop(key, None)
    if (limit := study.limit_of(task)) is not None:
        data["limit"] = limit
    if (margin := study.margin_of(task)) is not None:
        data["report"] = {"margin": margin}
    entries = [_entry(method, training, study.training) for method, training in configurations]
    return Study.from_dict(
        {
            **data,
            "name": f"{study.name[: _LONGEST_NAME - len(suffix) - 1]}-{suffix}",
            "tasks": [entry.model_dump(mode="json", exclude_none=True) if isinstance(entry, OwnTask) else entry],
            "seeds": list(seeds),
            "selection": selection,
            "methods": [each for index, each in enumerate(entries) if each not in entries[:index]],
        }
    )


def _entry(method: Method, training: Training | None, shared: Training) -> dict[str, Any]:
    """A configuration as an entry under `methods`."""
    entry: dict[str, Any] = method.model_dump(mode="json")
    if own := own_settings(training, shared):
        entry["training"] = own
    return entry


def own_settings(training: Training | None, shared: Training) -> dict[str, Any]:
    """The settings of a training that differ from those that runs share, as an entry of a study holds them."""
    if training is None:
        return {}
    given, others = training.model_dump(mode="json"), shared.model_dump(mode="json")
    forms = {*TWO_FORMS, *TWO_FORMS.values()}
    return {
        name: value
        for name, value in given.items()
        if name not in STUDY_WIDE and value != others[name] and not (value is None and name in forms)
    }
