"""BitFit: the backbone's biases train (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)."""

from __future__ import annotations

from manytune.config import BitFit
from manytune.methods.task_head import trained_head
from manytune.models.spec import ModelSpec
from manytune.packing import Adaptation
from manytune.utils.errors import StudyError

__all__ = ["adapt"]


def adapt(method: BitFit, model_spec: ModelSpec) -> Adaptation:
    """What BitFit trains of a backbone.

    Raises:
        StudyError: The backbone has no biases.
    """
    if not model_spec.biases:
        raise StudyError(
            "methods: bitfit trains the backbone's biases, and this backbone has none. "
            "Use lora or head, or a backbone with biases (RoBERTa and BERT have them)."
        )
    return Adaptation(biases=model_spec.biases, head=trained_head(method.head, model_spec.head))
