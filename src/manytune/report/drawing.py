"""The model as a drawing: what was trained where, from the kept module tree.

One row a part of the model, from the input up to the logits; one column for each way of training. Layers that
look the same, in shapes and in what trains, are drawn once with their number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manytune.report.analysis import Analysis
from manytune.report.series import looks
from manytune.storage.artifacts import Structure, Trained

__all__ = ["Block", "Box", "Drawing", "draw"]

_LAYER = re.compile(r"(.*?)\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Box:
    """How much of a part one method trains."""

    state: str
    """all, biases, adapter or frozen."""
    text: str
    """What trains: "all", "biases", "+ r=8", "frozen"."""
    trainable: tuple[int, ...]
    """Parameters of the part that train, or of its adapter at each rank."""


@dataclass(frozen=True)
class Block:
    """One row of the drawing."""

    group: str
    """embeddings, a stretch of layers, pooler or head: the rows of a group stand together."""
    name: str
    """The module's path inside the group."""
    shapes: str
    """Shapes of its tensors: "384×384 + 384"."""
    parameters: int
    """In one layer."""
    repeated: int
    """How many layers look like this."""
    boxes: tuple[Box, ...]
    """One for each column."""


@dataclass(frozen=True)
class Drawing:
    """The rows and columns, bottom of the model first."""

    columns: tuple[tuple[str, ...], ...]
    """What the configurations of each column are called."""
    colors: tuple[str, ...]
    """Name in the palette of each column."""
    parts: tuple[Block, ...]


def draw(analysis: Analysis) -> Drawing | None:
    """Lay out the drawing; None where the module tree was not kept."""
    tree = analysis.structure
    if tree is None:
        return None
    look = looks(analysis)
    columns: dict[Trained, list[str]] = {}  # ranks apart, what trains is the same: they share a column
    ranks: dict[Trained, list[int]] = {}
    for label, trained in tree.trained.items():
        if label in look:  # of a study that is still going on, only what has runs
            key = trained.model_copy(update={"lora_rank": trained.lora_rank and 1})
            columns.setdefault(key, []).append(label)
            ranks.setdefault(key, []).extend([trained.lora_rank] if trained.lora_rank else [])
    if not columns:
        return None
    ways = [_Way(trained, tuple(dict.fromkeys(ranks[trained]))) for trained in columns]
    parts = [*_backbone(tree, ways), *_head(tree, ways)]
    names = tuple(tuple(look[label].name for label in labels) for labels in columns.values())
    return Drawing(names, tuple(look[labels[0]].color for labels in columns.values()), tuple(parts))


@dataclass(frozen=True)
class _Way:
    """What a column trains, at these ranks of its adapters."""

    trained: Trained
    ranks: tuple[int, ...]


def _backbone(tree: Structure, columns: Sequence[_Way]) -> list[Block]:
    stretches: list[tuple[str, int, int, list[Block]]] = []
    for group, number, modules in _grouped(tree.tensors):
        parts = [
            _part(group, name, f"{group}.{number}.{name}" if number >= 0 else _path(group, name), tensors, columns)
            for name, tensors in modules.items()
        ]
        same = stretches and number >= 0 and stretches[-1][0] == group and stretches[-1][3] == parts
        if same:
            stretches[-1] = (group, stretches[-1][1], number, parts)
        else:
            stretches.append((group, number, number, parts))
    found = []
    for group, first, last, parts in stretches:
        title = group if first < 0 else f"{group}.{first}" if first == last else f"{group}.{first}–{last}"
        found += [Block(title, p.name, p.shapes, p.parameters, last - first + 1, p.boxes) for p in parts]
    return found


def _path(group: str, name: str) -> str:
    return f"{group}.{name}" if name else group


def _grouped(tensors: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int, dict[str, dict[str, tuple[int, ...]]]]]:
    """(group, number of the layer or -1, module → its tensors), in the order of the module tree."""
    found: dict[tuple[str, int], dict[str, dict[str, tuple[int, ...]]]] = {}
    for path, shape in tensors.items():
        module, _, tensor = path.rpartition(".")
        match = _LAYER.fullmatch(path)
        if match:
            key, name = (match[1], int(match[2])), match[3].rpartition(".")[0]
        else:
            group, _, name = module.partition(".")
            key = (group, -1)
        found.setdefault(key, {}).setdefault(name, {})[tensor] = shape
    return [(group, number, modules) for (group, number), modules in found.items()]


def _part(group: str, name: str, path: str, tensors: Mapping[str, tuple[int, ...]], columns: Sequence[_Way]) -> Block:
    boxes = tuple(_box(path, tensors, way) for way in columns)
    return Block(group, name or group, _shapes(tensors), sum(map(math.prod, tensors.values())), 1, boxes)


def _box(path: str, tensors: Mapping[str, tuple[int, ...]], way: _Way) -> Box:
    trained = way.trained
    total = sum(map(math.prod, tensors.values()))
    if trained.weights:
        return Box("all", "all", (total,))
    if path in trained.lora_targets:
        counts = tuple(rank * sum(tensors["weight"]) for rank in way.ranks)
        return Box("adapter", f"frozen + r={', '.join(map(str, way.ranks))}", counts)
    biases = [name for name in tensors if f"{path}.{name}" in trained.biases]
    if biases:
        return Box("biases", "biases", (sum(math.prod(tensors[name]) for name in biases),))
    return Box("frozen", "frozen", (0,))


def _head(tree: Structure, columns: Sequence[_Way]) -> list[Block]:
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in tree.head.items():
        module, _, tensor = path.rpartition(".")
        modules.setdefault(module, {})[tensor] = shape
    found = []
    for module, tensors in modules.items():
        boxes = []
        for way in columns:
            own = [name for name in tensors if f"{module}.{name}" in way.trained.head]
            count = sum(math.prod(tensors[name]) for name in own)
            if len(own) == len(tensors):
                boxes.append(Box("all", "all", (count,)))
            else:
                boxes.append(Box("biases", "bias", (count,)) if own else Box("frozen", "frozen", (0,)))
        total = sum(map(math.prod, tensors.values()))
        found.append(Block("head", module, _shapes(tensors), total, 1, tuple(boxes)))
    return found


def _shapes(tensors: Mapping[str, tuple[int, ...]]) -> str:
    return " + ".join("×".join(map(str, shape)) for shape in tensors.values())
