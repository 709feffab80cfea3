"""Head only: the backbone stays as it is."""

from __future__ import annotations

from manytune.anatomy import Anatomy
from manytune.config import Head
from manytune.methods._head import trained_head
from manytune.packing import Adaptation

__all__ = ["adapt"]


def adapt(method: Head, anatomy: Anatomy) -> Adaptation:
    """What head-only training trains."""
    return Adaptation(head=trained_head(method.head, anatomy.head))
