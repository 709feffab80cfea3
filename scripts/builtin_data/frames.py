"""The scenes of builtin-similarity, as templates, and what each change to a scene does to the score.

A frame says one scene in several forms. The second sentence of a pair takes a form of its own and synonyms
for the same things; changes then alter what it says. So neither shared words nor length tell the score: "The
doctor helped the lawyer" is far from "The lawyer helped the doctor", and near "The attorney was assisted by
the physician".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FRAMES", "KEPT", "SYNONYM_KEPT", "Change", "Frame"]

KEPT: Mapping[str, float] = {
    "number": 0.85,
    "adjective": 0.8,
    "place": 0.7,
    "descriptions": 0.65,
    "topic": 0.6,
    "object": 0.6,
    "agent": 0.5,
    "patient": 0.5,
    "order": 0.45,
    "action": 0.35,
    "roles": 0.3,
    "negation": 0.2,
    "unrelated": 0.0,
}
"""The share of the similarity that each change keeps; the shares of several changes multiply."""

SYNONYM_KEPT = 0.98
"""The share of the similarity that a synonym keeps: two words never mean quite the same."""


@dataclass(frozen=True)
class Change:
    """A change of what a sentence says: `fills` maps a slot to what fills it then, a slot or `slot.other`."""

    kind: str
    fills: Mapping[str, str]


def _changes(*texts: str) -> tuple[Change, ...]:
    """Read `kind slot=filling slot=filling …`."""
    parts = [text.split() for text in texts]
    return tuple(Change(kind, dict(fill.split("=") for fill in fills)) for kind, *fills in parts)


@dataclass(frozen=True)
class Frame:
    """A kind of scene.

    `forms` say the same, and so do `held_out_forms`, which only dev has, as it alone has a `held_out` frame.
    `replacements` bring in what the first sentence lacks, `rearrangements` make do with what is there.
    """

    name: str
    forms: tuple[str, ...]
    held_out_forms: tuple[str, ...]
    replacements: tuple[Change, ...]
    rearrangements: tuple[Change, ...]
    held_out: bool = False


FRAMES: tuple[Frame, ...] = (
    Frame(
        name="event",
        forms=(
            "the {smart1} {person1.one} {help1.past} the {smart2} {person2.one}.",
            "the {smart2} {person2.one} was {help1.done} by the {smart1} {person1.one}.",
        ),
        held_out_forms=(
            "it was the {smart1} {person1.one} who {help1.past} the {smart2} {person2.one}.",
            "the {smart2} {person2.one} got {help1.done} by the {smart1} {person1.one}.",
        ),
        replacements=_changes(
            "adjective smart1=smart3",
            "adjective smart2=smart3",
            "agent person1=person3",
            "patient person2=person4",
            "action help1=help2",
        ),
        rearrangements=_changes(
            "roles person1=person2 person2=person1 smart1=smart2 smart2=smart1",
            "descriptions smart1=smart2 smart2=smart1",
        ),
    ),
    Frame(
        name="plan",
        forms=(
            "the {person1.one} will {help1.base} the {person2.many} in the {place1}.",
            "in the {place1}, the {person1.one} will {help1.base} the {person2.many}.",
            "the {person2.many} will be {help1.done} by the {person1.one} in the {place1}.",
        ),
        held_out_forms=("it is in the {place1} that the {person1.one} will {help1.base} the {person2.many}.",),
        replacements=_changes(
            "number person2=person2.other",
            "place place1=place2",
            "agent person1=person3",
            "patient person2=person4",
            "action help1=help2",
        ),
        rearrangements=_changes("roles person1=person2.other person2=person1.other"),
    ),
    Frame(
        name="transfer",
        forms=(
            "the {person1.one} {give1.past} the {thing1} to the {person2.one}.",
            "the {thing1} was {give1.done} to the {person2.one} by the {person1.one}.",
        ),
        held_out_forms=("it was the {person1.one} who {give1.past} the {thing1} to the {person2.one}.",),
        replacements=_changes(
            "object thing1=thing2",
            "agent person1=person3",
            "patient person2=person4",
        ),
        rearrangements=_changes("roles person1=person2 person2=person1"),
    ),
    Frame(
        name="order",
        forms=(
            "the {person1.one} {leave1.past} before the {person2.one} {leave2.past}.",
            "the {person2.one} {leave2.past} after the {person1.one} {leave1.past}.",
            "before the {person2.one} {leave2.past}, the {person1.one} {leave1.past}.",
        ),
        held_out_forms=("after the {person1.one} {leave1.past}, the {person2.one} {leave2.past}.",),
        replacements=_changes(
            "agent person1=person3",
            "agent person2=person3",
            "action leave1=leave3",
            "action leave2=leave3",
        ),
        rearrangements=_changes(
            "order person1=person2 person2=person1 leave1=leave2 leave2=leave1",
            "roles person1=person2 person2=person1",
        ),
    ),
    Frame(
        name="answer",
        forms=(
            "the {smart1} {person1.one} {accept1.yes} the {idea1}.",
            "it was the {idea1} that the {smart1} {person1.one} {accept1.yes}.",
        ),
        held_out_forms=("what the {smart1} {person1.one} {accept1.yes} was the {idea1}.",),
        replacements=_changes(
            "topic idea1=idea2",
            "agent person1=person3",
            "adjective smart1=smart3",
        ),
        rearrangements=_changes("negation accept1=accept1.other"),
    ),
    Frame(
        name="disagreement",
        forms=(
            "{he1} {accept1.yes} the {idea1} but {she1} {accept1.no} it.",
            "{she1} {accept1.no} the {idea1} but {he1} {accept1.yes} it.",
        ),
        held_out_forms=("while {he1} {accept1.yes} the {idea1}, {she1} {accept1.no} it.",),
        replacements=_changes(
            "topic idea1=idea2",
            "agent he1=he2",
            "agent she1=she2",
        ),
        rearrangements=_changes("roles he1=she1 she1=he1"),
    ),
    Frame(
        name="comparison",
        forms=(
            "the {smart1} {person1.one} is {taller1.more} than the {person2.one}.",
            "the {person2.one} is {taller1.less} than the {smart1} {person1.one}.",
        ),
        held_out_forms=(),
        replacements=_changes(
            "adjective smart1=smart3",
            "agent person1=person3",
            "agent person2=person3",
        ),
        rearrangements=_changes("roles person1=person2 person2=person1"),
        held_out=True,
    ),
)
