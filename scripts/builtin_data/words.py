"""Words in all their forms, and how regular English makes these forms."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Adjective", "Noun", "Plain", "Scale", "Stance", "Verb", "Word", "with_ed", "with_ing", "with_s"]

VOWELS = "aeiou"


def _ends_in_consonant_y(word: str) -> bool:
    return word.endswith("y") and word[-2] not in VOWELS


def with_s(word: str) -> str:
    """The regular plural of a noun and the regular third person of a verb.

    >>> [with_s(word) for word in ("box", "key", "carry")]
    ['boxes', 'keys', 'carries']
    """
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if _ends_in_consonant_y(word) else word + "s"


def with_ed(word: str) -> str:
    """The regular past tense of a verb whose last consonant is not doubled.

    >>> [with_ed(word) for word in ("help", "hope", "carry")]
    ['helped', 'hoped', 'carried']
    """
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if _ends_in_consonant_y(word) else word + "ed"


def with_ing(word: str) -> str:
    """The regular -ing form of a verb whose last consonant is not doubled.

    >>> [with_ing(word) for word in ("help", "hope", "agree")]
    ['helping', 'hoping', 'agreeing']
    """
    return word[:-1] + "ing" if word.endswith("e") and not word.endswith("ee") else word + "ing"


@dataclass(frozen=True)
class Plain:
    """A word of which one form is used: a name, a place, most adjectives."""

    base: str

    def __str__(self) -> str:
        return self.base

    @classmethod
    def parse(cls, text: str) -> Plain:
        """Read `garden`."""
        return cls(text)


@dataclass(frozen=True)
class Noun:
    """A noun that can be counted: `one` box, `many` boxes."""

    one: str
    many: str

    @property
    def other(self) -> Noun:
        """The same noun with its numbers exchanged: a template that asks for one gets many."""
        return Noun(one=self.many, many=self.one)

    @classmethod
    def parse(cls, text: str) -> Noun:
        """Read `box` or, with an irregular plural, `knife/knives`."""
        one, _, many = text.partition("/")
        return cls(one, many or with_s(one))


@dataclass(frozen=True)
class Adjective:
    """An adjective and its comparative: `base` tall, `more` taller."""

    base: str
    more: str

    @classmethod
    def parse(cls, text: str) -> Adjective:
        """Read `tall` or, with an irregular comparative, `good/better`."""
        base, _, more = text.partition("/")
        return cls(base, more or base + ("r" if base.endswith("e") else "er"))


@dataclass(frozen=True)
class Verb:
    """A verb: take, `s` takes, `past` took, `done` taken, `ing` taking; `on`: its preposition or particle."""

    base: str
    s: str
    past: str
    done: str
    ing: str
    on: str

    @classmethod
    def parse(cls, text: str) -> Verb:
        """Read `base`, `base/past`, `base/past/done` or `base/past/done/ing`, then perhaps `+on`."""
        forms, _, on = text.partition("+")
        base, *rest = forms.split("/")
        past = rest[0] if rest else with_ed(base)
        done = rest[1] if len(rest) > 1 else past
        ing = rest[2] if len(rest) > 2 else with_ing(base)
        return cls(base, with_s(base), past, done, ing, on)


@dataclass(frozen=True)
class Stance:
    """Two opposite answers in the past tense: `yes` accepted, `no` did not accept."""

    yes: str
    no: str

    @property
    def other(self) -> Stance:
        """The same answers exchanged."""
        return Stance(yes=self.no, no=self.yes)

    @classmethod
    def parse(cls, text: str) -> tuple[Stance, ...]:
        """Read `accept|reject`: every way to say these two answers with one negation at most."""
        yes, no = (Verb.parse(verb) for verb in text.split("|"))
        return (
            cls(yes.past, no.past),
            cls(yes.past, f"did not {yes.base}"),
            cls(f"did not {no.base}", no.past),
        )


@dataclass(frozen=True)
class Scale:
    """Two opposite comparatives: `more` taller, `less` shorter."""

    more: str
    less: str

    @classmethod
    def parse(cls, text: str) -> Scale:
        """Read `taller|shorter`."""
        return cls(*text.split("|"))


Word = Plain | Noun | Adjective | Verb | Stance | Scale
