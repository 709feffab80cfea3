"""What both grammars share: drawing at random, and filling templates with words.

A template is a format string: `{person1.many}` is a word of the class `person` in its form `many`, and the
same slot name stands for the same word wherever it comes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from builtin_data.words import Word

__all__ = ["Draw", "sentence", "slots", "word_class"]

T = TypeVar("T")


class Draw:
    """Random draws from a seed that come out the same on every machine and Python version.

    `random.Random` promises that of `random()` alone, not of `choice`, `sample` or `shuffle`.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """All of `items` in random order (Fisher and Yates)."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result


def slots(*templates: str) -> list[str]:
    """The names of the slots in `templates`, each once, in order.

    >>> slots("the {person1.one} saw {she1}.", "{she1} saw the {person1.many}.")
    ['person1', 'she1']
    """
    return list(dict.fromkeys(re.findall(r"{(\w+)", " ".join(templates))))


def word_class(slot: str) -> str:
    """The class of words that fill a slot.

    >>> word_class("person1")
    'person'
    """
    return slot.rstrip("0123456789")


def sentence(template: str, words: Mapping[str, Word]) -> str:
    """Fill `template` with `words`, and start it with a capital letter."""
    text = template.format_map(words)
    return text[0].upper() + text[1:]
