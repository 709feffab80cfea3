"""LoRA: low-rank updates of chosen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

from manytune.config import Lora
from manytune.methods.task_head import trained_head
from manytune.models.spec import ModelSpec
from manytune.packing import Adaptation, LoraAdapter
from manytune.utils.errors import StudyError

__all__ = ["adapt"]


def adapt(method: Lora, model_spec: ModelSpec) -> Adaptation:
    """What LoRA trains of a backbone.

    A target matches every linear layer whose path is the target or ends in "." and the target, as in peft. The words
    query, key and value, where no layer is called so, mean what the backbone's family calls these layers.

    Raises:
        StudyError: A target matches no linear layer, or the rank exceeds a target's width.
    """
    targets = {target: _own_name(target, model_spec) for target in method.targets}
    paths = tuple(path for path in model_spec.linears if any(_matches(path, own) for own in targets.values()))
    for target, own in targets.items():
        if not any(_matches(path, own) for path in paths):
            names = sorted({path.rpartition(".")[2] for path in model_spec.linears})
            raise StudyError(
                f"methods: lora's target {target!r} matches no linear layer of the backbone; "
                f"its linear layers are called: {', '.join(names)}."
            )
    for path in paths:
        width = min(model_spec.linears[path])
        if method.rank > width:
            raise StudyError(
                f"methods: lora's rank {method.rank} exceeds the width of {path}, {width}; "
                f"a rank from 1 to {width} can be used."
            )
    return Adaptation(
        lora=LoraAdapter(method.rank, method.alpha, method.dropout, paths),
        head=trained_head(method.head, model_spec.head),
    )


def _own_name(target: str, model_spec: ModelSpec) -> str:
    if any(_matches(path, target) for path in model_spec.linears):
        return target
    return model_spec.targets.get(target, target)


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith("." + target)
