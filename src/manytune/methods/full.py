"""Full fine-tuning: every parameter of the backbone and the head trains."""

from __future__ import annotations

from manytune.anatomy import Anatomy
from manytune.config import Full
from manytune.methods._head import trained_head
from manytune.packing import Adaptation

__all__ = ["adapt"]


def adapt(method: Full, anatomy: Anatomy) -> Adaptation:
    """What full fine-tuning trains of a backbone."""
    return Adaptation(weights=True, head=trained_head(method.head, anatomy.head))
