"""The model as a drawing: what was trained where, from the kept module tree.

A row for each module, from the input up to the logits; a column for each set of tensors that some configurations
train. Layers that look the same, in shapes and in what trains, are drawn once with their number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from manytune.report.analysis import Analysis
from manytune.report.series import looks
from manytune.storage.artifacts import Structure, Trained

_LAYER = re.compile(r"(.*?)\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Box:
    """How much of a module one column trains."""

    state: str
    """all, biases, adapter or frozen."""
    text: str
    """What trains: "all", "biases", "+ r=8", "frozen"."""
    trainable: tuple[int, ...]
    """Parameters of the module that train, or of its adapter in each size."""


@dataclass(frozen=True)
class ModuleRow:
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
    parts: tuple[ModuleRow, ...]


def draw(analysis: Analysis) -> Drawing | None:
    """Lay out the drawing; None where the module tree was not kept."""
    tree = analysis.structure
    if tree is None:
        return None
    look = looks(analysis)
    groups: dict[Trained, list[str]] = {}  # adapters of different size in the same places share a column
    for label, trained in tree.trained.items():
        if label in look:  # a study that is still going on lists more than has runs
            places = tuple((path, 0) for path, _ in trained.adapters)
            key = trained.model_copy(update={"adapters": places, "adapter_label": None})
            groups.setdefault(key, []).append(label)
    if not groups:
        return None
    columns = [_TrainedColumn.of([tree.trained[label] for label in labels]) for labels in groups.values()]
    blocks = [*_backbone(tree, columns), *_head(tree, columns)]
    names = tuple(tuple(look[label].name for label in labels) for labels in groups.values())
    return Drawing(names, tuple(look[labels[0]].color for labels in groups.values()), tuple(blocks))


@dataclass(frozen=True)
class _TrainedColumn:
    """What a column trains."""

    trained: Trained
    adapters: Mapping[str, tuple[int, ...]]
    """Path of a module → the parameters of its adapter, in each size."""
    sizes: str
    """The adapters' labels: "r=2, 8"."""

    @classmethod
    def of(cls, members: Sequence[Trained]) -> _TrainedColumn:
        """A column of members that train the same, but for the size of their adapters."""
        of_label = {member.adapter_label: dict(member.adapters) for member in members}
        adapters = {path: tuple(sizes[path] for sizes in of_label.values()) for path, _ in members[0].adapters}
        first, *others = (label or "" for label in of_label)
        shared = first.partition("=")[0] + "="
        return cls(members[0], adapters, ", ".join([first, *(other.removeprefix(shared) for other in others)]))


_Tensors = Mapping[str, tuple[int, ...]]
"""Name of a module's tensor → its shape."""


def _backbone(tree: Structure, columns: Sequence[_TrainedColumn]) -> Iterator[ModuleRow]:
    """The rows of the backbone; neighbouring layers that look the same are one stretch."""
    stretches: list[tuple[str, int, int, list[ModuleRow]]] = []
    for group, number, modules in _grouped(tree.tensors):
        prefix = group if number < 0 else f"{group}.{number}"
        blocks = [
            _block(group, name, tensors, [_box(f"{prefix}.{name}".rstrip("."), tensors, each) for each in columns])
            for name, tensors in modules.items()
        ]
        if stretches and number >= 0 and (stretches[-1][0], stretches[-1][3]) == (group, blocks):
            stretches[-1] = (group, stretches[-1][1], number, blocks)
        else:
            stretches.append((group, number, number, blocks))
    for group, first, last, blocks in stretches:
        title = group if first < 0 else f"{group}.{first}" if first == last else f"{group}.{first}–{last}"
        yield from (replace(block, group=title, repeated=last - first + 1) for block in blocks)


def _grouped(tensors: _Tensors) -> list[tuple[str, int, dict[str, dict[str, tuple[int, ...]]]]]:
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


def _block(group: str, name: str, tensors: _Tensors, boxes: Sequence[Box]) -> ModuleRow:
    shapes = " + ".join("×".join(map(str, shape)) for shape in tensors.values())
    return ModuleRow(group, name or group, shapes, _count(tensors), 1, tuple(boxes))


def _count(tensors: _Tensors) -> int:
    """Number of parameters."""
    return sum(map(math.prod, tensors.values()))


def _box(path: str, tensors: _Tensors, column: _TrainedColumn) -> Box:
    """What a column trains of a module of the backbone."""
    trained = column.trained
    if trained.weights:
        return Box("all", "all", (_count(tensors),))
    if path in column.adapters:
        return Box("adapter", f"frozen + {column.sizes}", column.adapters[path])
    biases = {name: shape for name, shape in tensors.items() if f"{path}.{name}" in trained.biases}
    return Box("biases", "biases", (_count(biases),)) if biases else Box("frozen", "frozen", (0,))


def _head(tree: Structure, columns: Sequence[_TrainedColumn]) -> Iterator[ModuleRow]:
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in tree.head.items():
        module, _, tensor = path.rpartition(".")
        modules.setdefault(module, {})[tensor] = shape
    for module, tensors in modules.items():
        boxes = []
        for column in columns:
            own = {name: shape for name, shape in tensors.items() if f"{module}.{name}" in column.trained.head}
            state, text = ("all", "all") if len(own) == len(tensors) else ("biases", "bias") if own else ("frozen",) * 2
            boxes.append(Box(state, text, (_count(own),)))
        yield _block("head", module, tensors, boxes)
