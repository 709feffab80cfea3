"""The built-in tasks: fixed, balanced, well-formed, and out of reach for whoever only counts words."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import matthews_corrcoef

from manytune.builtin import acceptability, graded_pairs, minimal_pairs, similarity
from manytune.builtin.frames import FRAMES, KEPT, SYNONYM_KEPT
from manytune.builtin.grammar import Draw, sentence, slots, word_class
from manytune.builtin.lexicon import SYNONYMS, WORDS
from manytune.builtin.structures import PHENOMENA
from manytune.builtin.words import Adjective, Noun, Stance, Verb, with_ed, with_ing, with_s
from manytune.errors import DataError
from manytune.tasks import get_task

SPLITS = ("train", "dev")
ROWS: dict[str, Callable[[Any], Sequence[tuple[Any, ...]]]] = {
    "builtin-acceptability": acceptability,
    "builtin-similarity": similarity,
}
PAIRS = {split: minimal_pairs(split) for split in SPLITS}
GRADED = {split: graded_pairs(split) for split in SPLITS}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def literals(templates: Iterable[str]) -> set[str]:
    """The words that templates hold themselves: function words, mostly."""
    return set(words(re.sub(r"{[^}]*}", " ", " ".join(templates))))


def sentences(task: str, split: str) -> list[str]:
    width = len(get_task(task).text_columns)
    return [text for row in ROWS[task](split) for text in row[:width]]
