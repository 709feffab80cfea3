"""`limit`: a trial on some of the training rows, from the study file to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Command
from hypothesis import given
from hypothesis import strategies as st

from manytune.config import Study
from manytune.config.plan import plan_runs
from manytune.data.splits import Split, limited
from manytune.data.tasks import get_task
from manytune.storage.directory import Store
from manytune.training.workload import load_splits
from manytune.utils.errors import DataError, StudyError
from study_files import small_study

ACCEPTABILITY, SIMILARITY = "builtin-acceptability", "builtin-similarity"


def split_of(labels: list[int] | list[float]) -> Split:
    return Split(tuple((f"row {n}",) for n in range(len(labels))), np.array(labels), "", "rows.csv")


@given(labels=st.lists(st.integers(0, 1), min_size=4, max_size=80), data=st.data())
def test_each_class_has_its_share_and_smaller_limits_are_nested(labels: list[int], data: st.DataObject) -> None:
    task, train = get_task(ACCEPTABILITY), split_of(labels)
    classes, counts = np.unique(train.labels, return_counts=True)
    most = data.draw(st.integers(len(classes), len(labels)))
    few = limited(task, train, most)
    assert len(few) == most
    assert few.limited_from == (len(labels) if most < len(labels) else None)
    for label, count in zip(classes, counts, strict=True):
        kept = int((few.labels == label).sum())
        assert kept >= 1
        assert abs(kept - most * count / len(labels)) <= 1 or kept == 1
    fewer = limited(task, train, data.draw(st.integers(len(classes), most)))
    assert set(fewer.texts) <= set(few.texts)
    assert list(few.texts) == sorted(few.texts, key=train.texts.index), "in the source's order"


def test_numbers_have_no_classes_to_be_kept() -> None:
    assert len(limited(get_task(SIMILARITY), split_of([n / 7 for n in range(50)]), 3)) == 3


def test_a_row_a_class_is_needed() -> None:
    with pytest.raises(DataError, match=r"limit: 1 row of builtin-acceptability, which has 2 classes"):
        limited(get_task(ACCEPTABILITY), split_of([0, 1, 0]), 1)


def test_a_study_without_a_limit_is_what_it_was_and_another_limit_makes_other_runs(tmp_path: Path) -> None:
    plain = small_study(tmp_path)
    assert "limit:" not in plain.to_yaml()
    assert plain.hash == small_study(tmp_path, limit=None).hash
    ids = [plan_runs(small_study(tmp_path, limit=limit))[0].id for limit in (None, 10, 20, {SIMILARITY: 20})]
    assert len(set(ids)) == 3
    assert ids[2] == ids[3], "by task or for all, it is the same run"
    limit = {SIMILARITY: 20}
    assert Study.from_dict(yaml.safe_load(small_study(tmp_path, limit=limit).to_yaml())).limit == limit


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0, "limit: received 0; it must be a number of training rows, at least 1"),
        ("half", "limit: received 'half'; it must be a number of training rows"),
        ({}, "it must be a number of training rows"),
        ({"cola": 5}, "limit.cola: this is no task of the study"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(limit: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as error:
        small_study(tmp_path, limit=limit)
    assert message in str(error.value)


def test_dev_stays_whole(tiny: Path) -> None:
    whole = load_splits(small_study(tiny), SIMILARITY)[1]
    some = load_splits(small_study(tiny, limit={SIMILARITY: 40}), SIMILARITY)[1]
    assert len(some["train"]) == 40
    assert some["dev"].fingerprint == whole["dev"].fingerprint


def test_every_command_says_how_many_rows(tiny: Path, command: Command, tmp_path: Path) -> None:
    study = small_study(tiny, limit=40, tasks=[SIMILARITY], seeds=[0], training={"max_steps": 2, "eval_every": 2})
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    rows = len(load_splits(small_study(tiny), SIMILARITY)[1]["train"])
    assert f"40 of {rows:,}" in command("check", "study.yaml", cwd=tmp_path).out
    dry = command("run", "study.yaml", "--dry-run", cwd=tmp_path).out
    assert f"40 of {rows:,} rows to train on" in dry
    done = command("run", "study.yaml", "--out", "out", cwd=tmp_path)
    assert done.code == 0
    assert f"the limit leaves 40 of {rows:,} rows to train on" in done.err
    (record,) = Store.open(tmp_path / "out").finished_runs().values()
    assert (record.hyperparameters["limit"], record.hyperparameters["rows_before_limit"]) == (40, rows)
    page = (tmp_path / "out" / "report" / "report.md").read_text()
    assert f"1 run trained on 40 of {rows:,} rows, by the study's limit" in page
    assert f"training rows, {SIMILARITY}" in page
    again = command("run", "study.yaml", "limit=30", "--out", "out", cwd=tmp_path)
    assert again.code == 2
    assert "limit: 40 there, 30 here" in again.err
