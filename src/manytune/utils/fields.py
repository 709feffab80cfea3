"""Types that fields of configurations are made of, each with its bounds and the words that say so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, core_schema

from manytune.utils.problems import show


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
class Matching:
    """Text that matches `pattern` as a whole and has at most `most` characters; `words` say so in a message."""

    pattern: str
    words: str
    most: int

    def check(self, value: str) -> str:
        """Return the text, or raise ValueError."""
        if len(value) > self.most or not re.fullmatch(self.pattern, value):
            raise ValueError(f"it must be {self.words}, at most {self.most} characters")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^{self.pattern}$", "maxLength": self.most}


MOST = 10**9
"""Upper bound of everything that is counted; beyond it, arithmetic on floats and arrays would break."""

WholeNumber = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
# Below 2**32, because numpy's and torch's generators both take that much.
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]

ALL_LINEAR = "all-linear"
"""Every linear layer of the backbone, as peft calls them."""


def _alone(names: tuple[str, ...]) -> tuple[str, ...]:
    if ALL_LINEAR in names and len(names) > 1:
        raise ValueError(f"{ALL_LINEAR} holds every layer already, so it must stand alone")
    return names


class _OrAllLinear:
    """In the JSON schema, that the list may also be that one word."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"const": ALL_LINEAR, "type": "string"}, handler(schema)]}


_LayerName = Annotated[
    str,
    Matching(
        rf"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*|{ALL_LINEAR}", f"the name of a layer, such as query, or {ALL_LINEAR}", 200
    ),
]
# Sorted, because the order means nothing: two orders are the same run.
LayerNames = Annotated[
    tuple[_LayerName, ...],
    Field(min_length=1),
    BeforeValidator(lambda names: (names,) if names == ALL_LINEAR else names),
    distinct,
    AfterValidator(_alone),
    AfterValidator(lambda names: tuple(sorted(names))),
    _OrAllLinear(),
]

_TOP = re.compile(r"top ([1-9][0-9]{0,3})")
Layers = Annotated[str, Matching(rf"all|{_TOP.pattern}", "all, or the number of the last layers, such as top 4", 8)]
"""Which of the encoder's layers: all of them, or the last ones."""


def lowest_layer(layers: str, depth: int) -> int:
    """The number of the lowest layer that `Layers` means, from 0, of an encoder with `depth` layers.

    Raises ValueError where there are fewer.
    """
    top = _TOP.fullmatch(layers)
    count = int(top[1]) if top else depth
    if count > depth:
        raise ValueError(f"the encoder has {depth} layers, so `{layers}` is not possible; use all, or fewer")
    return depth - count
