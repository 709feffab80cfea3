from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from manytune.storage.artifacts import (
    Examples,
    Learned,
    Structure,
    Trained,
    predictions_from_bytes,
    predictions_to_bytes,
)
from manytune.utils.errors import StoreError


def logits(rows: int = 50, outputs: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, outputs)).astype(np.float32)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_logits_come_back_bit_for_bit(outputs: int) -> None:
    before = logits(outputs=outputs)
    after = predictions_from_bytes(predictions_to_bytes(before), "here")
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after, before)


def test_the_same_logits_give_the_same_bytes_on_any_day() -> None:
    data = predictions_to_bytes(logits())
    assert data == predictions_to_bytes(logits()[::-1][::-1])  # whatever the array's strides
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (entry,) = archive.infolist()
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)
    assert entry.compress_type == zipfile.ZIP_DEFLATED


def test_an_ordinary_npz_is_what_it_is() -> None:
    with np.load(io.BytesIO(predictions_to_bytes(logits()))) as archive:
        np.testing.assert_array_equal(archive["logits"], logits())


def npz(array: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, logits=np.array(array))
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no zip",
        predictions_to_bytes(logits())[:-30],
        npz([1.0, 2.0]),
        npz(np.zeros((2, 2), dtype=np.float16)),
        npz(np.array([[{"a": "pickle"}]], dtype=object)),
    ],
    ids=["empty", "text", "torn", "vector", "float16", "pickle"],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"runs/x/predictions\.npz is damaged"):
        predictions_from_bytes(data, "runs/x/predictions.npz")


def test_examples_come_back() -> None:
    examples = Examples(texts=(("<a> & ü\u2028",), ("b",)), labels=(0.0, 1.0), parts={"first": (0, 1)})
    assert Examples.from_json(examples.to_json(), "here") == examples


def test_a_text_without_a_label_is_refused() -> None:
    with pytest.raises(StoreError, match="2 texts and 1 labels"):
        Examples.from_json('{"texts": [["a"], ["b"]], "labels": [1]}', "here")


def test_a_structure_comes_back_in_its_order() -> None:
    structure = Structure(
        model="minilm",
        tensors={"z.weight": (2, 3), "a.bias": (2,)},
        head={"classifier.weight": (2, 2)},
        trained={
            "lora r=2": Trained(weights=False, adapters=(("z", 8),), adapter_label="r=2", head=("classifier.weight",))
        },
    )
    again = Structure.from_json(structure.to_json(), "here")
    assert again == structure
    assert list(again.tensors) == ["z.weight", "a.bias"]


def test_adapters_of_earlier_versions_are_read() -> None:
    """They were kept as a rank and the layers that have an update of it."""
    kept = {
        "model": "minilm",
        "tensors": {"z.weight": [2, 3]},
        "head": {},
        "trained": {
            "lora r=4": {"weights": False, "biases": [], "lora_rank": 4, "lora_targets": ["z"], "head": []},
            "full": {"weights": True, "biases": [], "lora_rank": None, "lora_targets": [], "head": []},
        },
    }
    read = Structure.from_json(json.dumps(kept), "here").trained
    assert read["lora r=4"] == Trained(weights=False, adapters=(("z", 20),), adapter_label="r=4")
    assert read["full"] == Trained(weights=True)
    kept["tensors"] = {}
    with pytest.raises(StoreError, match="here is damaged"):
        Structure.from_json(json.dumps(kept), "here")


def test_logits_in_fp64_keep_their_digits() -> None:
    before = 1_700_000_000 + logits().astype(np.float64)
    after = predictions_from_bytes(predictions_to_bytes(before), "here")
    assert after.dtype == np.float64
    np.testing.assert_array_equal(after, before)


def test_what_was_learned_in_fp32_agrees_with_the_same_in_fp64() -> None:
    now = Learned(target_range=(4.2, 9.7), center=6.1, spread=1.3)
    before = Learned(target_range=(float(np.float32(4.2)), float(np.float32(9.7))), center=6.1 + 1e-7, spread=1.3)
    assert before != now
    assert before.agrees(now)
    for other in ({"center": 6.2}, {"spread": 1.4}, {"target_range": (4.2, 9.8)}, {"center": None, "spread": None}):
        assert not now.agrees(now.model_copy(update=other)), other
    assert not Learned(labels=("a", "b")).agrees(Learned(labels=("b", "a")))
    assert Learned(labels=("a", "b")).agrees(Learned(labels=("a", "b")))
