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
from manytune.utils.fields import MOST, Count, Matching, Positive, or_default

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
_Weights = Annotated[list[Positive], Field(min_length=1)]
ClassWeights = Annotated[
    Literal["none", "balanced"] | tuple[float, ...],
    PlainValidator(_class_weights, json_schema_input_type=Literal["none", "balanced"] | _Weights),
    PlainSerializer(lambda weights: list(weights) if isinstance(weights, tuple) else weights),
]
