"""BitFit: the backbone's biases train (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)."""

from __future__ import annotations

from manytune.anatomy import Anatomy
from manytune.config import BitFit
from manytune.errors import StudyError
from manytune.methods._head import trained_head
from manytune.packing import Adaptation

__all__ = ["adapt"]


def adapt(method: BitFit, anatomy: Anatomy) -> Adaptation:
    """What BitFit trains of a backbone.

    Raises:
        StudyError: The backbone has no biases.
    """
    if not anatomy.biases:
        raise StudyError(
            "methods: bitfit trains the backbone's biases, and this backbone has none. "
            "Use lora or head, or a backbone with biases (RoBERTa and BERT have them)."
        )
    return Adaptation(biases=anatomy.biases, head=trained_head(method.head, anatomy.head))
