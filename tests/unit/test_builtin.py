"""The built-in tasks: fixed, balanced, well-formed, and out of reach for whoever only counts words."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import matthews_corrcoef

from builtin_data.__main__ import FILE, content
from builtin_data.frames import FRAMES, KEPT
from builtin_data.grammar import Draw, sentence, slots, word_class
from builtin_data.lexicon import SYNONYMS, WORDS
from builtin_data.rows import acceptability, graded_pairs, minimal_pairs, similarity
from builtin_data.structures import PHENOMENA
from builtin_data.words import Adjective, Noun, Plain, Stance, Verb, with_ed, with_ing, with_s
from manytune.data.sources import read_rows
from manytune.data.splits import load_split
from manytune.data.tasks import get_task
from manytune.utils.errors import DataError

SPLITS = ("train", "dev")
ROWS: dict[str, Callable[[Any], Sequence[tuple[Any, ...]]]] = {
    "builtin-acceptability": acceptability,
    "builtin-similarity": similarity,
}
PAIRS = {split: minimal_pairs(split) for split in SPLITS}
GRADED = {split: graded_pairs(split) for split in SPLITS}

QUESTION_WORDS = {"did", "do", "does", "is", "what", "who", "whose"}
BAG_OF_WORDS_SPEARMAN = 0.25


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def literals(templates: Iterable[str]) -> set[str]:
    """The words that templates hold themselves: function words, mostly."""
    return set(words(re.sub(r"{[^}]*}", " ", " ".join(templates))))


# Train and dev have no other words in common.
SHARED_LITERALS = {
    "builtin-acceptability": literals(
        template for phenomenon in PHENOMENA.values() for template, _ in phenomenon.shared
    )
    | {verb.on for name in ("look", "pick") for verb in WORDS["train"][name] if isinstance(verb, Verb)},
    "builtin-similarity": {"did", "not"} | literals(form for frame in FRAMES for form in frame.forms),
}


def sentences(task: str, split: str) -> list[str]:
    width = len(get_task(task).text_columns)
    return [text for row in ROWS[task](split) for text in row[:width]]


class TestBoth:
    @pytest.mark.parametrize(
        ("task", "split", "digest"),
        [
            ("builtin-acceptability", "train", "0a28e94af17eb9be060831362435709f066360e5dfdd88ad115e8258fd5cbbb6"),
            ("builtin-acceptability", "dev", "a9ee02d295abee30a8993f9b79f3b9cdfc3496c0a8b1e131d3dc5cfc6fe88e94"),
            ("builtin-similarity", "train", "4d7a33448c4d54a78f3cf37c29aeda3b248aa2cdc299b30e04f44f920e4a1aa1"),
            ("builtin-similarity", "dev", "79ac576e92722f32221ab13388ebe4db819a8e24e4e5e6515f75cb567e5b8b08"),
        ],
    )
    def test_the_rows_never_change(self, task: str, split: str, digest: str) -> None:
        assert hashlib.sha256(json.dumps(ROWS[task](split)).encode()).hexdigest() == digest

    @pytest.mark.parametrize("task", ROWS)
    @pytest.mark.parametrize("split", SPLITS)
    def test_no_row_comes_twice(self, task: str, split: str) -> None:
        width = len(get_task(task).text_columns)
        texts = [frozenset(row[:width]) for row in ROWS[task](split)]
        assert len(texts) == len(set(texts))
        assert {len(each) for each in texts} == {width}

    @pytest.mark.parametrize("task", ROWS)
    def test_train_and_dev_share_no_sentence(self, task: str) -> None:
        assert not set(sentences(task, "train")) & set(sentences(task, "dev"))

    @pytest.mark.parametrize("task", ROWS)
    @pytest.mark.parametrize("split", SPLITS)
    def test_sentences_are_well_formed(self, task: str, split: str) -> None:
        for text in sentences(task, split):
            assert re.fullmatch(r"[A-Z][a-z]*(,? [A-Za-z]+)+[.?]", text), text
            assert 4 <= len(words(text)) <= 15, text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\b(\w+) \1\b", text.lower()), text
            asks = task == "builtin-acceptability" and words(text)[0] in QUESTION_WORDS
            assert text.endswith("?") == asks, text

    def test_an_article_is_there_to_be_checked(self) -> None:
        assert sum(" a " in text for text in sentences("builtin-acceptability", "train")) >= 20

    @pytest.mark.parametrize("task", ROWS)
    def test_dev_has_content_words_of_its_own_only(self, task: str) -> None:
        train, dev = ({word for text in sentences(task, split) for word in words(text)} for split in SPLITS)
        assert train & dev <= SHARED_LITERALS[task]
        assert len(dev - train) >= 100

    @pytest.mark.parametrize("lexicon", [WORDS, SYNONYMS], ids=["words", "synonyms"])
    def test_every_class_of_words_has_some_held_out(self, lexicon: Any) -> None:
        assert lexicon["train"].keys() == lexicon["dev"].keys()
        for name, held_out in lexicon["dev"].items():
            assert len(held_out) >= 2, name
            assert not set(held_out) & set(lexicon["train"][name]), name

    @pytest.mark.parametrize("task", ROWS)
    def test_an_unknown_split_is_refused(self, task: str) -> None:
        with pytest.raises(DataError, match=r"'test' is not one of: train, dev\."):
            load_split(get_task(task), "test")


class TestFile:
    def test_it_is_what_the_grammars_generate(self) -> None:
        with gzip.open(FILE) as file:
            lines, generated = file.read().splitlines(), content().splitlines()
        assert len(lines) == 1 + 2 * 15 * (54 + 15) + 1440 + 420
        for line, wanted in zip(lines, generated, strict=True):
            assert line == wanted
        assert json.loads(lines[0])["license"] == "Apache-2.0"

    @pytest.mark.parametrize("task", ROWS)
    @pytest.mark.parametrize("split", SPLITS)
    def test_the_package_reads_every_row_in_order(self, task: str, split: str) -> None:
        raw, generated = read_rows(get_task(task), split), ROWS[task](split)
        assert [(*texts, label) for texts, label in zip(raw.texts, raw.labels, strict=True)] == [
            row[:-1] for row in generated
        ]
        assert raw.source == "builtin"
        assert raw.place(1) == f"{task}, {split}, row 2"

    def test_the_command_writes_the_same_file_anew(self, tmp_path: Path) -> None:
        copy = tmp_path / "scripts" / "builtin_data"
        shutil.copytree(FILE.parents[3] / "scripts" / "builtin_data", copy)
        written = tmp_path / FILE.relative_to(FILE.parents[3])
        written.parent.mkdir(parents=True)
        command = [sys.executable, "-m", "builtin_data"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(copy.parent)}, cwd=tmp_path)
        assert gzip.decompress(written.read_bytes()) == gzip.decompress(FILE.read_bytes())


class TestAcceptability:
    def test_sizes_and_balance(self) -> None:
        for split, size in (("train", 108), ("dev", 30)):
            counts = Counter((label, phenomenon) for _, label, phenomenon in acceptability(split))
            assert counts == {(label, name): size // 2 for label in (0, 1) for name in PHENOMENA}
        assert len(PHENOMENA) == 15

    @pytest.mark.parametrize("split", SPLITS)
    def test_both_sentences_of_a_pair_are_in(self, split: str) -> None:
        rows = [(pair.good, 1, pair.phenomenon) for pair in PAIRS[split]]
        rows += [(pair.bad, 0, pair.phenomenon) for pair in PAIRS[split]]
        assert sorted(acceptability(split)) == sorted(rows)
        assert acceptability(split)[: len(rows) // 2] != rows[: len(rows) // 2]

    @pytest.mark.parametrize("split", SPLITS)
    def test_both_sentences_of_a_pair_have_the_same_words(self, split: str) -> None:
        for pair in PAIRS[split]:
            assert sorted(words(pair.good)) == sorted(words(pair.bad)), pair
            assert len(pair.good) == len(pair.bad), pair

    def test_a_third_of_dev_has_structures_that_train_lacks(self) -> None:
        train = {pair.structure for pair in PAIRS["train"]}
        assert train == {structure for each in PHENOMENA.values() for structure in each.shared}
        held_out = Counter(pair.phenomenon for pair in PAIRS["dev"] if pair.structure not in train)
        assert held_out == dict.fromkeys(PHENOMENA, 5)

    @pytest.mark.parametrize("lowercase", [True, False])
    def test_counting_words_does_not_help(self, lowercase: bool) -> None:
        train, dev = acceptability("train"), acceptability("dev")
        counts = CountVectorizer(lowercase=lowercase).fit([text for text, *_ in train])
        model = LogisticRegression(max_iter=1000)
        model.fit(counts.transform([text for text, *_ in train]), [label for _, label, _ in train])
        predicted = model.predict(counts.transform([text for text, *_ in dev]))
        assert abs(matthews_corrcoef([label for _, label, _ in dev], predicted)) <= 0.1


class TestGrammar:
    @pytest.mark.parametrize(
        ("word", "forms"),
        [
            ("help", ["helps", "helped", "helping"]),
            ("hope", ["hopes", "hoped", "hoping"]),
            ("carry", ["carries", "carried", "carrying"]),
            ("annoy", ["annoys", "annoyed", "annoying"]),
            ("fix", ["fixes", "fixed", "fixing"]),
            ("watch", ["watches", "watched", "watching"]),
            ("agree", ["agrees", "agreed", "agreeing"]),
        ],
    )
    def test_regular_forms(self, word: str, forms: list[str]) -> None:
        assert [with_s(word), with_ed(word), with_ing(word)] == forms

    def test_words_are_read_in_all_their_forms(self) -> None:
        assert Verb.parse("wake/woke/woken+up") == Verb("wake", "wakes", "woke", "woken", "waking", "up")
        assert Verb.parse("run/ran/run/running").ing == "running"
        assert Verb.parse("sleep/slept").done == "slept"
        assert Noun.parse("knife/knives") == Noun("knife", "knives")
        assert Noun.parse("key").other == Noun("keys", "key")
        assert [Adjective.parse(text).more for text in ("tall", "brave", "good/better")] == [
            *("taller", "braver", "better")
        ]
        assert Stance.parse("accept|reject") == (
            Stance("accepted", "rejected"),
            Stance("accepted", "did not accept"),
            Stance("did not reject", "rejected"),
        )

    def test_a_slot_is_filled_with_one_word(self) -> None:
        template = "the {person1.one} saw {she1} and the {person1.many}."
        assert slots(template) == ["person1", "she1"]
        assert [word_class(slot) for slot in slots(template)] == ["person", "she"]
        filled = sentence(template, {"person1": Noun("child", "children"), "she1": Plain("Mary")})
        assert filled == "The child saw Mary and the children."

    def test_draws_rest_on_what_python_promises_to_keep(self) -> None:
        draw, uniform = Draw(3), random.Random(3).random
        assert [draw.below(10) for _ in range(20)] == [int(10 * uniform()) for _ in range(20)]
        assert Draw(5).shuffled("abcdefgh") == list("badcghfe")

    @given(st.integers(0, 2**32), st.lists(st.integers()))
    def test_a_shuffle_loses_nothing(self, seed: int, items: list[int]) -> None:
        assert sorted(Draw(seed).shuffled(items)) == sorted(items)


class TestSimilarity:
    def test_sizes_and_scores(self) -> None:
        assert [len(similarity(split)) for split in SPLITS] == [1440, 420]
        for split in SPLITS:
            scores = np.array([score for *_, score, _ in similarity(split)])
            assert scores.min() == 0
            assert 4.8 <= scores.max() <= 5
            assert len(set(scores)) >= 40
            assert 1.5 <= scores.mean() <= 3

    @pytest.mark.parametrize("split", SPLITS)
    def test_the_score_follows_from_the_kinds_of_change(self, split: str) -> None:
        seen: set[str] = set()
        for first, second, score, kind in similarity(split):
            kinds = [] if kind == "paraphrase" else kind.split("+")
            seen.update(kinds)
            assert kinds == sorted(kinds, key=list(KEPT).index)
            full = 5 * math.prod(KEPT[each] for each in kinds)
            assert 0.9 * full - 0.005 <= score <= full + 0.005, (first, second, kind)
        assert seen == set(KEPT)

    @pytest.mark.parametrize("split", SPLITS)
    def test_rows_come_by_twos_with_one_sentence_in_common(self, split: str) -> None:
        pairs = GRADED[split]
        for one, other in zip(pairs[::2], pairs[1::2], strict=True):
            assert one.first == other.first or one.second == other.second
            assert one.score > other.score
        rows = [(pair.first, pair.second, pair.score, pair.kind) for pair in pairs]
        assert sorted(similarity(split)) == sorted(rows)

    @pytest.mark.parametrize("split", SPLITS)
    def test_exchanges_keep_every_word(self, split: str) -> None:
        checked = 0
        for one, other in zip(GRADED[split][::2], GRADED[split][1::2], strict=True):
            if set(other.kind.split("+")) & {"roles", "descriptions", "order"}:
                assert sorted(words(one.first + one.second)) == sorted(words(other.first + other.second))
                assert other.score < 0.7 * one.score
                checked += 1
        assert checked >= len(GRADED[split]) // 4

    def test_dev_has_forms_and_a_frame_that_train_lacks(self) -> None:
        train, dev = ({form for pair in GRADED[split] for form in pair.forms} for split in SPLITS)
        assert train == {form for frame in FRAMES if not frame.held_out for form in frame.forms}
        assert dev == {form for frame in FRAMES for form in frame.forms + frame.held_out_forms}
        assert {pair.frame.name for pair in GRADED["dev"] if pair.frame.held_out} == {"comparison"}
        new = sum(not set(pair.forms) <= train for pair in GRADED["dev"])
        assert 0.5 <= new / len(GRADED["dev"]) <= 0.6

    def test_counting_words_hardly_helps(self) -> None:
        train, dev = similarity("train"), similarity("dev")
        counts = CountVectorizer().fit([text for row in train for text in row[:2]])

        def features(rows: Sequence[tuple[str, str, float, str]]) -> np.ndarray:
            one, other = (counts.transform([row[i] for row in rows]).toarray() for i in (0, 1))
            return np.hstack([abs(one - other), one * other, one + other, [shallow(*row[:2]) for row in rows]])

        target = [score for *_, score, _ in dev]
        for strength in (1, 10, 100):
            model = Ridge(alpha=strength).fit(features(train), [score for *_, score, _ in train])
            assert spearmanr(model.predict(features(dev)), target).statistic <= BAG_OF_WORDS_SPEARMAN
        for column in np.array([shallow(*row[:2]) for row in dev]).T:
            assert abs(spearmanr(column, target).statistic) <= BAG_OF_WORDS_SPEARMAN


def shallow(first: str, second: str) -> list[float]:
    """What can be had of a pair without reading it: words in common, their share, and lengths."""
    one, other = set(words(first)), set(words(second))
    lengths = [len(words(first)), len(words(second))]
    return [len(one & other), len(one & other) / len(one | other), *lengths, abs(lengths[0] - lengths[1])]
