"""Head only: the backbone stays as it is."""

from __future__ import annotations

from manytune.config import Head
from manytune.methods.task_head import trained_head
from manytune.models.spec import ModelSpec
from manytune.packing import Adaptation

__all__ = ["adapt"]


def adapt(method: Head, model_spec: ModelSpec) -> Adaptation:
    """What head-only training trains."""
    return Adaptation(head=trained_head(method.head, model_spec.head))
