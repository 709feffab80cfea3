"""What configurations are called: their method and those of its settings that vary, so that a name tells no more."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from manytune.methods import METHODS
from manytune.utils.text import printable

_LONGEST_KEY = 80  # a file's name has at most 255 bytes, and the key is only a part of some names


@dataclass(frozen=True)
class Name:
    """What one configuration is called."""

    method: str
    """What tables and charts call its method: "Full"."""
    in_sentences: str
    """What sentences call its method: "full fine-tuning"."""
    parts: tuple[str, ...]
    """What varies among the method's configurations: ("r=8", "lr 4e-4")."""

    @property
    def short(self) -> str:
        """For tables and charts: "LoRA r=8, lr 4e-4"."""
        return self.without()

    @property
    def title(self) -> str:
        """For sentences."""
        return f"{self.in_sentences} {', '.join(self.parts)}".strip()

    def without(self, prefix: str | None = None) -> str:
        """For tables and charts, without the part that begins with `prefix`."""
        parts = (part for part in self.parts if prefix is None or not part.startswith(prefix))
        return f"{self.method} {', '.join(parts)}".strip()


def method_title(method: str) -> str:
    """What sentences call a method; its name where no such method is registered."""
    return METHODS[method].title if method in METHODS else method


def short_title(method: str) -> str:
    """What tables and charts call a method."""
    kind = METHODS.get(method)
    return (kind.short_title if kind else None) or method_title(method)


def joined(names: Iterable[str], most: int | None = None) -> str:
    """Names with commas and "and"; of more than `most`, the others are counted.

    >>> joined(["full", "LoRA", "BitFit"]), joined(["a", "b", "c", "d"], most=2)
    ('full, LoRA and BitFit', 'a, b and 2 more')
    """
    found = list(names)
    if most is not None and len(found) > most:
        found = [*found[:most], f"{len(found) - most} more"]
    *first, last = found
    return f"{', '.join(first)} and {last}" if first else last


def capital(text: str) -> str:
    """Text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


def file_key(name: str, used: Container[str]) -> str:
    """A key that is safe as a file name and as an anchor, and not among those that are used.

    >>> file_key("CoLA-org/model", ()), file_key("cola", {"cola"})
    ('cola-org-model', 'cola-2')
    """
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_KEY] or "task"
    numbered = (f"{key}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([key], numbered) if each not in used)


def name_configurations(methods: Mapping[str, str]) -> tuple[dict[str, Name], str]:
    """Names of a task's configurations, and the settings that these leave out because they never vary.

    >>> names, constant = name_configurations({"lora r=2, lr 1e-3": "lora", "lora r=8, lr 1e-3": "lora"})
    >>> [name.short for name in names.values()], constant
    (['LoRA r=2', 'LoRA r=8'], 'LoRA lr 1e-3')

    Args:
        methods: Label → method, of all configurations.
    """
    names = {label: Name(printable(label), printable(label), ()) for label in methods}
    constant: dict[str, list[str]] = {}
    for method in dict.fromkeys(methods.values()):
        # A label that does not begin with the method is one of another version: it stays as it is.
        known = (label for label, other in methods.items() if other == method and f"{label} ".startswith(f"{method} "))
        parts = {label: label.removeprefix(method).strip().split(", ") for label in known}
        first = next(iter(parts.values()), [])
        shared = [part for part in first if all(part in each for each in parts.values())]
        short = short_title(method)
        for label, each in parts.items():
            varying = tuple(printable(part) for part in each if part not in shared)
            names[label] = Name(printable(short), printable(method_title(method)), varying)
        constant.setdefault(printable(short), []).extend(printable(part) for part in shared if part)
    times = Counter(name.short for name in names.values())
    names = {
        label: name if times[name.short] == 1 else replace(name, method=text, in_sentences=text, parts=())
        for label, name in names.items()
        for text in [printable(label)]
    }
    return names, _constants(constant)


def _constants(constant: Mapping[str, list[str]]) -> str:
    """The settings that never vary: first those of all methods, then each method's own."""
    first, *others = constant.values() or [[]]
    everywhere = [part for part in first if others and all(part in each for each in others)]
    found = [f"all {', '.join(everywhere)}"] if everywhere else []
    for method, parts in constant.items():
        own = [part for part in parts if part not in everywhere]
        found += [f"{method} {', '.join(own)}"] if own else []
    return "; ".join(found)
