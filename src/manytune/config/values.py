"""The types that the fields of a study are made of, each with its bounds and the words for them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from manytune.config.problems import show
from manytune.data.tasks import TASKS, no_task
from manytune.utils.errors import choices

__all__ = [
    "TRACKERS",
    "ClassWeights",
    "Count",
    "EvalEvery",
    "Fraction",
    "Frozen",
    "GradNorm",
    "NotNegative",
    "OwnName",
    "PathOrName",
    "Positive",
    "Seed",
    "StudyName",
    "Targets",
    "TaskName",
    "TrackerName",
    "WholeNumber",
    "distinct",
    "or_default",
    "refused",
]


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


class Frozen(BaseModel):
    """Data that does not change and has no other keys than its fields; a field's docstring describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"it must not hold {show(value)} twice")
        seen.add(value)
    return values


distinct = AfterValidator(_distinct)
"""A list that holds no value twice."""


def or_default(default: Any) -> BeforeValidator:
    """Take an empty value (null) for `default`."""
    return BeforeValidator(lambda value: default if value is None else value)


def refused(reasons: Mapping[str, str]) -> BeforeValidator:
    """Give the reason for refusing a word that other methods allow."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in reasons:
            raise ValueError(reasons[value])
        return value

    return BeforeValidator(check)


@dataclass(frozen=True)
class _Text:
    """Text that matches `pattern` as a whole; `words` say so in a message."""

    pattern: str
    words: str
    most: int

    def check(self, value: str) -> str:
        if len(value) > self.most or not re.fullmatch(self.pattern, value):
            raise ValueError(f"it must be {self.words}, at most {self.most} characters")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^{self.pattern}$", "maxLength": self.most}


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


def _home_expanded(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, (str, os.PathLike)) else value


def _word_or_count(word: str, counted: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value == word or (type(value) is int and 1 <= value <= MOST):
            return value
        raise ValueError(f"it must be {word}, or a number of {counted}, at least 1 and at most {MOST}")

    return check


def _class_weights(value: Any) -> Any:
    if isinstance(value, str) and value in ("none", "balanced"):
        return value
    if isinstance(value, (list, tuple)) and value:
        weights = tuple(float(v) for v in value if type(v) in (int, float) and 0 < v <= sys.float_info.max)
        if len(weights) == len(value):
            return weights
    raise ValueError("it must be none, balanced, or a list with a number above 0 for each class")


MOST = 10**9
"""No study has more of anything that is counted; beyond it, arithmetic on floats and arrays would break."""

WholeNumber = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
# Below 2**32, because that much suits numpy's and torch's generators alike.
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]

StudyName = Annotated[
    str, _Text(r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits and . _ - (first a letter or digit)", 100)
]
PathOrName = Annotated[str, Field(min_length=1), BeforeValidator(_home_expanded)]
OwnName = Annotated[
    str,
    _Text(r"[A-Za-z0-9][A-Za-z0-9_-]*", "letters, digits, _ and - (first a letter or digit)", 60),
    AfterValidator(_unknown_task),
]
TaskName = Annotated[str, AfterValidator(_known_task), WithJsonSchema({"type": "string", "enum": list(TASKS)})]
TrackerName = Annotated[str, AfterValidator(_known_tracker), WithJsonSchema({"type": "string", "enum": list(TRACKERS)})]
_LayerName = Annotated[str, _Text(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", "the name of a layer, such as query", 200)]
# Sorted, because the order means nothing: two orders are the same run.
Targets = Annotated[
    tuple[_LayerName, ...], Field(min_length=1), distinct, AfterValidator(lambda names: tuple(sorted(names)))
]

# Null and 0 both mean "never"; 0 is what is kept, so that equal studies compare equal.
GradNorm = Annotated[
    float,
    Field(strict=True, ge=0, allow_inf_nan=False),
    or_default(0.0),
    WithJsonSchema({"type": ["number", "null"], "minimum": 0}),
]
EvalEvery = Annotated[
    Literal["epoch"] | int,
    PlainValidator(_word_or_count("epoch", "optimizer steps"), json_schema_input_type=Literal["epoch"] | Count),
]
CheckpointEvery = Annotated[
    Literal["auto"] | int,
    PlainValidator(_word_or_count("auto", "optimizer steps"), json_schema_input_type=Literal["auto"] | Count),
]
MaxPack = Annotated[
    Literal["auto"] | int,
    PlainValidator(_word_or_count("auto", "runs"), json_schema_input_type=Literal["auto"] | Count),
]
_Weights = Annotated[list[Positive], Field(min_length=1)]
ClassWeights = Annotated[
    Literal["none", "balanced"] | tuple[float, ...],
    PlainValidator(_class_weights, json_schema_input_type=Literal["none", "balanced"] | _Weights),
    PlainSerializer(lambda weights: list(weights) if isinstance(weights, tuple) else weights),
]
