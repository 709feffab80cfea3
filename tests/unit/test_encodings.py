"""Encoded splits are the same from the cache, and what differs is never taken for the same."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from manytune.data import encodings, splits
from manytune.data.encodings import encode_cached
from manytune.data.splits import Encoded, Split, load_split
from manytune.data.tasks import get_task
from manytune.models.loading import load_tokenizer
from tiny import make_tiny

SETTINGS = {"template": "native", "max_length": 20}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "manytune" / "encoded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tokenizer") / "bert")


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def split() -> Split:
    whole = load_split(get_task("builtin-similarity"), "dev")
    return replace(whole, texts=whole.texts[:40], labels=whole.labels[:40])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """What was really encoded."""
    made: list[Split] = []
    real: Callable[..., Encoded] = splits.encode

    def encode(split: Split, *rest: object, **settings: object) -> Encoded:
        made.append(split)
        return real(split, *rest, **settings)

    monkeypatch.setattr(splits, "encode", encode)
    return made


def assert_same(one: Encoded, other: Encoded) -> None:
    for name in ("ids", "types", "offsets", "labels"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    assert one.truncated == other.truncated


def test_the_second_time_comes_from_the_cache(
    split: Split, tokenizer: PreTrainedTokenizerBase, folder: Path, calls: list[Split], cache: Path
) -> None:
    fresh = splits.encode(split, tokenizer, **SETTINGS)
    assert fresh.truncated > 0
    for _ in range(2):
        assert_same(encode_cached(split, tokenizer, **SETTINGS), fresh)
    assert_same(encode_cached(split, load_tokenizer(str(folder)), **SETTINGS), fresh)
    assert len(calls) == 2  # the one above, and the first of the three
    assert len(list(cache.iterdir())) == 1


def test_whatever_differs_is_encoded_anew(
    split: Split, tokenizer: PreTrainedTokenizerBase, folder: Path, calls: list[Split], tmp_path: Path
) -> None:
    encode_cached(split, tokenizer, **SETTINGS)
    encode_cached(split, tokenizer, template="native", max_length=21)
    encode_cached(split, tokenizer, template="spaced", max_length=20)
    encode_cached(replace(split, fingerprint="other"), tokenizer, **SETTINGS)
    changed = load_tokenizer(str(folder))
    changed.add_tokens(["surprising"])
    encode_cached(split, changed, **SETTINGS)
    assert len(calls) == 5


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY"])
def test_a_damaged_entry_is_made_anew(
    split: Split, tokenizer: PreTrainedTokenizerBase, calls: list[Split], cache: Path, damage: bytes
) -> None:
    fresh = encode_cached(split, tokenizer, **SETTINGS)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    for bad in (damage, whole[: len(whole) // 2]):
        entry.write_bytes(bad)
        assert_same(encode_cached(split, tokenizer, **SETTINGS), fresh)
        assert entry.read_bytes() == whole
    assert len(calls) == 3


def resaved(whole: bytes, **changed: Any) -> bytes:
    """An entry with other arrays."""
    file = BytesIO()
    with np.load(BytesIO(whole)) as arrays:
        np.savez(file, **{**arrays, **changed})
    return file.getvalue()


@pytest.mark.parametrize(
    "alter",
    [
        lambda whole: re.sub(rb"(PK\x01\x02.{4})..", lambda m: m[1] + b"\x01\x00", whole, flags=re.DOTALL),
        lambda whole: re.sub(rb"(PK\x01\x02.{6})..", lambda m: m[1] + b"\x63\x00", whole, flags=re.DOTALL),
        lambda whole: resaved(whole, offsets=np.array(3)),
        lambda whole: resaved(whole, ids=np.zeros((2, 2), dtype=np.int32)),
        lambda whole: resaved(whole, truncated=np.zeros(2)),
        lambda whole: resaved(whole, offsets=np.load(BytesIO(whole))["offsets"][::-1]),
    ],
    ids=["encrypted", "compression", "a number", "a table", "two counts", "order"],
)
def test_an_entry_of_odd_content_is_made_anew(
    split: Split, tokenizer: PreTrainedTokenizerBase, cache: Path, alter: Callable[[bytes], bytes]
) -> None:
    fresh = encode_cached(split, tokenizer, **SETTINGS)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(alter(whole))
    assert entry.read_bytes() != whole
    assert_same(encode_cached(split, tokenizer, **SETTINGS), fresh)
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_hinders_nothing(
    split: Split, tokenizer: PreTrainedTokenizerBase, calls: list[Split], tmp_path: Path
) -> None:
    (tmp_path / "manytune").write_text("a file where the folder should be")
    for _ in range(2):
        encode_cached(split, tokenizer, **SETTINGS)
    assert len(calls) == 2


def test_the_entries_used_least_lately_make_room(
    split: Split, tokenizer: PreTrainedTokenizerBase, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_cached(split, tokenizer, **SETTINGS)
    (first,) = cache.iterdir()
    monkeypatch.setattr(encodings, "_MOST_BYTES", int(2.5 * first.stat().st_size))
    os.utime(first, (1, 1))
    encode_cached(split, tokenizer, template="native", max_length=21)
    (second,) = set(cache.iterdir()) - {first}
    os.utime(second, (2, 2))
    encode_cached(split, tokenizer, **SETTINGS)  # used again
    encode_cached(split, tokenizer, template="native", max_length=22)
    assert first.exists()
    assert not second.exists()
    assert len(list(cache.iterdir())) == 2
