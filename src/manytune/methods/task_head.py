"""Which of a head's tensors train: the part that all methods share."""

from __future__ import annotations

from typing import Literal

from manytune.models.spec import HeadSpec

__all__ = ["trained_head"]


def trained_head(mode: Literal["full", "bias", "frozen"], spec: HeadSpec) -> tuple[str, ...]:
    """Names of the head tensors that train: all, the biases, or none."""
    suffixes = {"full": (".weight", ".bias"), "bias": (".bias",), "frozen": ()}[mode]
    return tuple(name for name in spec.shapes() if name.endswith(suffixes))
