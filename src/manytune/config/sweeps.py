"""The entries under `methods` in a study: a method, with one or several values for each hyper-parameter.

Their classes are derived from the methods' own, so a hyper-parameter is declared, bounded and described once. They are
made when an entry names the method, so a method that is registered later can be used too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import pydantic
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from manytune.methods import METHODS, Method
from manytune.utils.errors import choices
from manytune.utils.fields import Frozen, distinct


def _axis(kind: Any) -> Any:
    """The type of a hyper-parameter in a study: a `kind`, a list of them, or either of these by task.

    Stored as a tuple of values, or a mapping from task to one; written back as the user would write it.
    """
    is_list = get_origin(get_args(kind)[0] if get_origin(kind) is Annotated else kind) is tuple

    def count(value: Any) -> str:
        several = isinstance(value, (list, tuple))
        if several and is_list:  # a list of names is one value, a list of lists is several
            several = any(isinstance(item, (list, tuple)) for item in value)
        return "<several>" if several else "<one>"

    def shape(value: Any) -> str:
        return "<by task>" if isinstance(value, Mapping) else count(value)

    one = Annotated[kind, AfterValidator(lambda value: (value,)), Tag("<one>")]
    several = Annotated[tuple[kind, ...], Field(min_length=1), distinct, Tag("<several>")]
    either = Annotated[one | several, Discriminator(count)]
    # Any text: that it is a task, and one of the study, is the study's to say.
    by_task = Annotated[dict[str, either], Field(min_length=1), Tag("<by task>")]
    return Annotated[one | several | by_task, Discriminator(shape), pydantic.PlainSerializer(_as_written)]


def _as_written(axis: Any) -> Any:
    if isinstance(axis, Mapping):
        return {task: _as_written(values) for task, values in axis.items()}
    return axis[0] if len(axis) == 1 else list(axis)


class Sweep(Frozen):
    """One entry under `methods`: a method, and one or several values for each of its hyper-parameters."""

    method: str
    """The method's name."""

    def expand(self, task: str) -> Iterator[Method]:
        """Yield the concrete methods for `task`: all combinations, the last field changing fastest."""
        kind = METHODS[self.method]
        names = [name for name in kind.model_fields if name != "method"]
        for values in itertools.product(*(self.values(name, task) for name in names)):
            yield kind(**dict(zip(names, values, strict=True)))

    def count(self, task: str) -> int:
        """The number of concrete methods for `task`."""
        return math.prod(len(self.values(name, task)) for name in type(self).model_fields if name != "method")

    def values(self, name: str, task: str) -> tuple[Any, ...]:
        """The values of one hyper-parameter for `task`."""
        axis = getattr(self, name)
        return tuple(axis[task] if isinstance(axis, Mapping) else axis)

    def __reduce__(self) -> Any:
        # Pickled as what a study file holds, because no module has the class of an entry as a name.
        return _sweep, (self.model_dump(),)


@functools.cache
def _sweep_of(method: type[Method]) -> type[Sweep]:
    """The sweep's class: the method's fields, each of them an axis; its name and description stay."""
    hints = get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {}
    for name, info in method.model_fields.items():
        kind, options = hints[name], dict[str, Any](description=info.description)
        if name != "method":
            kind = _axis(kind)
            if not info.is_required():
                options |= {"default": (info.default,), "json_schema_extra": {"default": info.default}}
        fields[name] = (kind, Field(**options))
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
