"""The words of the built-in tasks.

Every class of content words has some for train and others for dev: no content word of dev occurs in train.
Words are written as a dictionary would list them; a regular word is its base form alone, an irregular one lists
its forms with slashes between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["FUNCTION_WORDS", "LEXICON", "Adjective", "Noun", "Plain", "Verb", "with_ed", "with_ing", "with_s"]

VOWELS = "aeiou"


@dataclass(frozen=True)
class Plain:
    """A word with one form: a name, an adverb, a place."""

    base: str

    def __str__(self) -> str:
        return self.base


@dataclass(frozen=True)
class Noun:
    """A noun that can be counted: `one` box, `many` boxes."""

    one: str
    many: str


@dataclass(frozen=True)
class Adjective:
    """An adjective and its comparative: `base` tall, `more` taller."""

    base: str
    more: str


@dataclass(frozen=True)
class Verb:
    """A verb in all its forms: take, takes, took, (has) taken, taking; `on` is its preposition or particle."""

    base: str
    s: str
    past: str
    done: str
    ing: str
    on: str = ""


def _is_consonant_y(word: str) -> bool:
    return word.endswith("y") and word[-2] not in VOWELS


def with_s(word: str) -> str:
    """The regular plural of a noun and the regular third person of a verb.

    >>> [with_s(word) for word in ("box", "key", "carry")]
    ['boxes', 'keys', 'carries']
    """
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if _is_consonant_y(word) else word + "s"


def with_ed(word: str) -> str:
    """The regular past tense, for verbs whose last consonant is not doubled.

    >>> [with_ed(word) for word in ("help", "bake", "carry")]
    ['helped', 'baked', 'carried']
    """
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if _is_consonant_y(word) else word + "ed"


def with_ing(word: str) -> str:
    """The regular -ing form, for verbs whose last consonant is not doubled.

    >>> [with_ing(word) for word in ("help", "bake", "agree")]
    ['helping', 'baking', 'agreeing']
    """
    return word[:-1] + "ing" if word.endswith("e") and not word.endswith("ee") else word + "ing"


def _plain(text: str) -> Plain:
    return Plain(text)


def _noun(text: str) -> Noun:
    one, _, many = text.partition("/")
    return Noun(one, many or with_s(one))


def _adjective(text: str) -> Adjective:
    base, _, more = text.partition("/")
    return Adjective(base, more or base + ("r" if base.endswith("e") else "er"))


def _verb(text: str) -> Verb:
    """Base; base/past; base/past/participle; or base/past/participle/-ing; then `+on`."""
    forms, _, on = text.partition("+")
    base, *rest = forms.split("/")
    past = rest[0] if rest else with_ed(base)
    done = rest[1] if len(rest) > 1 else past
    ing = rest[2] if len(rest) > 2 else with_ing(base)
    return Verb(base, with_s(base), past, done, ing, on)


Word = Plain | Noun | Adjective | Verb

# class: (how its words are read, the words of train, the words of dev)
_CLASSES: Mapping[str, tuple[Callable[[str], Word], str, str]] = {
    "person": (
        _noun,
        "nurse lawyer teacher farmer student driver painter doctor writer tourist banker actor "
        "singer dancer hunter reporter professor secretary cousin client",
        "judge guard pilot baker soldier poet sailor clerk manager scientist visitor neighbor",
    ),
    "man": (_noun, "boy man/men king uncle", "prince brother father waiter"),
    "woman": (_noun, "girl woman/women queen aunt", "princess sister mother waitress"),
    "he": (_plain, "John Peter David Michael Robert", "Tom Paul James George Henry"),
    "she": (_plain, "Mary Anna Susan Laura Jane", "Alice Emma Helen Sarah Julia"),
    "thing": (
        _noun,
        "box key letter book lamp chair map cup bag table camera ring",
        "bottle basket mirror clock radio phone guitar knife/knives",
    ),
    "stuff": (_plain, "water rice milk", "sugar sand soup"),
    "place": (_plain, "garden kitchen park school hotel", "office library station market"),
    # Verbs that must have an object.
    "fix": (
        _verb,
        "fix borrow carry find/found bring/brought buy/bought deliver discover use",
        "repair damage keep/kept remove replace hold/held",
    ),
    # ... and whose past tense and participle differ.
    "take": (
        _verb,
        "take/took/taken hide/hid/hidden forget/forgot/forgotten/forgetting see/saw/seen choose/chose/chosen",
        "steal/stole/stolen throw/threw/thrown break/broke/broken shake/shook/shaken draw/drew/drawn",
    ),
    # Verbs that must have an object, which may be oneself.
    "help": (
        _verb,
        "blame praise help trust admire watch invite visit thank describe",
        "warn defend respect criticize protect forgive/forgave/forgiven",
    ),
    # Verbs that cannot have an object.
    "sleep": (
        _verb,
        "sleep/slept laugh smile arrive faint hesitate sneeze scream wait",
        "cry tremble sigh disappear kneel/knelt weep/wept cough",
    ),
    "swim": (
        _verb,
        "swim/swam/swum/swimming dance cook run/ran/run/running sing/sang/sung jump play",
        "travel/traveled/traveled/traveling paint climb hunt fish",
    ),
    "think": (_verb, "think/thought say/said know/knew/known claim", "believe report argue insist"),
    "give": (_verb, "give/gave/given send/sent", "lend/lent offer"),
    "describe": (_verb, "explain return", "donate mention"),
    # Verbs that want an infinitive ...
    "want": (_verb, "want decide hope agree", "refuse promise manage wish"),
    # ... and verbs that want an -ing form.
    "enjoy": (_verb, "enjoy finish avoid consider", "deny suggest imagine practice"),
    # A verb with a preposition, which goes before a pronoun ...
    "look": (_verb, "look+after rely+on long+for listen+to", "depend+on care+for stare+at deal+with"),
    # ... and a verb with a particle, which goes after it.
    "pick": (
        _verb,
        "pick+up put/put/put/putting+down call+back wake/woke/woken/waking+up",
        "write/wrote/written+down switch+off hand+over lock+up",
    ),
    "tired": (
        _plain,
        "tired hungry happy angry famous careful",
        "nervous thirsty proud polite lazy curious",
    ),
    "tall": (_adjective, "tall old young strong", "short rich fast brave"),
    "small": (_plain, "small heavy new red", "large cheap green dirty"),
    "quickly": (_plain, "quickly slowly quietly", "carefully suddenly happily"),
    "near": (_plain, "near behind", "beside opposite"),
}
