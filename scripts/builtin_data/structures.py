"""The minimal pairs of builtin-acceptability, as templates.

Both sentences of a pair hold exactly the same words: their order alone makes one of them acceptable, so no
model of word counts or length can tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["PHENOMENA", "Phenomenon", "Structure"]


class Structure(NamedTuple):
    """Templates of an acceptable sentence and of its unacceptable twin."""

    good: str
    bad: str


@dataclass(frozen=True)
class Phenomenon:
    """Structures that train and dev share, and structures that only dev has."""

    shared: tuple[Structure, ...]
    held_out: tuple[Structure, ...]


def _structures(text: str) -> tuple[Structure, ...]:
    """Two lines a structure, the acceptable sentence first."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return tuple(Structure(good, bad) for good, bad in zip(lines[::2], lines[1::2], strict=True))


_SHARED: Mapping[str, str] = {
    "agreement": """
        the {person1.one} {sleep1.s} and the {person2.many} {sleep2.base}.
        the {person1.one} {sleep2.base} and the {person2.many} {sleep1.s}.

        the {person1.many} {sleep1.base} but the {person2.one} {sleep2.s}.
        the {person1.many} {sleep2.s} but the {person2.one} {sleep1.base}.

        the {person1.one} is {tired1} and the {person2.many} are {tired2}.
        the {person1.one} are {tired1} and the {person2.many} is {tired2}.

        the {person1.many} are {tired1} but the {person2.one} is {tired2}.
        the {person1.many} is {tired1} but the {person2.one} are {tired2}.

        the {person1.many} have a {thing1.one} and the {person2.one} has a {thing2.one}.
        the {person1.many} has a {thing1.one} and the {person2.one} have a {thing2.one}.
    """,
    "attractor": """
        the {person1.one} near the {person2.many} {sleep1.s}.
        the {person2.many} near the {person1.one} {sleep1.s}.

        the {person1.many} near the {person2.one} {sleep1.base}.
        the {person2.one} near the {person1.many} {sleep1.base}.

        the {thing1.one} near the {thing2.many} is {small1}.
        the {thing2.many} near the {thing1.one} is {small1}.

        the {thing1.many} near the {thing2.one} are {small1}.
        the {thing2.one} near the {thing1.many} are {small1}.
    """,
    "word order": """
        the {tired1} {person1.one} {help1.past} the {person2.one}.
        the {person1.one} {tired1} {help1.past} the {person2.one}.

        the {small1} {thing1.one} is in the {place1}.
        the {thing1.one} {small1} is in the {place1}.

        the {person1.one} {fix1.past} the {thing1.one} in the {place1}.
        the {person1.one} the {thing1.one} {fix1.past} in the {place1}.

        the {person1.one} {help1.past} the {person2.one} in the {place1}.
        the {person1.one} {help1.past} the {person2.one} the {place1} in.
    """,
    "argument structure": """
        the {person1.one} {sleep1.past} and the {person2.one} {fix1.past} the {thing1.one}.
        the {person1.one} {fix1.past} and the {person2.one} {sleep1.past} the {thing1.one}.

        the {person1.one} {fix1.past} the {thing1.one} and the {person2.one} {sleep1.past}.
        the {person1.one} {sleep1.past} the {thing1.one} and the {person2.one} {fix1.past}.

        the {person1.one} who {sleep1.past} {fix1.past} the {thing1.one}.
        the {person1.one} who {fix1.past} {sleep1.past} the {thing1.one}.
    """,
    "complement": """
        the {person1.one} {want1.past} to {swim1.base} and {enjoy1.past} {swim2.ing}.
        the {person1.one} {enjoy1.past} to {swim1.base} and {want1.past} {swim2.ing}.

        the {person1.one} {enjoy1.past} {swim1.ing} but {he1} {want1.past} to {swim2.base}.
        the {person1.one} {want1.past} {swim1.ing} but {he1} {enjoy1.past} to {swim2.base}.

        the {person1.one} {enjoy1.past} {fix1.ing} the {thing1.one} that {she1} {want1.past} to {fix2.base}.
        the {person1.one} {want1.past} {fix1.ing} the {thing1.one} that {she1} {enjoy1.past} to {fix2.base}.
    """,
    "binding": """
        {he1} {help1.past} himself and {she1} {help2.past} herself.
        {he1} {help1.past} herself and {she1} {help2.past} himself.

        the {woman1.one} {help1.past} herself but the {man1.one} {help2.past} himself.
        the {woman1.one} {help1.past} himself but the {man1.one} {help2.past} herself.

        the {person1.one} {help1.past} herself in the {place1}.
        herself {help1.past} the {person1.one} in the {place1}.

        {he1} {think1.past} that {she1} {help1.past} herself.
        {she1} {think1.past} that {he1} {help1.past} herself.

        the {person1.one} {think1.past} that the {person2.many} {help1.past} themselves.
        the {person2.many} {think1.past} that the {person1.one} {help1.past} themselves.

        the {man1.one} near the {woman1.one} {help1.past} himself.
        the {woman1.one} near the {man1.one} {help1.past} himself.
    """,
    "determiner": """
        this {person1.one} {fix1.past} these {thing1.many}.
        these {person1.one} {fix1.past} this {thing1.many}.

        these {person1.many} {fix1.past} this {thing1.one}.
        this {person1.many} {fix1.past} these {thing1.one}.

        those {person1.many} {fix1.past} that {thing1.one}.
        that {person1.many} {fix1.past} those {thing1.one}.

        that {person1.one} {fix1.past} those {thing1.many}.
        those {person1.one} {fix1.past} that {thing1.many}.

        every {person1.one} {fix1.past} several {thing1.many}.
        several {person1.one} {fix1.past} every {thing1.many}.

        there is little {stuff1} but there are few {thing1.many} in the {place1}.
        there is few {stuff1} but there are little {thing1.many} in the {place1}.
    """,
    "wh": """
        what did the {person1.one} {fix1.base}?
        what the {person1.one} did {fix1.base}?

        what did the {person1.one} and the {person2.one} {fix1.base}?
        what did the {person1.one} {fix1.base} and the {person2.one}?

        what did the {person1.one} {fix1.base} before {fix2.ing} the {thing1.one}?
        what did the {person1.one} {fix1.base} the {thing1.one} before {fix2.ing}?

        {he1} knew what the {person1.one} {fix1.past} and that the {person2.one} {fix2.past} the {thing1.one}.
        {he1} knew that the {person1.one} {fix1.past} and what the {person2.one} {fix2.past} the {thing1.one}.
    """,
    "auxiliary": """
        the {person1.one} has {fix1.done} the {thing1.one} and is {swim1.ing}.
        the {person1.one} is {fix1.done} the {thing1.one} and has {swim1.ing}.

        the {person1.one} is {swim1.ing} and has {fix1.done} the {thing1.one}.
        the {person1.one} has {swim1.ing} and is {fix1.done} the {thing1.one}.

        is the {person1.one} who is {tired1} {swim1.ing}?
        is the {person1.one} who {tired1} is {swim1.ing}?

        the {person1.many} have been {swim1.ing} in the {place1}.
        the {person1.many} been have {swim1.ing} in the {place1}.

        the {person1.one} did not {fix1.base} the {thing1.one}.
        the {person1.one} not did {fix1.base} the {thing1.one}.
    """,
    "polarity": """
        no {person1.one} who {help1.past} the {person2.one} has ever {sleep1.done}.
        the {person1.one} who {help1.past} no {person2.one} has ever {sleep1.done}.

        the {person1.one} did not {help1.base} anyone.
        anyone did not {help1.base} the {person1.one}.

        nobody near {he1} has ever {sleep1.done}.
        {he1} near nobody has ever {sleep1.done}.
    """,
    "verb form": """
        the {person1.one} {take1.past} the {thing1.one} and has {take2.done} the {thing2.one}.
        the {person1.one} {take2.done} the {thing2.one} and has {take1.past} the {thing1.one}.

        {he1} has {take1.done} the {thing1.one} but {she1} {take2.past} the {thing2.one}.
        {he1} has {take2.past} the {thing2.one} but {she1} {take1.done} the {thing1.one}.

        {she1} {take1.past} the {thing1.one} but {he1} has {take2.done} the {thing2.one}.
        {she1} {take2.done} the {thing2.one} but {he1} has {take1.past} the {thing1.one}.

        the {person1.one} will {swim1.base} because the {person2.one} {sleep1.past}.
        the {person1.one} will {sleep1.past} because the {person2.one} {swim1.base}.

        the {person1.one} will {swim1.base} tomorrow because {he1} {sleep1.past} yesterday.
        the {person1.one} will {swim1.base} yesterday because {he1} {sleep1.past} tomorrow.
    """,
    "particle": """
        the {person1.one} {pick1.past} it {pick1.on}.
        the {person1.one} {pick1.past} {pick1.on} it.

        the {person1.one} {look1.past} {look1.on} him.
        the {person1.one} {look1.past} him {look1.on}.

        the {person1.one} {pick1.past} them {pick1.on} in the {place1}.
        the {person1.one} {pick1.past} {pick1.on} them in the {place1}.

        {she1} {look1.past} {look1.on} the {person1.one} in the {place1}.
        {she1} {look1.past} the {person1.one} {look1.on} in the {place1}.
    """,
    "case": """
        the {person1.one} {think1.past} that she {help1.past} him.
        the {person1.one} {think1.past} that him {help1.past} she.

        in the {place1} they {help1.past} her.
        in the {place1} her {help1.past} they.

        the {person1.one} {help1.past} us because we {sleep1.past}.
        the {person1.one} {help1.past} we because us {sleep1.past}.

        did he {help1.base} them in the {place1}?
        did them {help1.base} he in the {place1}?
    """,
    "coordination": """
        either {he1} or {she1} {help1.past} both the {person1.one} and the {person2.one}.
        either {he1} and {she1} {help1.past} both the {person1.one} or the {person2.one}.

        both {he1} and {she1} {help1.past} either the {person1.one} or the {person2.one}.
        both {he1} or {she1} {help1.past} either the {person1.one} and the {person2.one}.

        the {person1.one} {sleep1.past} and the {person2.one} {sleep2.past}.
        and the {person1.one} {sleep1.past} the {person2.one} {sleep2.past}.

        the {person1.one} is both {tired1} and {tired2}.
        the {person1.one} is {tired1} both and {tired2}.

        the {person1.one} {fix1.past} the {thing1.one} but not the {thing2.one}.
        the {person1.one} {fix1.past} but the {thing1.one} not the {thing2.one}.
    """,
    "comparison": """
        the {person1.one} is {tall1.more} than the {person2.one}.
        the {person1.one} is than the {person2.one} {tall1.more}.

        {he1} is {tall1.more} than {she1} but as {tall2.base} as the {person1.one}.
        {he1} is {tall2.base} than {she1} but as {tall1.more} as the {person1.one}.

        the {person1.one} is as {tall1.base} as {he1} and {tall2.more} than {she1}.
        the {person1.one} is as {tall1.base} than {he1} and {tall2.more} as {she1}.
    """,
}

_HELD_OUT: Mapping[str, str] = {
    "agreement": """
        the {person1.one} was {tired1} and the {person2.many} were {tired2}.
        the {person1.one} were {tired1} and the {person2.many} was {tired2}.

        does the {person1.one} {sleep1.base} and do the {person2.many} {sleep2.base}?
        do the {person1.one} {sleep1.base} and does the {person2.many} {sleep2.base}?
    """,
    "attractor": """
        the {person1.one} who the {person2.many} {help1.past} is {tired1}.
        the {person2.many} who the {person1.one} {help1.past} is {tired1}.

        the {person1.many} who {help1.past} the {person2.one} are {tired1}.
        the {person2.one} who {help1.past} the {person1.many} are {tired1}.
    """,
    "word order": """
        the {person1.one} will {fix1.base} the {thing1.one}.
        the {person1.one} {fix1.base} will the {thing1.one}.

        the {person1.one} {fix1.past} the {thing1.one} {quickly1}.
        the {person1.one} {fix1.past} {quickly1} the {thing1.one}.
    """,
    "argument structure": """
        after the {person1.one} {sleep1.past}, the {person2.one} {fix1.past} the {thing1.one}.
        after the {person1.one} {fix1.past}, the {person2.one} {sleep1.past} the {thing1.one}.

        the {person1.one} {give1.past} {she1} a {thing1.one} and {describe1.past} the {thing2.one}.
        the {person1.one} {describe1.past} {she1} a {thing1.one} and {give1.past} the {thing2.one}.
    """,
    "complement": """
        {he1} made the {person1.one} {swim1.base} and asked {she1} to {swim2.base}.
        {he1} asked the {person1.one} {swim1.base} and made {she1} to {swim2.base}.
    """,
    "binding": """
        {she1} asked {he1} to {help1.base} himself.
        {he1} asked {she1} to {help1.base} himself.

        the {woman1.one} who {help1.past} the {man1.one} {help2.past} herself.
        the {man1.one} who {help1.past} the {woman1.one} {help2.past} herself.

        {he1} {think1.past} that the {person1.many} {help1.past} each other.
        the {person1.many} {think1.past} that {he1} {help1.past} each other.
    """,
    "determiner": """
        {he1} has this {small1} {thing1.one} and those {small2} {thing2.many}.
        {he1} has those {small1} {thing1.one} and this {small2} {thing2.many}.

        there is too much {stuff1} and there are too many {thing1.many}.
        there is too many {stuff1} and there are too much {thing1.many}.
    """,
    "wh": """
        whose {thing1.one} did the {person1.one} {fix1.base}?
        whose did the {person1.one} {fix1.base} {thing1.one}?

        who did {he1} say that the {person1.one} had {help1.done}?
        who did {he1} say that had {help1.done} the {person1.one}?
    """,
    "auxiliary": """
        the {person1.one} must have {fix1.done} the {thing1.one}.
        the {person1.one} have must {fix1.done} the {thing1.one}.

        the {thing1.one} was {fix1.done} by the {person1.one} who had {sleep1.done}.
        the {thing1.one} had {fix1.done} by the {person1.one} who was {sleep1.done}.
    """,
    "polarity": """
        the {person1.one} who {sleep1.past} never {fix1.past} anything.
        the {person1.one} who never {sleep1.past} {fix1.past} anything.

        nobody who {help1.past} {she1} {fix1.past} any {thing1.many}.
        {she1} who {help1.past} nobody {fix1.past} any {thing1.many}.
    """,
    "verb form": """
        the {thing1.one} was {take1.done} when the {person1.one} {take2.past} the {thing2.one}.
        the {thing1.one} was {take2.past} when the {person1.one} {take1.done} the {thing2.one}.

        the {person1.one} will {swim1.base} next week but {he1} {sleep1.past} last week.
        the {person1.one} will {swim1.base} last week but {he1} {sleep1.past} next week.
    """,
    "particle": """
        the {person1.one} {pick1.past} it {pick1.on} and {look1.past} {look1.on} him.
        the {person1.one} {pick1.past} {pick1.on} it and {look1.past} him {look1.on}.

        who did the {person1.one} {look1.base} {look1.on}?
        who did the {person1.one} {look1.on} {look1.base}?
    """,
    "case": """
        after he {sleep1.past}, the {person1.one} {help1.past} him.
        after him {sleep1.past}, the {person1.one} {help1.past} he.

        in the {place1} his {person1.one} {help1.past} him.
        in the {place1} him {person1.one} {help1.past} his.
    """,
    "coordination": """
        the {person1.one} {help1.past} not only {he1} but also {she1}.
        the {person1.one} {help1.past} but also {he1} not only {she1}.

        neither the {person1.one} nor the {person2.one} has {sleep1.done}.
        nor the {person1.one} neither the {person2.one} has {sleep1.done}.
    """,
    "comparison": """
        the {person1.one} is {tall1.base} enough to {swim1.base} but too {tired1} to {swim2.base}.
        the {person1.one} is {tall1.base} too to {swim1.base} but enough {tired1} to {swim2.base}.
    """,
}

PHENOMENA: Mapping[str, Phenomenon] = {
    name: Phenomenon(_structures(_SHARED[name]), _structures(_HELD_OUT[name])) for name in _SHARED
}
