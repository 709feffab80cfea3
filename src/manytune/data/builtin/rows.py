"""The rows of the built-in tasks, made by the grammars of `structures` and `frames`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from manytune.data.builtin.frames import FRAMES, KEPT, SYNONYM_KEPT, Change, Frame
from manytune.data.builtin.grammar import Draw, sentence, slots, word_class
from manytune.data.builtin.lexicon import SYNONYMS, WORDS
from manytune.data.builtin.structures import PHENOMENA, Structure
from manytune.data.builtin.words import Word
from manytune.utils.errors import DataError, choices

__all__ = ["GradedPair", "MinimalPair", "acceptability", "graded_pairs", "minimal_pairs", "similarity"]

SplitName = Literal["train", "dev"]
T = TypeVar("T")

_PAIRS_PER_PHENOMENON = {"train": 54, "dev": 15}
_GROUPS_PER_FRAME = {"train": 120, "dev": 30}
_REPLACEMENTS = (0, 0, 0, 1, 1, 2)  # how many, one of these
_SEED = {"train": 20_110, "dev": 20_111}


@dataclass(frozen=True)
class MinimalPair:
    """An acceptable sentence, its unacceptable twin of the same words, and the structure they come from."""

    good: str
    bad: str
    phenomenon: str
    structure: Structure


@dataclass(frozen=True)
class GradedPair:
    """Two sentences, their similarity from 0 to 5, what was changed, and the frame and forms they have."""

    first: str
    second: str
    score: float
    kind: str
    frame: Frame
    forms: tuple[str, str]


def minimal_pairs(split: SplitName) -> list[MinimalPair]:
    """The pairs behind `acceptability(split)`, as many for each phenomenon.

    Raises:
        DataError: there is no such split.
    """
    draw = _draw(split)
    seen: set[str] = set()
    return [
        _minimal_pair(draw, split, phenomenon, structure, seen)
        for phenomenon in PHENOMENA
        for structure in _planned_structures(phenomenon, split)
    ]


def acceptability(split: SplitName) -> list[tuple[str, int, str]]:
    """The rows of builtin-acceptability: sentence, label (1 acceptable, 0 not), phenomenon.

    Raises:
        DataError: there is no such split.
    """
    rows = [
        row
        for pair in minimal_pairs(split)
        for row in ((pair.good, 1, pair.phenomenon), (pair.bad, 0, pair.phenomenon))
    ]
    return _draw(split).shuffled(rows)


def graded_pairs(split: SplitName) -> list[GradedPair]:
    """The pairs behind `similarity(split)`; two that stand together share their first sentence.

    Raises:
        DataError: there is no such split.
    """
    draw = _draw(split)
    seen: set[tuple[str, str]] = set()
    return [
        pair
        for frame in FRAMES
        if split == "dev" or not frame.held_out
        for forms in _planned_forms(draw, frame, split)
        for pair in _graded_group(draw, split, frame, forms, seen)
    ]


def similarity(split: SplitName) -> list[tuple[str, str, float, str]]:
    """The rows of builtin-similarity: two sentences, score from 0 (unrelated) to 5 (same), kind of change.

    Raises:
        DataError: there is no such split.
    """
    rows = [(pair.first, pair.second, pair.score, pair.kind) for pair in graded_pairs(split)]
    return _draw(split).shuffled(rows)


def _draw(split: str) -> Draw:
    if split not in _SEED:
        raise DataError(f"There is no such split of the built-in tasks: {choices(split, _SEED)}")
    return Draw(_SEED[split])


def _in_turn(items: Sequence[T], count: int) -> list[T]:
    return [items[index % len(items)] for index in range(count)]


# builtin-acceptability


def _planned_structures(phenomenon: str, split: str) -> list[Structure]:
    """Train takes the shared structures in turn; a third of dev has structures that train lacks."""
    structures = PHENOMENA[phenomenon]
    count = _PAIRS_PER_PHENOMENON[split]
    new = count // 3 if split == "dev" else 0
    return _in_turn(structures.shared, count - new) + _in_turn(structures.held_out, new)


def _minimal_pair(draw: Draw, split: str, phenomenon: str, structure: Structure, seen: set[str]) -> MinimalPair:
    """Fill a structure with words until both sentences are new."""
    while True:
        words = _fill(draw, WORDS[split], slots(structure.good))
        good, bad = sentence(structure.good, words), sentence(structure.bad, words)
        if not {good, bad} & seen:
            seen |= {good, bad}
            return MinimalPair(good, bad, phenomenon, structure)


def _fill(
    draw: Draw, lexicon: Mapping[str, Sequence[T]], names: Sequence[str], taken: Collection[T] = ()
) -> dict[str, T]:
    """An entry of the lexicon for each slot, none of them twice and none that is taken."""
    filled: dict[str, T] = {}
    for name in names:
        used = (*taken, *filled.values())
        filled[name] = draw.pick([entry for entry in lexicon[word_class(name)] if entry not in used])
    return filled


# builtin-similarity


def _planned_forms(draw: Draw, frame: Frame, split: str) -> Iterator[tuple[str, str]]:
    """Forms of the first and second sentence; in dev, every other second one has a form that train lacks."""
    for index in range(_GROUPS_PER_FRAME[split]):
        first = draw.pick(frame.forms)
        new = split == "dev" and index % 2 == 0 and frame.held_out_forms
        yield first, draw.pick(frame.held_out_forms if new else frame.forms)


@dataclass(frozen=True)
class _Version:
    """What a second sentence says: the words in its slots, what was changed, and the similarity left."""

    words: Mapping[str, Word]
    kinds: tuple[str, ...]
    kept: float

    def changed(self, change: Change) -> _Version:
        """The same after one more change."""
        fills = {slot: _filling(self.words, fill) for slot, fill in change.fills.items()}
        return _Version({**self.words, **fills}, (*self.kinds, change.kind), self.kept * KEPT[change.kind])

    @property
    def kind(self) -> str:
        """Its changes, joined; `paraphrase` if there are none."""
        return "+".join(sorted(self.kinds, key=list(KEPT).index)) or "paraphrase"


def _filling(words: Mapping[str, Word], fill: str) -> Word:
    slot, _, attribute = fill.partition(".")
    word: Word = getattr(words[slot], attribute) if attribute else words[slot]
    return word


def _graded_group(
    draw: Draw, split: str, frame: Frame, forms: tuple[str, str], seen: set[tuple[str, str]]
) -> list[GradedPair]:
    """Two pairs with the same first sentence, drawn until both are new and no pair repeats one sentence."""
    while True:
        said, versions = _unrelated(draw, split, frame) if draw.below(10) == 0 else _changed(draw, split, frame)
        first = sentence(forms[0], said)
        group = [(first, sentence(forms[1], version.words)) for version in versions]
        if draw.below(2):
            group = [(second, first) for first, second in group]
        if not seen & set(group) and all(first != second for first, second in group):
            seen.update(group)
            return [
                GradedPair(*texts, round(5 * version.kept, 2), version.kind, frame, forms)
                for texts, version in zip(group, versions, strict=True)
            ]


def _unrelated(draw: Draw, split: str, frame: Frame) -> tuple[dict[str, Word], list[_Version]]:
    """A scene said with not one of its words, and another scene: neither shares a word with the first."""
    lexicon, names = SYNONYMS[split], slots(*frame.forms)
    scene = _fill(draw, lexicon, names)
    other = _fill(draw, lexicon, names, taken=tuple(scene.values()))
    said = {slot: draw.pick(words) for slot, words in scene.items()}
    same = _said_otherwise(draw, scene, said, free=[slot for slot in names if len(scene[slot]) > 1])
    elsewhere = {slot: draw.pick(words) for slot, words in other.items()}
    return said, [same, _Version(elsewhere, ("unrelated",), KEPT["unrelated"])]


def _changed(draw: Draw, split: str, frame: Frame) -> tuple[dict[str, Word], list[_Version]]:
    """A scene after some replacements, and the same after one rearrangement more."""
    replacements = _replacements(draw, frame)
    replaced = [slot for change in replacements for slot in change.fills]
    names = slots(*frame.forms)
    needed = [fill.partition(".")[0] for change in frame.replacements for fill in change.fills.values()]
    scene = _fill(draw, SYNONYMS[split], list(dict.fromkeys([*names, *needed])))
    said = {slot: draw.pick(words) for slot, words in scene.items()}
    # How many words stay is drawn without a look at the replacements: shared words say little of the score.
    free = [slot for slot in names if len(scene[slot]) > 1]
    stay = draw.below(len(free) - 1)
    kept = draw.shuffled(slot for slot in free if slot not in replaced)[:stay]
    version = _said_otherwise(draw, scene, said, free=set(free) - {*kept, *replaced})
    for change in replacements:
        version = version.changed(change)
    return said, [version, version.changed(draw.pick(frame.rearrangements))]


def _replacements(draw: Draw, frame: Frame) -> list[Change]:
    """None to two replacements, of different kinds and at different slots."""
    chosen: list[Change] = []
    wanted = draw.pick(_REPLACEMENTS)
    for change in draw.shuffled(frame.replacements):
        if len(chosen) < wanted and not any(
            change.kind == other.kind or change.fills.keys() & other.fills.keys() for other in chosen
        ):
            chosen.append(change)
    return chosen


def _said_otherwise(
    draw: Draw, scene: Mapping[str, Sequence[Word]], said: Mapping[str, Word], free: Collection[str]
) -> _Version:
    """The same scene with synonyms in the slots that are free for them."""
    words = {
        slot: draw.pick([word for word in scene[slot] if word != said[slot]]) if slot in free else said[slot]
        for slot in scene
    }
    return _Version(words, (), SYNONYM_KEPT ** len(free))
