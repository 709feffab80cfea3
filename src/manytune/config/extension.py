"""Add seeds and methods to a study."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from manytune.config.plan import plan_runs
from manytune.config.schema import Study
from manytune.config.study_file import Source, apply_overrides
from manytune.utils.errors import StudyError
from manytune.utils.text import quoted


def extend_study(study: Study, *, seeds: str | None = None, methods: Sequence[str] = ()) -> Study:
    """The study with more seeds and methods; what it has already is not added again.

    >>> study = Study.from_dict({"name": "s", "tasks": ["cola"], "seeds": [0], "methods": [{"method": "full",
    ... "learning_rate": 2e-5}]})
    >>> grown = extend_study(study, seeds="3", methods=["lora rank=[4,16] learning_rate=3e-4"])
    >>> grown.seeds, len(grown.methods)
    ((0, 1, 2), 2)

    Args:
        study: The study.
        seeds: How many seeds there are to be in the end, such as `5`, or which ones to add: `3,4`.
        methods: Entries for `methods`, each its name and then its hyper-parameters as `key=value`.

    Raises:
        StudyError: The study is a search, or a text is not of this form, is no method, or makes runs of which the
            study has some already.
    """
    if study.search is not None:
        raise StudyError(
            "A search is not extended by seeds or methods: for more trials, or more seeds of its winners, raise "
            "search.trials or confirm.seeds in the study file, and give it to `manytune run` with --accept-changes."
        )
    data = study.model_dump(mode="json", exclude_none=True)
    if seeds is not None:
        every = [*study.seeds, *_more_seeds(study.seeds, seeds)]
        data["seeds"] = {"looks": study.looks, "list": every} if study.looks else every
    for text in methods:
        entry = _method(text)
        alone = _study({**data, "methods": [entry]}, f"--method {quoted(text)}")
        grown = _study(data, "the study")
        there = {run.id for run in plan_runs(grown)}
        if not {run.id for run in plan_runs(alone)} <= there:
            data["methods"] = [*data["methods"], entry]
    grown = _study(data, "The study, extended,")
    plan_runs(grown)
    return grown


def _study(data: dict[str, object], name: str) -> Study:
    return Study.model_validate(data, context=Source(name, data))


def _more_seeds(there: Sequence[int], given: str) -> list[int]:
    """The seeds that are not there yet."""
    if not re.fullmatch(r"\s*\d{1,10}\s*(,\s*\d{0,10}\s*)*", given):
        raise StudyError(
            f"--seeds: {quoted(given)} is no number of seeds, such as 5, and no list of seeds with commas, such as 3,4."
        )
    numbers = [int(number) for number in given.split(",") if number.strip()]
    if "," in given:
        return [seed for seed in dict.fromkeys(numbers) if seed not in there]
    (count,) = numbers
    if count < len(there):
        raise StudyError(
            f"--seeds: the study has {len(there)} seeds already, and {count} are fewer. Give how many there are to be "
            f"in the end, such as {len(there) + 2}; seeds are never taken away. One seed alone: --seeds {count},"
        )
    new = (seed for seed in itertools.count() if seed not in there)
    return list(itertools.islice(new, min(count - len(there), 100_000)))


def _method(text: str) -> dict[str, object]:
    """An entry under `methods`: "lora rank=16 learning_rate=3e-4"."""
    name, *pairs = re.split(r"\s+(?=[\w.]+\s*=)", text.strip())
    if not re.fullmatch(r"[\w-]+", name) or not all("=" in pair for pair in pairs):
        raise StudyError(
            f"--method: {quoted(text)} cannot be used: give the method's name and then its hyper-parameters, such as "
            '"full learning_rate=2e-5". `manytune methods` lists them.'
        )
    source = apply_overrides(Source("--method", {"method": name}), pairs)
    return dict(source.data)
