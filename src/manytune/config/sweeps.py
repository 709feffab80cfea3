"""The entries under `methods` in a study: a method, and what each of its hyper-parameters may be.

Their classes are derived from the methods' own, so a hyper-parameter is declared, bounded and described once. They are
made when an entry names the method, so a method that is registered later can be used too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self, get_type_hints

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from manytune.config.axes import axis
from manytune.config.training_settings import STUDY_WIDE, TWO_FORMS, Training
from manytune.methods import METHODS, Method
from manytune.utils.errors import choices
from manytune.utils.fields import Frozen

Items = tuple[Any, ...] | Mapping[str, tuple[Any, ...]]
"""What one setting of an entry may be, for every task or by task: values, Ranges, Choices."""


class TrainingSweep(Frozen):
    """Training settings of an entry's own, in the place of the study's; the class with all of them is derived."""

    @property
    def axes(self) -> dict[str, Items]:
        """The settings that are given, in the order of `Training`."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    @pydantic.model_validator(mode="after")
    def _one_form(self) -> Self:
        for one, other in TWO_FORMS.items():
            if all(name in self.axes and self.axes[name] != (None,) for name in (one, other)):
                raise ValueError(f"{one} contradicts {other}: give one of the two, and leave the other out")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _given(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}

    def __reduce__(self) -> Any:
        return _training_sweep, (self.model_dump(),)


class Sweep(Frozen):
    """One entry under `methods`: a method, and what each of its hyper-parameters may be."""

    method: str
    """The method's name."""

    if TYPE_CHECKING:  # the last field of each derived class
        training: TrainingSweep | None

    @property
    def axes(self) -> dict[str, Items]:
        """What each setting may be, the last changing fastest; those of the training are called `training.epochs`."""
        own = {} if self.training is None else self.training.axes
        axes = {name: axis for name, axis in self if name not in ("method", "training")}
        return axes | {f"training.{name}": axis for name, axis in own.items()}

    def combinations(self, task: str) -> Iterator[dict[str, Any]]:
        """Each combination of what lists hold for `task`: setting → a value, or the Range or Choice to draw it from."""
        names = [*self.axes]
        for items in itertools.product(*(self.values(name, task) for name in names)):
            yield dict(zip(names, items, strict=True))

    def count(self, task: str) -> int:
        """The number of combinations for `task`."""
        return math.prod(len(self.values(name, task)) for name in self.axes)

    def values(self, name: str, task: str) -> tuple[Any, ...]:
        """What one setting may be for `task`."""
        axis = self.axes[name]
        return tuple(axis[task] if isinstance(axis, Mapping) else axis)

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without training settings where there are none: a study of before keeps its hash."""
        data: dict[str, Any] = handler(self)
        written = {key: value for key, value in data.items() if key != "training" or value is not None}
        return METHODS[self.method].without_defaults(written)

    def __reduce__(self) -> Any:
        # Pickled as what a study file holds, because no module has the class of an entry as a name.
        return _sweep, (self.model_dump(),)


@functools.cache
def _training_sweep_class() -> type[TrainingSweep]:
    """The class of an entry's training settings: those of `Training` that runs of a pack need not share."""
    hints = get_type_hints(Training, include_extras=True)
    fields: dict[str, Any] = {
        name: (axis(hints[name]), Field(None, description=info.description))
        for name, info in Training.model_fields.items()
        if name not in STUDY_WIDE
    }
    return pydantic.create_model(
        "OwnTraining", __base__=TrainingSweep, __doc__=TrainingSweep.__doc__, __module__=__name__, **fields
    )


def _training_sweep(settings: Any) -> TrainingSweep:
    return _training_sweep_class().model_validate(settings)


@functools.cache
def _sweep_of(method: type[Method]) -> type[Sweep]:
    """The sweep's class: the method's fields, each of them an axis; its name and description stay."""
    hints = get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {}
    for name, info in method.model_fields.items():
        kind, options = hints[name], dict[str, Any](description=info.description)
        if name != "method":
            kind = axis(kind, method.multiples.get(name))
            if not info.is_required():
                options |= {"default": (info.default,), "json_schema_extra": {"default": info.default}}
        fields[name] = (kind, Field(**options))
    about = "Training settings of this method's own, in the place of the study's."
    fields["training"] = (
        Annotated[_training_sweep_class() | None, AfterValidator(lambda own: own if own and own.axes else None)],
        Field(None, description=about),
    )
    title = f"{method.__name__}Sweep"
    return pydantic.create_model(title, __base__=Sweep, __doc__=method.__doc__, __module__=__name__, **fields)


def _sweep(entry: Any) -> Sweep:
    """An entry that names a method; a concrete method stands for the sweep that holds just this one."""
    if isinstance(entry, Sweep):
        return entry
    if isinstance(entry, Method):
        entry = entry.model_dump()
    if not isinstance(entry, Mapping) or not isinstance(entry.get("method"), str):
        raise ValueError(
            f"it must be a mapping with a key method, one of: {', '.join(METHODS)}; "
            "such as {method: full, learning_rate: 2e-5}"
        )
    name = entry["method"]
    if name not in METHODS:
        raise PydanticCustomError("unknown_method", "{choices}", {"choices": choices(name, METHODS)})
    # pydantic puts this entry's path in the study before the paths of the errors that are raised here.
    return _sweep_of(METHODS[name]).model_validate(entry)


class _EveryMethod:
    """The JSON schema of an entry: of any method that is registered when it is asked for."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: pydantic.GetJsonSchemaHandler) -> Any:
        sweeps = [_sweep_of(kind).__pydantic_core_schema__ for kind in METHODS.values()]
        return handler(core_schema.union_schema(list(sweeps)))


if TYPE_CHECKING:
    AnySweep = Sweep
else:
    AnySweep = Annotated[pydantic.SerializeAsAny[Sweep], BeforeValidator(_sweep), _EveryMethod()]
