"""Types of a study's own fields, beside the general ones in utils/fields.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from manytune.data.tasks import TASKS, no_task
from manytune.utils.errors import choices
from manytune.utils.fields import MOST, Count, Frozen, Matching, Positive, Seed, distinct, or_default

TRACKERS: Mapping[str, tuple[str, str | None]] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", None),
    "trackio": ("trackio", None),
    "aim": ("aim", None),
    "comet_ml": ("comet_ml", None),
    "clearml": ("clearml", None),
    "dvclive": ("dvclive", None),
    "swanlab": ("swanlab", None),
}
"""Experiment tracker → the package that it needs, and our extra that brings it."""


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise PydanticCustomError("unknown_task", "{choices}", {"choices": no_task(name)})
    return name


def _known_tracker(name: str) -> str:
    if name not in TRACKERS:
        raise PydanticCustomError("unknown_tracker", "{choices}", {"choices": choices(name, TRACKERS)})
    return name


def _unknown_task(name: str) -> str:
    if name.lower() in TASKS:
        raise ValueError(f"{name!r} is a task already; give yours another name")
    return name


def _word_or_count(literal: Any, counted: str) -> PlainValidator:
    (word,) = get_args(literal)

    def check(value: Any) -> Any:
        if value == word or (type(value) is int and 1 <= value <= MOST):
            return value
        raise ValueError(f"it must be {word}, or a number of {counted}, at least 1 and at most {MOST}")

    return PlainValidator(check, json_schema_input_type=literal | Count)


def _class_weights(value: Any) -> Any:
    if isinstance(value, str) and value in ("none", "balanced"):
        return value
    if isinstance(value, (list, tuple)) and value:
        weights = tuple(float(v) for v in value if type(v) in (int, float) and 0 < v <= sys.float_info.max)
        if len(weights) == len(value):
            return weights
    raise ValueError("it must be none, balanced, or a list with a number above 0 for each class")


def _limit(value: Any) -> Any:
    numbers = list(value.values()) if isinstance(value, Mapping) and value else [value]
    if value is None or all(type(number) is int and 1 <= number <= MOST for number in numbers):
        return dict(value) if isinstance(value, Mapping) else value
    raise ValueError("it must be a number of training rows, at least 1, or a mapping from tasks to such numbers")


def _seeds(value: Any) -> Any:
    """The seeds of the mapping form: those that are listed, else as many as the first look takes."""
    if not isinstance(value, Mapping):
        return value
    if strange := [key for key in value if key not in ("looks", "list")]:
        raise PydanticCustomError("unknown_key", "{what}", {"what": choices(str(strange[0]), ("looks", "list"))})
    if value.get("looks") is None:
        raise ValueError(
            "it must be a list of seeds, or hold the numbers of seeds at which to look: looks: [5, 10, 20]"
        )
    if value.get("list") is not None:
        return value["list"]
    looks = value["looks"]
    first = looks[0] if isinstance(looks, (list, tuple)) and looks else None
    return (
        list(range(first)) if type(first) is int and FEWEST_SEEDS <= first <= MOST_SEEDS else [0]
    )  # where looks are refused


def read_looks(value: Any) -> tuple[int, ...]:
    """The numbers of seeds at which looks are planned; a ValueError says what they must be."""
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    right = all(type(number) is int and FEWEST_SEEDS <= number <= MOST_SEEDS for number in numbers)
    if right and 2 <= len(numbers) <= MOST_LOOKS and numbers == sorted(set(numbers)):
        return tuple(numbers)
    raise ValueError(
        f"it must be a list of 2 to {MOST_LOOKS} numbers of seeds, each above the one before it, from {FEWEST_SEEDS} "
        f"(fewer give no verdict) up to {MOST_SEEDS:,}, such as [5, 10, 20]"
    )


def _margin(value: Any) -> Any:
    if value is None:
        return None
    by_task = value if isinstance(value, Mapping) else {"": value}
    if by_task and all(type(number) in (int, float) and 0 < number <= MOST for number in by_task.values()):
        return {task: float(number) for task, number in value.items()} if by_task is value else float(value)
    raise ValueError(
        "it must be how much worse counts as as good, a number above 0 in the metric's unit such as 0.01, or a mapping "
        "from tasks to such numbers"
    )


MOST_SEEDS = 100_000
MOST_LOOKS = 4
FEWEST_SEEDS = 5
"""Seeds of a look at least: with fewer there is no verdict."""


StudyName = Annotated[
    str, Matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits and . _ - (first a letter or digit)", 100)
]
PathOrName = Annotated[
    str,
    Field(min_length=1),
    BeforeValidator(lambda value: os.path.expanduser(value) if isinstance(value, (str, os.PathLike)) else value),
]
OwnName = Annotated[
    str,
    Matching(r"[A-Za-z0-9][A-Za-z0-9_-]*", "letters, digits, _ and - (first a letter or digit)", 60),
    AfterValidator(_unknown_task),
]
TaskName = Annotated[str, AfterValidator(_known_task), WithJsonSchema({"type": "string", "enum": list(TASKS)})]
TrackerName = Annotated[str, AfterValidator(_known_tracker), WithJsonSchema({"type": "string", "enum": list(TRACKERS)})]
# Null and 0 both mean "never"; 0 is what is kept, so that equal studies compare equal.
GradNorm = Annotated[
    float,
    Field(strict=True, ge=0, allow_inf_nan=False),
    or_default(0.0),
    WithJsonSchema({"type": ["number", "null"], "minimum": 0}),
]
EvalEvery = Annotated[Literal["epoch"] | int, _word_or_count(Literal["epoch"], "optimizer steps")]
CheckpointEvery = Annotated[Literal["auto"] | int, _word_or_count(Literal["auto"], "optimizer steps")]
MaxPack = Annotated[Literal["auto"] | int, _word_or_count(Literal["auto"], "runs")]
Limit = Annotated[
    int | dict[str, int] | None,
    PlainValidator(_limit, json_schema_input_type=Count | Annotated[dict[str, Count], Field(min_length=1)] | None),
]
_SeedList = Annotated[tuple[Seed, ...], Field(min_length=1)]
Looks = Annotated[tuple[int, ...], BeforeValidator(read_looks)]


class PlannedSeeds(Frozen):
    """Seeds with the numbers of them at which the scores are to be looked at: the schema of what `_seeds` reads."""

    looks: Annotated[
        tuple[Annotated[int, Field(ge=FEWEST_SEEDS, le=MOST_SEEDS)], ...], Field(min_length=2, max_length=MOST_LOOKS)
    ]
    """Numbers of seeds, ascending. `manytune extend DIR --seeds N` goes on to the next one."""
    list: _SeedList | None = None
    """The seeds that there are; by default as many as the first look takes, from 0."""


Seeds = Annotated[
    tuple[Seed, ...],
    Field(min_length=1),
    distinct,
    BeforeValidator(_seeds, json_schema_input_type=_SeedList | PlannedSeeds),
]
Margin = Annotated[
    float | dict[str, float] | None,
    PlainValidator(
        _margin, json_schema_input_type=Positive | Annotated[dict[str, Positive], Field(min_length=1)] | None
    ),
]
_Weights = Annotated[list[Positive], Field(min_length=1)]
ClassWeights = Annotated[
    Literal["none", "balanced"] | tuple[float, ...],
    PlainValidator(_class_weights, json_schema_input_type=Literal["none", "balanced"] | _Weights),
    PlainSerializer(lambda weights: list(weights) if isinstance(weights, tuple) else weights),
]
