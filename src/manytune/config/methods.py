"""The concrete methods: which parameters train, with one value for each hyper-parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from manytune.config import problems
from manytune.config.values import Count, Fraction, Frozen, Positive, Targets, refused
from manytune.utils.errors import StudyError, choices

__all__ = ["METHODS", "BaseMethod", "BitFit", "Full", "Head", "Lora", "Method", "choose_methods", "make_method"]


class BaseMethod(Frozen):
    """What the methods share; not a method itself."""

    paper: ClassVar[str | None] = None
    """Where the method comes from."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_plain_words(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            found = problems.from_pydantic(error, data, lambda _, key: choices(key, cls.model_fields))
            raise StudyError(problems.message(f"The method {cls.__name__}", found)) from None

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyper-parameter by name, as JSON can hold it; the method's own name is not among them."""
        return self.model_dump(mode="json", exclude={"method"})


class Full(BaseMethod):
    """Train every parameter, the backbone and the head."""

    paper: ClassVar[str | None] = "https://arxiv.org/abs/1810.04805"

    method: Literal["full"] = "full"
    """Train every parameter of the backbone and the head."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    head: Annotated[
        Literal["full"],
        refused(dict.fromkeys(("bias", "frozen"), "it must be full, since this method trains all of the head")),
    ] = "full"
    """Which parameters of the head train: all of them."""


class BitFit(BaseMethod):
    """Train the biases of the backbone and nothing else in it (Ben Zaken et al. 2022)."""

    paper: ClassVar[str | None] = "https://arxiv.org/abs/2106.10199"

    method: Literal["bitfit"] = "bitfit"
    """Train the backbone's biases only."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten to fifty times those of full fine-tuning."""
    head: Literal["full", "bias", "frozen"] = "full"
    """Which parameters of the head train: all of them, its biases, or none."""


class Lora(BaseMethod):
    """Train a low-rank update of chosen linear layers (Hu et al. 2021).

    y = xW + b + (alpha/rank) · drop(x) · A · B, with A and B of width `rank`.
    """

    paper: ClassVar[str | None] = "https://arxiv.org/abs/2106.09685"

    method: Literal["lora"] = "lora"
    """Train a low-rank update beside chosen linear layers of the frozen backbone."""
    rank: Count
    """Columns of A and rows of B: the rank of the update."""
    alpha: Positive = 8.0
    """The update is scaled by alpha/rank."""
    dropout: Fraction = 0.0
    """Probability with which an element of the update's input is zeroed in training; at least 0, below 1."""
    targets: Targets = ("query", "value")
    """Names of the linear layers that get an update, or the last parts of their names; a list of lists
    compares several sets."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some ten times those of full fine-tuning."""
    head: Literal["full", "bias", "frozen"] = "full"
    """Which parameters of the head train: all of them, its biases, or none."""


class Head(BaseMethod):
    """Train the head on top of the frozen backbone."""

    method: Literal["head"] = "head"
    """Train the head only; the backbone stays as it is."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    head: Annotated[
        Literal["full", "bias"],
        refused({"frozen": "it must be full or bias, since with a frozen head nothing would train"}),
    ] = "full"
    """Which parameters of the head train: all of them, or its biases."""


Method: TypeAlias = Annotated[Full | BitFit | Lora | Head, Field(discriminator="method")]
"""One concrete method; `method` says which."""

METHODS: Mapping[str, type[Full] | type[BitFit] | type[Lora] | type[Head]] = {
    "full": Full,
    "bitfit": BitFit,
    "lora": Lora,
    "head": Head,
}
"""The methods by the name that a study uses."""


def make_method(name: str, **hyperparameters: Any) -> Method:
    """Build one concrete method by name.

    Raises:
        StudyError: there is no such method, or it cannot have these hyper-parameters.
    """
    if name not in METHODS:
        raise StudyError(f"There is no such method: {choices(name, METHODS)}")
    return METHODS[name](**hyperparameters)


_RANKS = (2, 8, 64, 256)
_HEADS = ("full", "bias", "frozen")
_HEADS_OF = {"full": ("full",), "head": ("full", "bias")}


def choose_methods(names: Sequence[str], ranks: Sequence[int], heads: Sequence[str]) -> list[Method]:
    """One method for every name, LoRA rank and part of the head that go together; an empty choice stands for all.

    The learning rate is 1: what is chosen here is for counting parameters.

    Raises:
        StudyError: A name or a part of the head is not known, a rank cannot be, or nothing goes together.
    """
    for option, chosen, allowed in (("--method", names, tuple(METHODS)), ("--head", heads, _HEADS)):
        for name in chosen:
            if name not in allowed:
                raise StudyError(f"{option}: {choices(name, allowed)}")
    if ranks and names and "lora" not in names:
        raise StudyError(f"--rank: only lora has a rank, not {', '.join(names)}. Leave it out, or add --method lora.")
    found = [
        make_method(name, learning_rate=1.0, head=head, **rank)
        for name in names or METHODS
        for rank in ([{"rank": rank} for rank in ranks or _RANKS] if name == "lora" else [{}])
        for head in heads or _HEADS
        if head in _HEADS_OF.get(name, _HEADS)
    ]
    if not found:
        raise StudyError(
            f"--head: {', '.join(heads)} does not go with {', '.join(names)}: full trains the whole head, "
            "and head the whole of it or its biases."
        )
    return found
