"""What a study file says of a search: its budget, how trials are chosen and compared, and how winners are confirmed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from manytune.utils.fields import Count, Fraction, Frozen, Positive, Seed

Sampler = Literal["random", "sobol", "tpe", "grid"]


class Halving(Frozen):
    """Successive halving: at each rung, a trial that is not among the best of its space leaves.

    Trials are compared at equal steps of equal schedules (Li et al. 2020, https://arxiv.org/abs/1810.05934).
    """

    rungs: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1, max_length=8)] = (0.25, 0.5)
    """The shares of a trial's steps after which trials are compared, ascending: at the first evaluation from there on,
    and never before the warm-up and one epoch have ended."""
    factor: Annotated[int, Field(strict=True, ge=2, le=100)] = 2
    """One trial in so many goes on from each rung."""
    unpruned: Fraction = 1 / 3
    """The share of the trials that is never pruned, chosen beforehand: they show how well a rung foretells the end."""
    least_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.5
    """Rank correlation between a rung and the end, over unpruned trials, below which a space prunes no more."""

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if list(rungs) != sorted(set(rungs)):
            raise ValueError("each must be above the one before it, such as [0.25, 0.5]")
        return rungs


def _pruning(value: Any) -> Any:
    if value == "halving":
        return Halving()
    if value != "none" and not isinstance(value, Mapping | Halving):
        raise ValueError("it must be halving, none, or a mapping with settings of halving, such as {rungs: [0.5]}")
    return value


def _pruning_form(value: Any) -> str:
    return "<none>" if value == "none" else "<halving>"


_Pruning = Annotated[
    Annotated[Literal["none"], Tag("<none>")] | Annotated[Halving, Tag("<halving>")], Discriminator(_pruning_form)
]


class Search(Frozen):
    """How the settings that have a range or a choice are searched."""

    trials: Count | None = None
    """Trials of each search space. Either this or `seconds` is given."""
    seconds: Positive | None = None
    """Seconds of training that each search space may take; a trial that has begun comes to its end."""
    sampler: Sampler = "random"
    """How settings are drawn: `random` and `sobol` (independently of scores), `grid`, or `tpe` (from scores so far)."""
    pruning: Annotated[
        _Pruning, BeforeValidator(_pruning, json_schema_input_type=Literal["none", "halving"] | Halving)
    ] = Field(Halving(), json_schema_extra={"default": "halving"})
    """`halving`, `none`, or a mapping with halving's settings."""
    select: Literal["train-split", "dev"] = "train-split"
    """The rows on which trials are compared: a tenth of the training data, held out, or the dev set, which then
    confirms nothing."""
    seed: Seed = 0
    """Fixes all that is drawn: settings, the trials' seeds, and which are never pruned."""

    @property
    def halving(self) -> Halving | None:
        """How trials are pruned; None where they are not."""
        return None if self.pruning == "none" else self.pruning

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.trials is None) == (self.seconds is None):
            raise ValueError(
                "it needs one budget, the same for every method: either trials or seconds, such as trials: 24"
            )
        if self.sampler == "grid" and self.trials is None:
            raise ValueError("a grid is tried as a whole: give trials, as many as it has points, instead of seconds")
        return self


class Confirm(Frozen):
    """How the winner of each search space is judged: trained again, with seeds that no trial had."""

    seeds: Count = 10
    """Seeds of each winner."""
    on: Literal["dev", "test"] = "dev"
    """The rows that judge: the dev set, or the `test` file of a user's own task. They have chosen nothing."""
