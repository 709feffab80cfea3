from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manytune.config import Study
from manytune.config.plan import plan_runs
from manytune.data.splits import Encoded, Split, encode, load_split, load_task
from manytune.data.tasks import Task, get_task
from manytune.training.workload import TaskWork, prepare
from manytune.utils.errors import DataError, ModelError
from tiny import make_tiny

ACCEPTABILITY, SIMILARITY = "builtin-acceptability", "builtin-similarity"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def work(tiny: Path, task: str, methods: list[Mapping[str, Any]] | None = None, **study: Any) -> TaskWork:
    methods = methods or [{"method": "head", "learning_rate": 1e-3}]
    data = {"name": "s", "model": str(tiny), "tasks": [task], "seeds": [0, 1], "methods": methods, **study}
    return prepare(Study.from_dict(data), task)


def test_dev_selects_with_all_of_train(tiny: Path) -> None:
    ready = work(tiny, ACCEPTABILITY)
    data = ready.pack_data(plan_runs(ready.study))
    assert data.select is ready.dev
    assert ready.train_size == ready.train.size
    for rows, everything in ((data.train_rows, ready.train.size), (data.select_rows, ready.dev.size)):
        assert len(rows) == 2
        for own in rows:
            np.testing.assert_array_equal(own, np.arange(everything))


def test_a_share_of_train_selects_by_seed(tiny: Path) -> None:
    ready = work(tiny, ACCEPTABILITY, selection="train-split")
    data = ready.pack_data(plan_runs(ready.study))
    assert data.select is ready.train
    for train, select in zip(data.train_rows, data.select_rows, strict=True):
        assert len(train) == ready.train_size
        np.testing.assert_array_equal(np.sort(np.concatenate([train, select])), np.arange(ready.train.size))
        assert 0.09 < len(select) / ready.train.size < 0.11
    assert not np.array_equal(data.select_rows[0], data.select_rows[1])


def test_cut_rows_are_counted_and_said(tiny: Path) -> None:
    ready = work(tiny, ACCEPTABILITY, training={"max_length": 12})
    assert ready.train.lengths.max() == 12
    assert ready.notes == [
        f"{ACCEPTABILITY}: {ready.train.truncated:,} of {ready.train.size:,} train rows and {ready.dev.truncated} of "
        f"{ready.dev.size} dev rows were cut at 12 tokens, which is training.max_length."
    ]
    assert min(ready.train.truncated, ready.dev.truncated) > 0
    assert work(tiny, ACCEPTABILITY).notes == []


def test_max_length_beyond_the_backbones_positions_is_lowered(tiny: Path) -> None:
    ready = work(tiny, SIMILARITY, training={"max_length": 4096})
    assert ready.train.lengths.max() <= ready.model_spec.max_length == 130


def test_rows_cut_at_the_backbones_own_limit_are_said_to_be(tmp_path: Path) -> None:
    ready = work(make_tiny(tmp_path / "short", max_position_embeddings=40), ACCEPTABILITY)
    assert ready.train.lengths.max() == 40
    assert ready.study.training.max_length == 512
    cut = f"{ready.train.truncated:,} of {ready.train.size:,} train rows"
    assert ready.notes[0].startswith(f"{ACCEPTABILITY}: {cut}")
    assert ready.notes[0].endswith(f" cut at 40 tokens, the most that {tmp_path / 'short'} takes.")


def test_a_backbone_of_one_token_type_sees_zeros(tmp_path: Path) -> None:
    """Its tokenizer tells the sentences of a pair apart; transformers leaves the types out."""
    ready = work(make_tiny(tmp_path / "roberta", "roberta"), SIMILARITY)
    assert set(ready.train.types) == set(ready.dev.types) == {0}
    assert ready.train.types.shape == ready.train.ids.shape
    assert set(work(make_tiny(tmp_path / "bert"), SIMILARITY).train.types) == {0, 1}


def test_token_types_beyond_the_backbones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(*args: Any, **options: Any) -> Encoded:
        encoded = encode(*args, **options)
        return replace(encoded, types=encoded.types * 2)

    monkeypatch.setattr("manytune.training.workload.encode_cached", typed)
    with pytest.raises(ModelError, match=r"gives the token type 2, but the backbone has embeddings for 0 to 1 alone"):
        work(make_tiny(tmp_path / "bert"), SIMILARITY)


def test_a_row_of_which_the_tokenizer_makes_nothing_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blank(*args: Any, **options: Any) -> Encoded:
        encoded = encode(*args, **options)
        return replace(encoded, offsets=np.concatenate([encoded.offsets[:3], encoded.offsets[2:-1]]))

    monkeypatch.setattr("manytune.training.workload.encode_cached", blank)
    message = r"train, row 3: the tokenizer of .* makes no token of '.*', one of 1 such rows\. Leave them out"
    with pytest.raises(DataError, match=message):
        work(tiny, ACCEPTABILITY)


def test_a_class_without_training_rows_is_said_and_not_called_uneven(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,y\n" + "".join(f"row {n},{'ab'[n % 2]}\n" for n in range(40)))
    own = {"name": "own", "train": str(tmp_path / "a.csv"), "dev": 0.5, "text": "text", "label": "y"}
    methods = [{"method": "head", "learning_rate": 1e-3}]
    data = {"name": "s", "model": str(tiny), "seeds": [0], "methods": methods}
    study = Study.from_dict({**data, "tasks": [{**own, "labels": ["a", "b", "never"]}]})
    assert prepare(study, "own").notes == ["own: no training row is of never, so no run learns to tell it."]


def frozen(head: str) -> list[Mapping[str, Any]]:
    return [{"method": "bitfit", "learning_rate": 1e-3, "head": head}]


def test_a_frozen_head_that_cannot_reach_the_targets_is_said(tmp_path: Path) -> None:
    narrow = make_tiny(tmp_path / "narrow", initializer_range=0.02)
    (message,) = _warnings(work(narrow, SIMILARITY, frozen("frozen")))
    assert "builtin-similarity" in message
    assert "head: full" in message
    assert "0 to 5" in message


def test_a_trained_bias_moves_the_range_but_does_not_widen_it(tmp_path: Path) -> None:
    # 32 weights of about 0.1 * 0.8 span 2 * 2.6: enough for 0 to 5 around its middle, not around 0.
    folder = make_tiny(tmp_path / "middle", initializer_range=0.125)
    assert _warnings(work(folder, SIMILARITY, frozen("bias"))) == []
    assert len(_warnings(work(folder, SIMILARITY, frozen("frozen")))) == 1


@pytest.mark.parametrize("task", [ACCEPTABILITY, SIMILARITY])
def test_a_trained_head_needs_no_warning(task: str, tiny: Path) -> None:
    assert _warnings(work(tiny, task, frozen("full"))) == []


def test_a_classifier_needs_no_range(tmp_path: Path) -> None:
    narrow = make_tiny(tmp_path / "narrow", initializer_range=0.02)
    assert _warnings(work(narrow, ACCEPTABILITY, frozen("frozen"))) == []


def _warnings(ready: TaskWork) -> list[str]:
    return list(ready.warnings(plan_runs(ready.study)))


def test_the_fingerprint_is_the_datas(tiny: Path) -> None:
    assert work(tiny, ACCEPTABILITY).fingerprint == work(tiny, ACCEPTABILITY).fingerprint
    assert work(tiny, ACCEPTABILITY).fingerprint != work(tiny, SIMILARITY).fingerprint


@pytest.mark.parametrize("changed", ["train", "dev"])
def test_the_fingerprint_is_of_both_splits(tiny: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    def load(task: Task, data_dir: str | None) -> tuple[Task, dict[str, Split]]:
        task, splits = load_task(task, data_dir)
        return task, {**splits, changed: replace(splits[changed], fingerprint="another")}

    before = work(tiny, ACCEPTABILITY).fingerprint
    monkeypatch.setattr("manytune.training.workload.load_task", load)
    assert work(tiny, ACCEPTABILITY).fingerprint != before


@pytest.mark.parametrize(("task", "sentences"), [(ACCEPTABILITY, 1), (SIMILARITY, 2)])
def test_dev_texts_are_the_dev_rows(tiny: Path, task: str, sentences: int) -> None:
    ready = work(tiny, task)
    assert ready.dev_texts == load_split(get_task(task), "dev").texts
    assert len(ready.dev_texts) == ready.dev.size
    assert {len(row) for row in ready.dev_texts} == {sentences}


def test_a_warm_up_without_end_is_said(tiny: Path) -> None:
    (message,) = _warnings(work(tiny, ACCEPTABILITY, training={"max_steps": 20, "warmup_steps": 20}))
    assert "20 of 20 steps" in message
    assert _warnings(work(tiny, ACCEPTABILITY, training={"max_steps": 20, "warmup_steps": 19})) == []
    (message,) = _warnings(work(tiny, ACCEPTABILITY, training={"max_steps": 4, "warmup_ratio": 0.99}))
    assert "Lower training.warmup_ratio, or" in message
    head = {"method": "head", "learning_rate": 1e-3}
    entries = [head, {**head, "training": {"max_steps": 3, "warmup_steps": 9}}]
    (message,) = _warnings(work(tiny, ACCEPTABILITY, entries, training={"max_steps": 20}))
    assert "9 of 3 steps, so head lr 1e-3, max_steps 3, warmup_steps 9 never reaches its learning rate." in message
