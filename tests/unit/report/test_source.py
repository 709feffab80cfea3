from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from manytune.report.report_data import ReportData, read, without_examples
from manytune.storage.directory import Store
from manytune.utils.errors import StoreError
from study_factory import GLUE_LIKE, make_study_directory

SMALL = {**GLUE_LIKE, "tasks": ["cola"], "seeds": [0], "methods": [{"method": "full", "learning_rate": 5e-5}]}


def test_it_reads_all_that_is_there(directory: Path, material: ReportData) -> None:
    store = Store.open(directory)
    assert [record.run_id for record in material.records] == [run.run_id for run in store.status().runs]
    assert len(material.records) == len(material.histories) == 70
    assert len(material.logits) == 69  # all but the failed one
    assert set(material.examples) == {"cola", "stsb"}
    assert set(material.structures) == {("cola", "minilm"), ("stsb", "minilm")}


def test_an_older_study_has_records_alone(old: Path) -> None:
    found = read([old])
    assert len(found.records) == 14
    assert (found.histories, found.logits, found.examples, found.structures) == ({}, {}, {}, {})


def test_sentences_can_be_left_out_with_everything_else_there(material: ReportData) -> None:
    blank = without_examples(material)
    assert set(blank.examples["cola"].texts) == {()}
    assert blank.examples["cola"].labels == material.examples["cola"].labels
    assert blank.examples["cola"].parts == material.examples["cola"].parts
    assert blank.logits is material.logits


def test_a_directory_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a study directory"):
        read([tmp_path])


def test_the_same_run_twice_is_refused(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "copy")
    with pytest.raises(StoreError, match="14 runs are in more than one"):
        read([old, tmp_path / "copy"])


def test_studies_with_other_settings_are_never_averaged(tmp_path: Path) -> None:
    one = make_study_directory(tmp_path / "one", {**SMALL, "name": "one"}).root
    training = {**GLUE_LIKE["training"], "epochs": 3}
    other = make_study_directory(tmp_path / "two", {**SMALL, "name": "two", "training": training}).root
    found = read([one, other])
    assert [record.label for record in found.records] == ["full lr 5e-5 [one]", "full lr 5e-5 [two]"]
    assert [study.label_suffix for study in found.studies] == [" [one]", " [two]"]


def test_studies_of_the_same_name_are_numbered(tmp_path: Path) -> None:
    one = make_study_directory(tmp_path / "one", SMALL).root
    other = make_study_directory(tmp_path / "two", {**SMALL, "template": "spaced"}).root
    assert [r.label for r in read([one, other]).records] == ["full lr 5e-5 [glue-like 1]", "full lr 5e-5 [glue-like 2]"]


def test_more_seeds_of_the_same_settings_go_together(tmp_path: Path) -> None:
    one = make_study_directory(tmp_path / "one", {**SMALL, "name": "one"}).root
    packs = {**GLUE_LIKE["training"], "max_pack": 3}  # which changes no result
    other = make_study_directory(tmp_path / "two", {**SMALL, "name": "two", "seeds": [1], "training": packs}).root
    assert [(r.label, r.seed) for r in read([one, other]).records] == [("full lr 5e-5", 0), ("full lr 5e-5", 1)]


def test_damage_is_said_with_its_place(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "one", SMALL)
    (path,) = store.root.glob("runs/*/record.json")
    path.write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(StoreError, match=r"record\.json is not a record"):
        read([store.root])
