"""The words of the built-in tasks.

Every class has words for train and others for dev: within a task, no content word of dev occurs in train.
The words of a class stand as its reader in `words` takes them. A class without words for train belongs to
structures that only dev has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from builtin_data.words import Adjective, Noun, Plain, Scale, Stance, Verb, Word

__all__ = ["SYNONYMS", "WORDS"]

_WORDS: Mapping[str, tuple[Callable[[str], Word], str, str]] = {
    "person": (
        Noun.parse,
        "nurse lawyer teacher farmer student driver painter doctor writer tourist banker actor "
        "singer dancer hunter reporter professor secretary cousin client",
        "judge guard pilot baker soldier poet sailor clerk manager scientist visitor neighbor",
    ),
    "man": (Noun.parse, "boy man/men king uncle", "prince brother father waiter"),
    "woman": (Noun.parse, "girl woman/women queen aunt", "princess sister mother waitress"),
    "he": (Plain.parse, "John Peter David Michael Robert", "Tom Paul James George Henry"),
    "she": (Plain.parse, "Mary Anna Susan Laura Jane", "Alice Emma Helen Sarah Julia"),
    "thing": (
        Noun.parse,
        "box key letter book lamp chair map cup bag table camera ring",
        "bottle basket mirror clock radio phone guitar knife/knives",
    ),
    "stuff": (Plain.parse, "water rice milk", "sugar sand soup"),
    "place": (Plain.parse, "garden kitchen park school hotel", "office library station market"),
    # Must have an object.
    "fix": (
        Verb.parse,
        "fix borrow carry find/found bring/brought buy/bought deliver discover use",
        "repair damage keep/kept remove replace hold/held",
    ),
    # Must have an object; past tense and participle differ.
    "take": (
        Verb.parse,
        "take/took/taken hide/hid/hidden forget/forgot/forgotten/forgetting see/saw/seen choose/chose/chosen",
        "steal/stole/stolen throw/threw/thrown break/broke/broken shake/shook/shaken draw/drew/drawn",
    ),
    # Must have an object, which can be oneself.
    "help": (
        Verb.parse,
        "blame praise help trust admire watch invite visit thank",
        "warn defend respect criticize protect forgive/forgave/forgiven",
    ),
    # Cannot have an object.
    "sleep": (
        Verb.parse,
        "sleep/slept laugh smile arrive faint hesitate sneeze scream wait",
        "cry tremble sigh disappear kneel/knelt weep/wept cough",
    ),
    # What one can want to do and enjoy doing.
    "swim": (
        Verb.parse,
        "swim/swam/swum/swimming dance cook run/ran/run/running sing/sang/sung jump play",
        "travel/traveled/traveled/traveling paint climb hunt fish",
    ),
    "think": (Verb.parse, "think/thought say/said claim guess", "believe report argue insist"),
    # Gives somebody something ...
    "give": (Verb.parse, "give/gave/given send/sent", "lend/lent offer"),
    # ... or something, to somebody.
    "describe": (Verb.parse, "describe explain reveal", "donate mention"),
    # Wants an infinitive ...
    "want": (Verb.parse, "want decide hope agree", "refuse promise manage wish"),
    # ... or an -ing form.
    "enjoy": (Verb.parse, "enjoy finish avoid consider", "deny suggest imagine practice"),
    # Has a preposition, which goes before a pronoun ...
    "look": (
        Verb.parse,
        "look+after rely+on long+for listen+to",
        "depend+on care+for stare+at deal/dealt+with",
    ),
    # ... or a particle, which goes after it.
    "pick": (
        Verb.parse,
        "pick+up put/put/put/putting+down call+back wake/woke/woken+up",
        "write/wrote/written+down switch+off hand+over lock+up",
    ),
    "tired": (
        Plain.parse,
        "tired hungry happy angry famous careful",
        "nervous thirsty proud polite lazy curious",
    ),
    "tall": (Adjective.parse, "tall old young strong", "short rich fast brave"),
    "small": (Plain.parse, "small heavy new red", "large cheap green dirty"),
    "quickly": (Plain.parse, "", "carefully suddenly happily"),
}

# Words joined by = mean the same.
_SYNONYMS: Mapping[str, tuple[Callable[[str], Word | tuple[Word, ...]], str, str]] = {
    "person": (
        Noun.parse,
        "doctor=physician lawyer=attorney writer=author thief/thieves=robber child/children=kid boss=chief "
        "policeman/policemen=cop student=pupil tourist=traveler helper=assistant shopper=customer friend=pal",
        "teacher=instructor soldier=warrior singer=vocalist worker=laborer manager=director "
        "king=monarch/monarchs priest=pastor journalist=reporter guest=visitor",
    ),
    "he": (Plain.parse, "John Peter David Michael Robert", "Tom Paul James George Henry"),
    "she": (Plain.parse, "Mary Anna Susan Laura Jane", "Alice Emma Helen Sarah Julia"),
    "thing": (
        Plain.parse,
        "car=automobile gift=present jacket=coat bag=sack cup=mug stone=rock picture=photo",
        "boat=ship bike=bicycle sofa=couch journal=diary hat=cap",
    ),
    "place": (
        Plain.parse,
        "shop=store forest=woods street=road cellar=basement garden=yard",
        "bar=pub harbor=port hotel=inn hallway=corridor",
    ),
    "idea": (
        Plain.parse,
        "offer=proposal plan=scheme rule=regulation",
        "story=tale law=statute advice=guidance",
    ),
    "smart": (
        Plain.parse,
        "smart=clever sad=unhappy tired=exhausted rich=wealthy odd=strange old=elderly calm=relaxed",
        "brave=courageous angry=furious thin=slim lazy=idle nervous=anxious rude=impolite",
    ),
    "help": (
        Verb.parse,
        "help=assist scare=frighten save=rescue chase=pursue call=phone hit/hit=strike/struck fire=dismiss "
        "watch=observe",
        "attack=assault hire=employ welcome=greet annoy=bother trick=deceive select=choose/chose/chosen",
    ),
    "give": (
        Verb.parse,
        "give/gave/given=hand send/sent=mail show/showed/shown=display",
        "lend/lent=loan bring/brought=deliver throw/threw/thrown=toss",
    ),
    "leave": (
        Verb.parse,
        "leave/left=depart laugh=giggle smile=grin/grinned sleep/slept=doze",
        "vanish=disappear cry=weep/wept shout=yell talk=speak/spoke",
    ),
    "accept": (
        Stance.parse,
        "accept|reject remember|forget/forgot obey|disobey like|dislike",
        "trust|distrust support|oppose believe|doubt follow|ignore",
    ),
    "taller": (Scale.parse, "", "taller|shorter older|younger stronger|weaker faster|slower"),
}


def _synonyms(read: Callable[[str], Word | tuple[Word, ...]], text: str) -> tuple[Word, ...]:
    words = [read(word) for word in text.split("=")]
    return tuple(word for item in words for word in (item if isinstance(item, tuple) else (item,)))


_COLUMN = {"train": 0, "dev": 1}

WORDS: Mapping[str, Mapping[str, tuple[Word, ...]]] = {
    split: {name: tuple(map(read, texts[column].split())) for name, (read, *texts) in _WORDS.items()}
    for split, column in _COLUMN.items()
}
"""Split, then class, to words: those of builtin-acceptability."""

SYNONYMS: Mapping[str, Mapping[str, tuple[tuple[Word, ...], ...]]] = {
    split: {
        name: tuple(_synonyms(read, word) for word in texts[column].split())
        for name, (read, *texts) in _SYNONYMS.items()
    }
    for split, column in _COLUMN.items()
}
"""Split, then class, to sets of words that mean the same: those of builtin-similarity."""
