"""Which parts of a backbone the settings `targets` and `layers` mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from manytune.utils.errors import StudyError
from manytune.utils.fields import ALL_LINEAR, lowest_layer

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec


def targeted_layers(spec: ModelSpec, targets: Iterable[str], layers: str, method: str) -> tuple[str, ...]:
    """Paths of the linear layers that targets name in the encoder's layers that `layers` means.

    In the backbone's order; raises what `linear_layers` and `of_last_layers` raise.
    """
    return of_last_layers(linear_layers(spec, targets, method), layers, spec, method)


def notes_on_targets(spec: ModelSpec, targets: Iterable[str], method: str) -> Iterator[str]:
    """That targets which are one layer in this backbone are adapted together."""
    if spec.fused is not None and set(targets) & spec.targets.keys():
        yield (
            f"query, key and value are one layer, {spec.fused}; where {method}'s targets name one of them, "
            "all of that layer is adapted."
        )


def linear_layers(spec: ModelSpec, targets: Iterable[str], method: str) -> tuple[str, ...]:
    """Paths of the linear layers that targets name, in the backbone's order.

    A target matches every linear layer whose path is the target or ends in "." and the target, as in peft. The words
    query, key and value, where no layer is called so, mean what the backbone's family calls these layers; all-linear
    means all. Raises a StudyError where a target matches none.
    """
    found: set[str] = set()
    for target in targets:
        named = (
            {path for path in spec.linears if f".{path}".endswith(f".{name}")}
            for name in (target, spec.targets.get(target, target))
        )
        matches = set(spec.linears) if target == ALL_LINEAR else next(filter(None, named), None)
        if matches is None:
            names = sorted({path.rpartition(".")[2] for path in spec.linears})
            raise StudyError(
                f"methods: {method}'s target {target!r} matches no linear layer of the backbone; "
                f"its linear layers are called: {', '.join(names)}."
            )
        found |= matches
    return tuple(path for path in spec.linears if path in found)


def of_last_layers(paths: Iterable[str], layers: str, spec: ModelSpec, method: str) -> tuple[str, ...]:
    """Those of the paths that are in the encoder's layers which `layers` means; with `all`, every path.

    Raises a StudyError where the encoder has fewer layers, or no such layers, or none of the paths is in them.
    """
    if layers == "all":
        return tuple(paths)
    lowest = lowest_of(layers, spec, method)
    found = tuple(path for path in paths if (layer := spec.layer_of(path)) is not None and layer >= lowest)
    if not found:
        raise StudyError(
            f"methods: {method}'s targets are in none of the layers `{layers}`. What stands before or behind the "
            "encoder's layers, such as a pooler, goes with `layers: all`; else use more layers, or other targets."
        )
    return found


def lowest_of(layers: str, spec: ModelSpec, method: str) -> int:
    """The number of the lowest layer that `layers` means; raises a StudyError where the backbone has no such layers."""
    if spec.passes > 1:
        raise StudyError(f"methods: {method}'s layers: this backbone's layers are one and the same, so use all.")
    try:
        return lowest_layer(layers, spec.depth)
    except ValueError as error:
        raise StudyError(f"methods: {method}'s layers: {error}.") from None
