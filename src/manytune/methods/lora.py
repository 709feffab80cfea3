"""LoRA: low-rank updates of chosen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

from manytune.anatomy import Anatomy
from manytune.config import Lora
from manytune.errors import StudyError
from manytune.methods._head import trained_head
from manytune.packing import Adaptation, LoraAdapter

__all__ = ["adapt"]


def adapt(method: Lora, anatomy: Anatomy) -> Adaptation:
    """What LoRA trains of a backbone.

    A target matches every linear layer whose path is the target or ends in "." and the target, as in peft. The words
    query, key and value, where no layer is called so, mean what the backbone's family calls these layers.

    Raises:
        StudyError: A target matches no linear layer, or the rank exceeds a target's width.
    """
    targets = {target: _own_name(target, anatomy) for target in method.targets}
    paths = tuple(path for path in anatomy.linears if any(_matches(path, own) for own in targets.values()))
    for target, own in targets.items():
        if not any(_matches(path, own) for path in paths):
            names = sorted({path.rpartition(".")[2] for path in anatomy.linears})
            raise StudyError(
                f"methods: lora's target {target!r} matches no linear layer of the backbone; "
                f"its linear layers are called: {', '.join(names)}."
            )
    for path in paths:
        width = min(anatomy.linears[path])
        if method.rank > width:
            raise StudyError(
                f"methods: lora's rank {method.rank} exceeds the width of {path}, {width}; "
                f"a rank from 1 to {width} can be used."
            )
    return Adaptation(
        lora=LoraAdapter(method.rank, method.alpha, method.dropout, paths),
        head=trained_head(method.head, anatomy.head),
    )


def _own_name(target: str, anatomy: Anatomy) -> str:
    if any(_matches(path, target) for path in anatomy.linears):
        return target
    return anatomy.targets.get(target, target)


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith("." + target)
