"""Training: how a run trains. A study has these settings for all its runs; an entry under `methods` may change some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from manytune.config import values
from manytune.utils.fields import MOST, Count, Fraction, Frozen, NotNegative, Positive, WholeNumber
from manytune.utils.problems import show

MEANS: set[str] = {"checkpoint_every", "max_pack"}
"""Training settings on which no result depends, so they may change between two starts of a study."""

STUDY_WIDE = MEANS | {"precision", "max_length"}
"""Training settings that are the same for all runs of a study: runs of one pack share them."""

TWO_FORMS: Mapping[str, str] = {"max_steps": "epochs", "warmup_ratio": "warmup_steps"}
"""Training settings → the other form of the same thing; one of the two is given."""

DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP = 0


class Training(Frozen):
    """How every run of a study trains. A step is one update by the optimizer."""

    batch_size: Count = 16
    """Training samples of one run in one batch."""
    epochs: Annotated[Positive, Field(le=1e6)] | None = Field(
        default=None, json_schema_extra={"default": DEFAULT_EPOCHS}
    )
    """Passes over the training data, fractions included; 3 unless `max_steps` is given."""
    max_steps: Count | None = None
    """Length of the training in optimizer steps, instead of `epochs`."""
    max_length: Annotated[int, Field(strict=True, ge=4, le=MOST)] = 512
    """Longest input in tokens, special tokens included; what is longer is cut, counted and reported."""
    warmup_steps: WholeNumber | None = Field(default=None, json_schema_extra={"default": DEFAULT_WARMUP})
    """Optimizer steps in which the learning rate rises from 0 to its peak; instead of `warmup_ratio`."""
    warmup_ratio: Fraction | None = None
    """Length of the warm-up as a share of all optimizer steps, below 1; instead of `warmup_steps`."""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """The learning rate after the warm-up: falls to 0 in a line, stays, or falls to 0 along a cosine."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay; biases and norms are left out, as in transformers.Trainer."""
    adam_beta1: Fraction = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: Fraction = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: Positive = 1e-8
    """What AdamW adds to its denominator."""
    max_grad_norm: values.GradNorm = 1.0
    """A run's gradient is scaled down to this norm where it is larger; 0 or null: never."""
    accumulate: Count = 1
    """Batches whose gradients make one optimizer step."""
    eval_every: values.EvalEvery = "epoch"
    """When to evaluate: every epoch, or every so many optimizer steps; the last step is always evaluated."""
    early_stopping: Count | None = None
    """Evaluations in a row without improvement after which a run ends; null: never."""
    class_weights: values.ClassWeights = "none"
    """Weights of the classes in a classification's loss: none, balanced (inverse to their frequency in the
    training data), or a list with one number a class."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the backbone's computations; auto is bf16 where the hardware is fast at it."""
    checkpoint_every: values.CheckpointEvery = "auto"
    """When to write what a pack that is killed goes on from: every so many optimizer steps, or, auto, every five
    minutes; and always after an evaluation and before a run ends. It changes no result."""
    max_pack: values.MaxPack = "auto"
    """Most runs that train together over one copy of the backbone: changes speed and memory, not results. Auto is as
    many as make it faster and fit into memory."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Fill in the length of the training and of the warm-up where none is given in either form."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for one, other, default in (
            ("epochs", "max_steps", DEFAULT_EPOCHS),
            ("warmup_steps", "warmup_ratio", DEFAULT_WARMUP),
        ):
            if filled.get(one) is None and filled.get(other) is None:
                filled[one] = default
        return filled

    @pydantic.field_validator("max_steps", "warmup_ratio")
    @classmethod
    def _one_form(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        other = TWO_FORMS[str(info.field_name)]
        if value is not None and info.data.get(other) is not None:
            raise ValueError(contradicts(other, info.data[other]))
        return value

    def with_settings(self, own: Mapping[str, Any]) -> Self:
        """These settings with others in the place of some; raises a ValidationError where they contradict each other.

        The length of the training, and of the warm-up, has two forms: where `own` has one, it replaces both.
        """
        settings = self.model_dump()
        for pair in TWO_FORMS.items():
            if any(own.get(name) is not None for name in pair):
                settings |= dict.fromkeys(pair)
        return self.model_validate({**settings, **own})


def contradicts(other: str, value: Any) -> str:
    """That a setting's `other` form is given as well, and is `value`."""
    return (
        f"it contradicts {other}, which is {show(value)}: give one of the two, "
        "and leave the other out or set it to null"
    )
