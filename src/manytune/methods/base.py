"""What a method is: a frozen configuration that also says what trains, how a run is shown, and what it exports to.

Configurations are read before anything heavy is imported, so no module of this package imports torch when it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import (
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from manytune.methods.adaptation import Adaptation, Hook, Weight
from manytune.utils import problems
from manytune.utils.errors import StudyError, choices
from manytune.utils.fields import Frozen
from manytune.utils.text import short_number

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from manytune.models.spec import HeadSpec, ModelSpec

HeadMode = Literal["full", "bias", "frozen"]
"""Which parameters of the head train: all of them, its biases, or none."""

PackKind = Literal["full", "adapters", "head"]
"""What the runs of a pack share: nothing (full), the frozen backbone with a backward pass through it
(adapters), or the backbone's forward pass alone (head)."""


@dataclass(frozen=True)
class Axis:
    """A numeric hyper-parameter that the report draws scores against, on a logarithmic axis."""

    name: str  # of the field
    title: str  # of the axis
    prefix: str  # what labels write before a value
    base: int  # base of the logarithm
    key: str  # names the part of the report and its files
    kind: str = "count"  # how a value is written, out of `FORMATS` of report/sheets.py


LEARNING_RATE = Axis("learning_rate", "learning rate", "lr ", 10, "rates", "rate")
"""The one that all methods have."""


@dataclass(frozen=True)
class Multiple:
    """A hyper-parameter's value, given as a multiple of another one's: `{of_rank: 2}` in a study file."""

    of: str  # the other hyper-parameter
    factor: float

    @property
    def written(self) -> dict[str, float]:
        """As a study file holds it."""
        return {f"of_{self.of}": self.factor}


class Method(Frozen):
    """One way to fine-tune an encoder, with one value for each hyper-parameter; each method is a subclass of this.

    A subclass declares the field `method`, whose only value is the method's name; `learning_rate` and `head`; and its
    own hyper-parameters with bounds and defaults. Each field has a docstring, and their order is the order of
    documentation, files and expansion: of a study's lists, the last field's changes fastest. The first line of the
    class docstring is what `manytune methods` prints. CONTRIBUTING.md walks through an example.
    """

    title: ClassVar[str]
    """What sentences call it: "LoRA"."""
    short_title: ClassVar[str | None] = None
    """What legends call it, where that is not `title`."""
    paper: ClassVar[str | None] = None
    """Link to where the method comes from."""
    group: ClassVar[str] = "other"
    """What it trains of the backbone, in a few words: `manytune methods` lists methods by it."""
    color: ClassVar[str] = "grey"
    """Its colour in charts, out of `PALETTE` of report/figures.py."""
    reference_dash: ClassVar[Literal["dash", "dot"] | None] = None
    """Where charts draw other methods' scores against a hyper-parameter that this one lacks, its best score is a line
    of this style; None for no line."""
    axis: ClassVar[Axis | None] = None
    """A hyper-parameter of its own to draw scores against; labels always show it, and the learning rate."""
    pack_kind: ClassVar[PackKind] = "adapters"
    """Runs share packs with runs of the same kind, whatever their method."""
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Values of fields that decide how much trains, for which `manytune params` counts by default."""
    exports: ClassVar[tuple[str, ...]] = ()
    """Forms that a run can be exported in, the default first: "peft", "transformers", "onnx"."""

    multiples: ClassVar[Mapping[str, str]] = {"head_learning_rate": "learning_rate"}
    """Fields that may also be given as a multiple of another field, by its name; `{of_rank: 2}` is twice the rank."""

    written_if_set: ClassVar[frozenset[str]] = frozenset()
    """Settings that files and records hold only where they differ from the default: those that a method has been given
    since it first had users, so that studies of before keep their hash, and files stay short."""

    if TYPE_CHECKING:  # each subclass declares these fields in its own order, with its own bounds
        method: str
        learning_rate: float
        head: HeadMode

    @model_validator(mode="wrap")
    @classmethod
    def _in_plain_words(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            made = handler(cls._with_products(data))
        except ValidationError as error:
            found = problems.from_pydantic(error, data, lambda _, key: choices(key, cls.model_fields))
            raise StudyError(problems.message(f"The method {cls.__name__}", found)) from None
        if getattr(made, "head_learning_rate", None) is not None and made.head == "frozen":
            raise StudyError(
                f"methods: {made.method} has a head_learning_rate, but its head is frozen; leave one of them out."
            )
        return made

    @classmethod
    def _with_products(cls, data: Any) -> Any:
        """The data with numbers in the place of multiples of other fields."""
        for name, other in cls.multiples.items() if isinstance(data, Mapping) else ():
            given = data.get(name)
            if isinstance(given, Mapping) and list(given) == [f"of_{other}"]:
                given = Multiple(other, given[f"of_{other}"])
            factors = (given.factor, data.get(other)) if isinstance(given, Multiple) else ()
            if factors and all(type(factor) in (int, float) for factor in factors):
                data = {**data, name: math.prod(factors)}
        return data

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self.without_defaults(handler(self))

    @classmethod
    def without_defaults(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """A method's or an entry's settings as plain data, less those of `written_if_set` that have their defaults."""
        defaults = {name: cls.model_fields[name].default for name in cls.written_if_set}
        return {name: value for name, value in data.items() if name not in defaults or value != defaults[name]}

    # What trains.

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """What the method trains of a backbone and its head; raises a StudyError where it does not fit the backbone."""
        raise NotImplementedError

    def with_head(self, spec: ModelSpec, *, weights: Iterable[Weight] = (), hooks: Iterable[Hook] = ()) -> Adaptation:
        """What trains of the backbone, and of the head by the fields `head` and `head_learning_rate`."""
        trained = self.trained_head(spec.head)
        rate = getattr(self, "head_learning_rate", None)
        return Adaptation(
            tuple(weights), tuple(hooks), trained, 1.0 if rate is None or not trained else rate / self.learning_rate
        )

    def trained_head(self, spec: HeadSpec) -> tuple[str, ...]:
        """Names of the head's tensors that train, by the field `head`."""
        suffixes = {"full": (".weight", ".bias"), "bias": (".bias",), "frozen": ()}[self.head]
        return tuple(name for name in spec.shapes() if name.endswith(suffixes))

    def suits(self, spec: ModelSpec) -> bool:
        """Whether `manytune params` counts for this backbone without being asked for these values."""
        return True

    def notes(self, spec: ModelSpec) -> Iterable[str]:
        """What a user should know before training this backbone: settings that mean something unexpected there."""
        return ()

    @property
    def pack_order(self) -> tuple[Any, ...]:
        """Sorts the runs of a pack: neighbours whose tensors have the same shapes share them, which is faster."""
        shared = {"method", "learning_rate", "head"}
        values = (getattr(self, name) for name in type(self).model_fields if name not in shared)
        return (self.method, *((value is not None, value) for value in values), self.learning_rate, self.head)

    # How a run is shown.

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyper-parameter by name, as JSON can hold it; the method's own name is not among them."""
        return self.model_dump(mode="json", exclude={"method"})

    @property
    def label(self) -> str:
        """The name and what differs from the defaults: "lora r=8, lr 4e-4".

        Two different methods never have the same label.
        """
        before = {axis.name: axis.prefix for axis in self._axes}
        for name, field in type(self).model_fields.items():
            if getattr(self, name) != field.default:
                before.setdefault(name, f"{name} ")
        return f"{self.method} {', '.join(prefix + self._written(name) for name, prefix in before.items())}"

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return (LEARNING_RATE,) if self.axis is None else (self.axis, LEARNING_RATE)

    def _written(self, name: str) -> str:
        value = getattr(self, name)
        if name.endswith("learning_rate") and value is not None:
            return short_number(value)
        if isinstance(value, tuple):
            return "+".join(value)
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)

    @property
    def id_stem(self) -> str:
        """What a run's id tells of its method, in characters that file names can have: "lora-r8-lr4e-4"."""
        return "-".join([self.method, *(axis.prefix.strip(" =") + self._written(axis.name) for axis in self._axes)])

    @property
    def adapter_label(self) -> str:
        """What the report's drawing of the model writes where the method adds parameters: "r=8", or its title."""
        return self.title if self.axis is None else self.axis.prefix + self._written(self.axis.name)

    # What a run is exported to.

    def merge(
        self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor], spec: ModelSpec
    ) -> Mapping[str, Tensor]:
        """The tensors by which transformers' pretrained model becomes the run's: name in that model → tensor.

        `state` has the run's own tensors by name. A method that trains tensors which transformers' model has as well
        gives these back; one that adds tensors computes the weights that do the same from `weights`, the pretrained
        model's parameters by name. A method that adds what no weights can do leaves "transformers" out of `exports`.
        """
        return state

    def peft_state(self, state: Mapping[str, Tensor], spec: ModelSpec) -> Mapping[str, Tensor]:
        """A run's tensors by the names and in the shapes of peft's adapter, but for `base_model.model.` before each."""
        return state

    def peft_shared(self, spec: ModelSpec) -> Mapping[str, NDArray[Any]]:
        """What peft's model holds once for all layers, by its name there but for `base_model.` before it."""
        return {}

    def peft_config(self, peft: Any, spec: ModelSpec, **shared: Any) -> Any:
        """The configuration of the run's adapter, for a method that exports to "peft".

        `peft` is the module, an optional package that methods do not import; `shared` is what the configuration of
        every method holds, such as `task_type`.
        """
        raise NotImplementedError
