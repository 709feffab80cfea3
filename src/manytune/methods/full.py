"""Full fine-tuning: every parameter of the backbone and the head trains."""

from __future__ import annotations

from manytune.config import Full
from manytune.methods.task_head import trained_head
from manytune.models.spec import ModelSpec
from manytune.packing import Adaptation

__all__ = ["adapt"]


def adapt(method: Full, model_spec: ModelSpec) -> Adaptation:
    """What full fine-tuning trains of a backbone."""
    return Adaptation(weights=True, head=trained_head(method.head, model_spec.head))
