"""The study file as text: read YAML strictly, apply overrides, know where each value came from, write YAML.

YAML is read by the rules that people expect today (YAML 1.2's core schema): `1e-3` is a number, `on` and
`12:30` are text, and a key that is given twice is an error instead of a silent choice. PyYAML is set up for that below,
because other libraries read more: ruamel.yaml takes `2024-01-01` for a date and `1_000` for a number, OmegaConf
takes `12:30` for 750 and `${...}` for a reference, and knows no lines.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from manytune.utils.errors import StoreError, StudyError
from manytune.utils.files import read_text
from manytune.utils.problems import KeyPath, dotted
from manytune.utils.text import quoted, shortened

_SCALARS = (
    # tag, what it looks like, the characters that it can start with
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
)

_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000
_DEEPEST = 50  # levels; a study has five
_LONGEST_NUMBER = 4300  # digits; Python reads no more
_COUNTED_ONCE = 100  # so many characters of a text count as one value


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema instead of those of YAML 1.1.

    Aliases and merges let a few lines stand for any number of values, so values are counted with aliases expanded,
    while nodes are composed and before any value is made.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._sizes: dict[int, int] = {}  # node id → values, aliases expanded; an alias inside itself adds none

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, and refuse one that is too deep or too large."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._level == _DEEPEST:
            raise _refused(f"it is nested too deeply, in more than {_DEEPEST} levels", event.start_mark)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = size = 1 + self._size_inside(node)
            if max(size, len(self._sizes)) > _MOST_VALUES:
                raise _refused(
                    f"it holds more than {_MOST_VALUES:,} values, with aliases and merges written out", event.start_mark
                )
        return node

    def _size_inside(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return len(node.value) // _COUNTED_ONCE
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        return sum(self._sizes.get(id(part), 0) for part in parts)


def _refused(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Decimal, whatever the number of leading zeros (YAML 1.1 reads 010 as 8)."""
    if len(node.value) > _LONGEST_NUMBER:
        raise _refused(
            f"a number has {len(node.value):,} digits; it can have {_LONGEST_NUMBER} digits", node.start_mark
        )
    return int(node.value)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes whatever text `_Loader` would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out in full: anchors make a study file harder to read."""
        return True


class _BlockMapping(dict[str, Any]):
    """A mapping that is written with a line for each key."""


_Dumper.add_representer(
    _BlockMapping, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)
)
_PLAIN = {f"tag:yaml.org,2002:{_name}" for _name in ("null", "bool", "int", "float", "str", "seq", "map")}
_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _PLAIN
}
for _tag, _pattern, _starts in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _starts)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


@dataclass(frozen=True)
class Source:
    """The plain content of a study file, with overrides applied, and where its values came from."""

    name: str  # what messages call it: the file's path, or "the study"
    data: Any  # plain lists, mappings and scalars; whether they make a study is not yet known
    # Where the value at a path came from: "line 7", or "override training.epochs=x"
    origins: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str | None:
        """Where the value at `path`, or the closest thing around it, came from; None if that is not known."""
        ends = range(len(path), 0, -1)
        return next((self.origins[path[:end]] for end in ends if path[:end] in self.origins), None)


def read(path: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Read the YAML file at `path` and apply `key.sub=value` overrides to it.

    Raises StudyError where there is no such file, it is not a YAML mapping, or an override leads nowhere.
    """
    name = str(path)
    try:
        # A pipe too: `manytune run <(make-study)`.
        text = read_text(Path(os.path.expanduser(path)), _MOST_BYTES, pipe=True)
    except StoreError as error:
        raise StudyError(f"The study file {error}") from None
    if text is None:
        raise StudyError(
            f"There is no study file {name}. Check the path, or write a new file with: manytune init {name}"
        )
    data, origins = _parse(text, name)
    if data is None:
        raise StudyError(f"{name} is empty. A commented study to start from: manytune init FILE")
    if not isinstance(data, dict):
        raise StudyError(
            f"{name} does not hold a study: it must be a mapping (name: ..., tasks: ...), "
            f"but its top level is {_kind(data)}."
        )
    return _found_beside(Path(os.path.expanduser(path)).parent, apply_overrides(Source(name, data, origins), overrides))


def _found_beside(folder: Path, source: Source) -> Source:
    """The source with the paths that lead nowhere from the present folder, but somewhere from the study file's.

    These are the model, `data_dir`, and the files of one's own tasks. They become absolute.
    """

    def settle(holder: Any, *keys: str) -> None:
        for key in keys:
            value = holder.get(key)
            if isinstance(value, str) and value and "\0" not in value and not os.path.exists(os.path.expanduser(value)):
                beside = folder / value
                holder[key] = os.path.abspath(beside) if os.path.exists(beside) else value

    settle(source.data, "model", "data_dir")
    tasks = source.data.get("tasks")
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict) and task.get("hub") is None:
            settle(task, "train", "dev", "test")
    return source


def apply_overrides(source: Source, overrides: Sequence[str]) -> Source:
    """Set values from `key.sub=value` texts, in order; list entries go by number: `methods.0.rank=[2, 4]`.

    A key that no study knows is set all the same: validation then names it together with all other problems. Raises
    StudyError where an override is not of this form, or its path leads through something that has no keys.
    """
    data, origins = copy.deepcopy(source.data), dict(source.origins)
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        shown = quoted(override)
        if not equals or not all(path) or len(path) > _DEEPEST:
            raise StudyError(
                f"The override {shown} cannot be used: write key=value or key.sub=value, such as training.epochs=5."
            )
        value, _ = _parse(text, f"the value of the override {shown}")
        reached = _set(data, path, value, shown)
        origins = {known: origin for known, origin in origins.items() if known[: len(reached)] != reached}
        for end in range(1, len(reached) + 1):  # mappings that the override made come from it as well
            origins.setdefault(reached[:end], f"override {shortened(override)}")
    return Source(source.name, data, origins)


def dump(data: Mapping[str, Any]) -> str:
    """Write plain data as YAML that `read` gives back unchanged, with innermost lists on one line."""
    blocks = {key: _BlockMapping(value) if isinstance(value, dict) else value for key, value in data.items()}
    return yaml.dump(blocks, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)


def _parse(text: str, name: str) -> tuple[Any, dict[KeyPath, str]]:
    """Plain data and the line of each of its values."""
    if len(text) > _MOST_BYTES:
        raise StudyError(f"{name} is too large: {len(text):,} characters; it can have {_MOST_BYTES:,}.")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        origins = dict(_lines(node, (), name, set()))
        return loader.construct_document(node), origins
    except yaml.YAMLError as error:
        reason = _explain(error) if isinstance(error, yaml.MarkedYAMLError) else " ".join(str(error).split())
        raise StudyError(f"{name} is not valid YAML: {reason}") from None
    except (ValueError, KeyError) as error:  # from a scalar under an explicit tag, such as `!!int x`
        raise StudyError(f"{name} is not a usable YAML file: {shortened(error)}.") from None
    except RecursionError:
        raise StudyError(f"{name} is not a usable YAML file: it is nested too deeply.") from None


def _explain(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    hint = " Indent with spaces, not with tabs." if "\\t" in (error.problem or "") else ""
    return f"{position}{shortened(error.problem or error.context)}.{hint}"


def _lines(node: yaml.Node, path: KeyPath, name: str, seen: set[int]) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path, "line N") for every value inside `node`, and refuse keys that are given twice.

    `seen` holds the ids of nodes that were walked: YAML's aliases can make a node its own child.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), f"line {item.start_mark.line + 1}"
            yield from _lines(item, (*path, index), name, seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key_node, item in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first:
                raise StudyError(
                    f"{name}, line {line}: the key {dotted((*path, key))} is given twice (first on line "
                    f"{first[key]}). Keep one; several values for one key are written as a list."
                )
            first[key] = line
            yield (*path, key), f"line {line}"
            yield from _lines(item, (*path, key), name, seen)


def _set(data: Any, path: tuple[str, ...], value: Any, override: str) -> KeyPath:
    """Put `value` at `path` inside `data`, making mappings on the way; return the path with list indices."""
    reached: KeyPath = ()
    here = data
    for part in path:
        at = dotted(reached)
        key: str | int = part
        if isinstance(here, list):
            if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(here):
                allowed = f"0 to {len(here) - 1}" if here else "none, it is empty"
                raise StudyError(
                    f"The override {override} cannot be used: {at} is a list; "
                    f"its entries go by number ({allowed}), not {quoted(part)}."
                )
            key = int(part)
        elif not isinstance(here, dict):
            raise StudyError(
                f"The override {override} cannot be used: {at} is {_kind(here)}, so it has no {quoted(part)} inside. "
                f"Set {at} itself."
            )
        reached = (*reached, key)
        if len(reached) == len(path):
            here[key] = value
        elif isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]
    return reached


def _kind(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return f"the single value {shortened(repr(value))}"
