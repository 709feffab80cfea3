"""The model as a drawing: which tensors each configuration trained, from the kept module tree.

There is a row for each module, and a column for each set of tensors that some configurations train. Layers that have
the same shapes and train the same are drawn once with their number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from manytune.report.analysis import Analysis
from manytune.report.series import looks
from manytune.storage.artifacts import Structure, Trained

_LAYER = re.compile(r"(.*?)\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Box:
    """How much of a module one column trains."""

    state: str  # all, biases, adapter or frozen
    text: str  # what trains: "all", "biases", "+ r=8", "frozen"
    trainable: tuple[int, ...]  # parameters of the module that train, or of its adapter in each size


@dataclass(frozen=True)
class ModuleRow:
    """One module, or the same module of several layers."""

    group: str
    """embeddings, the layers ("encoder.layer.0–5"), pooler or head: the rows of a group stand together."""
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
    """The rows and columns, from the input to the logits."""

    columns: tuple[tuple[str, ...], ...]  # what the configurations of each column are called
    colors: tuple[str, ...]  # name in the palette of each column
    parts: tuple[ModuleRow, ...]


@dataclass(frozen=True)
class _TrainedColumn:
    """What a column trains."""

    trained: Trained
    adapters: Mapping[str, tuple[int, ...]]  # path of a module → the parameters of its adapter, in each size
    sizes: str  # the adapters' labels: "r=2, 8"


_Tensors = Mapping[str, tuple[int, ...]]
"""Name of a module's tensor → its shape."""


def draw(analysis: Analysis) -> Drawing | None:
    """Lay out the drawing; None where the module tree was not kept."""
    tree = analysis.structure
    if tree is None:
        return None
    look = looks(analysis)
    groups: dict[Trained, list[str]] = {}  # adapters of different size on the same modules share a column
    for label, trained in tree.trained.items():
        if label in look:  # a study that is still going on lists more than has runs
            paths = tuple((path, 0) for path, _ in trained.adapters)
            key = trained.model_copy(update={"adapters": paths, "adapter_label": None})
            groups.setdefault(key, []).append(label)
    if not groups:
        return None
    columns = [_column([tree.trained[label] for label in labels]) for labels in groups.values()]
    names = tuple(tuple(look[label].name for label in labels) for labels in groups.values())
    colors = tuple(look[labels[0]].color for labels in groups.values())
    return Drawing(names, colors, (*_backbone(tree, columns), *_head(tree, columns)))


def _column(members: Sequence[Trained]) -> _TrainedColumn:
    """The column of configurations that train the same tensors, with adapters of one or several sizes."""
    by_label = {member.adapter_label: dict(member.adapters) for member in members}
    adapters = {path: tuple(sizes[path] for sizes in by_label.values()) for path, _ in members[0].adapters}
    first, *others = (label or "" for label in by_label)
    name = first.partition("=")[0] + "="
    return _TrainedColumn(members[0], adapters, ", ".join([first, *(other.removeprefix(name) for other in others)]))


def _backbone(tree: Structure, columns: Sequence[_TrainedColumn]) -> Iterator[ModuleRow]:
    """The rows of the backbone; neighbouring layers that look the same are drawn once."""
    modules: dict[tuple[str, int], dict[str, dict[str, tuple[int, ...]]]] = {}  # (group, number of the layer or -1)
    for path, shape in tree.tensors.items():
        module, _, tensor = path.rpartition(".")
        group, _, name = module.partition(".")
        number = -1
        if match := _LAYER.fullmatch(path):
            group, number, name = match[1], int(match[2]), match[3].rpartition(".")[0]
        modules.setdefault((group, number), {}).setdefault(name, {})[tensor] = shape
    layers = []
    for (group, number), named in modules.items():
        prefix = group if number < 0 else f"{group}.{number}"
        rows = [
            _row(group, name, tensors, [_box(f"{prefix}.{name}".rstrip("."), tensors, each) for each in columns])
            for name, tensors in named.items()
        ]
        layers.append((group, number, rows))
    for (group, _, rows), alike in groupby(layers, key=lambda layer: (layer[0], layer[1] < 0, layer[2])):
        first, *others = (number for _, number, _ in alike)
        title = group if first < 0 else f"{group}.{first}–{others[-1]}" if others else f"{group}.{first}"
        yield from (replace(row, group=title, repeated=1 + len(others)) for row in rows)


def _row(group: str, name: str, tensors: _Tensors, boxes: Sequence[Box]) -> ModuleRow:
    shapes = " + ".join("×".join(map(str, shape)) for shape in tensors.values())
    return ModuleRow(group, name or group, shapes, _count(tensors), 1, tuple(boxes))


def _count(tensors: _Tensors) -> int:
    """Number of parameters."""
    return sum(map(math.prod, tensors.values()))


def _box(path: str, tensors: _Tensors, column: _TrainedColumn) -> Box:
    """What a column trains of a module of the backbone."""
    if column.trained.weights:
        return Box("all", "all", (_count(tensors),))
    if path in column.adapters:
        return Box("adapter", f"frozen + {column.sizes}", column.adapters[path])
    names = {*column.trained.biases, *column.trained.tensors}
    own = {name: shape for name, shape in tensors.items() if (f"{path}.{name}" if path else name) in names}
    if own and len(own) == len(tensors):
        return Box("all", "all", (_count(own),))
    return Box("biases", "biases", (_count(own),)) if own else Box("frozen", "frozen", (0,))


def _head(tree: Structure, columns: Sequence[_TrainedColumn]) -> Iterator[ModuleRow]:
    """The rows of the head."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in tree.head.items():
        module, _, tensor = path.rpartition(".")
        modules.setdefault(module, {})[tensor] = shape
    for module, tensors in modules.items():
        boxes = []
        for column in columns:
            trained = {name: shape for name, shape in tensors.items() if f"{module}.{name}" in column.trained.head}
            every = len(trained) == len(tensors)
            state, text = ("all", "all") if every else ("biases", "bias") if trained else ("frozen", "frozen")
            boxes.append(Box(state, text, (_count(trained),)))
        yield _row("head", module, tensors, boxes)
