"""Every GLUE task from files as GLUE's own archive has them, each with its quirks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from manytune.data.splits import load_split, load_task
from manytune.data.tasks import GLUE, UNLABELLED, Task
from manytune.utils.errors import DataError

MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label"
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
ENTAILMENT = ["entailment", "not_entailment"]

# Task → split → file and its lines, as in the archive; test files have no labels.
FILES: dict[str, dict[str, tuple[str, list[str]]]] = {
    "cola": {
        "train": ("CoLA/train.tsv", ["gj04\t1\t\tThey sank.", "gj04\t0\t*\tSank they the."]),
        "test": ("CoLA/test.tsv", ["index\tsentence", "0\tBill sleeps.", "1\tSleeps Bill the."]),
    },
    "sst2": {
        "train": ("SST-2/train.tsv", ["sentence\tlabel", "a fine film \t1", "dull \t0"]),
        "test": ("SST-2/test.tsv", ["index\tsentence", "0\tuneasy mishmash of styles", "1\tgood"]),
    },
    "mrpc": {
        "train": ("MRPC/train.tsv", [MRPC, '1\t11\t12\tHe said "yes .\tHe agreed .', "0\t13\t14\tA .\tB ."]),
        "test": ("MRPC/test.tsv", [MRPC.replace("Quality", "index"), "0\t1\t2\tC .\tD .", "1\t3\t4\tE .\tF ."]),
    },
    "qqp": {
        "train": (
            "QQP/train.tsv",
            [
                "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                "1\t2\t3\tWhat is it?\tWhat's it?\t1",
                "2\t4\t5\tA question that a line end\t",
                "3\t6\t7\tWho?\tWhy?\t0",
                "4\t6\t7\t\tWhy not?\t0",
            ],
        ),
        "test": ("QQP/test.tsv", ["id\tquestion1\tquestion2", "0\tWho?\tWhere?", "1\tA line that is cut"]),
    },
    "stsb": {
        "train": (
            "STS-B/train.tsv",
            ["index\tgenre\tsentence1\tsentence2\tscore", '0\tnews\t"A man\tA man"\t5.000', "1\tnews\tA.\tB.\t0.4"],
        ),
        "test": ("STS-B/test.tsv", ["index\tgenre\tsentence1\tsentence2", "0\tnews\tC.\tD.", "1\tnews\tE.\tF."]),
    },
    "mnli": {
        "train": (
            "MNLI/train.tsv",
            [
                MNLI,
                "0\t1\t1n\tfiction\t(x)\tIt rains.\tIt is wet.\tentailment\tentailment",
                "1\t2\t2c\tfiction\t(x)\tIt rains.\tIt is dry.\tcontradiction\tcontradiction",
                "2\t3\t3n\tfiction\t(x)\tIt rains.\tIt is late.\tneutral\tneutral",
            ],
        ),
        "dev_mismatched": (
            "MNLI/dev_mismatched.tsv",
            [MNLI, "0\t1\t1n\tletters\t(x)\tIt snows.\tIt is cold.\tentailment\tneutral"],
        ),
        "test": ("MNLI/test_matched.tsv", [MNLI[: MNLI.index("\tlabel1")], "0\t1\t1n\tfiction\t(x)\tA.\tB."]),
        "test_mismatched": (
            "MNLI/test_mismatched.tsv",
            [MNLI[: MNLI.index("\tlabel1")], "0\t1\t1n\tletters\t(x)\tC.\tD."],
        ),
        "diagnostic": ("diagnostic/diagnostic.tsv", ["index\tsentence1\tsentence2", "0\tThe cat.\tA cat."]),
    },
    "qnli": {
        "train": (
            "QNLI/train.tsv",
            ["index\tquestion\tsentence\tlabel", "0\tWhen?\tIn 1990.\tentailment", "1\tWho?\tIn 1991.\tnot_entailment"],
        ),
        "test": ("QNLI/test.tsv", ["index\tquestion\tsentence", "0\tWhy?\tBecause.", "1\tHow?\tSo."]),
    },
    "rte": {
        "train": (
            "RTE/train.tsv",
            ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tnot_entailment", "1\tC.\tD.\tentailment"],
        ),
        "test": ("RTE/test.tsv", ["index\tsentence1\tsentence2", "0\tE.\tF.", "1\tG.\tH."]),
    },
    "wnli": {
        "train": ("WNLI/train.tsv", ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", "1\tC.\tD.\t0"]),
        "test": ("WNLI/test.tsv", ["index\tsentence1\tsentence2", "0\tE.\tF.", "1\tG.\tH."]),
    },
}
LABELS = {
    "cola": ["acceptable", "unacceptable"],
    "sst2": ["positive", "negative"],
    "mrpc": ["equivalent", "not_equivalent"],
    "qqp": ["duplicate", "not_duplicate", "not_duplicate"],
    "mnli": ["entailment", "contradiction", "neutral"],
    "qnli": ENTAILMENT,
    "rte": ENTAILMENT[::-1],
    "wnli": ["entailment", "not_entailment"],
}

Write = Callable[[str, Sequence[str]], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, lines: Sequence[str]) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    return write


def small(name: str) -> Task:
    """The task, without the sizes that its real files have."""
    return dataclasses.replace(GLUE[name], sizes={})


def test_every_task_is_here() -> None:
    assert list(FILES) == list(GLUE)


@pytest.mark.parametrize("name", GLUE)
def test_training_rows_have_the_hubs_classes(name: str, tmp_path: Path, write: Write) -> None:
    write(*FILES[name]["train"])
    rows = load_split(small(name), "train", str(tmp_path))
    if name == "stsb":
        assert rows.labels.tolist() == [5.0, pytest.approx(0.4)]
    else:
        assert [GLUE[name].labels[label] for label in rows.labels] == LABELS[name]
    assert {len(row) for row in rows.texts} == {len(GLUE[name].text_columns)}


@pytest.mark.parametrize(("name", "split"), [(n, s) for n, splits in FILES.items() for s in splits if s in UNLABELLED])
def test_rows_without_labels(name: str, split: str, tmp_path: Path, write: Write) -> None:
    file, lines = FILES[name][split]
    write(*FILES[name]["train"])
    write(file, lines)
    rows = load_split(small(name), split, str(tmp_path))
    assert len(rows) == len(lines) - 1, "every line below the header must be predicted"
    assert not rows.labels.any()


def test_a_byte_order_mark_before_the_header_is_no_part_of_it(tmp_path: Path, write: Write) -> None:
    file, lines = FILES["mrpc"]["train"]
    write(file, ["\ufeff" + lines[0], *lines[1:]])
    assert len(load_split(small("mrpc"), "train", str(tmp_path))) == 2


def test_mrpc_as_microsoft_has_it_is_cut_by_its_ids(tmp_path: Path, write: Write) -> None:
    rows = [f"{n % 2}\t{n}\t{n + 100}\tFirst {n} .\tSecond {n} ." for n in range(6)]
    write("MRPC/msr_paraphrase_train.txt", ["\ufeff" + MRPC, *rows])
    write("MRPC/dev_ids.tsv", ["1\t101", "4\t104"])
    write("MRPC/msr_paraphrase_test.txt", [MRPC, "1\t7\t8\tG .\tH ."])
    train, dev, test = (load_split(small("mrpc"), split, str(tmp_path)) for split in ("train", "dev", "test"))
    assert [row[0] for row in dev.texts] == ["First 1 .", "First 4 ."]
    assert [row[0] for row in train.texts] == ["First 0 .", "First 2 .", "First 3 .", "First 5 ."]
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.texts == (("G .", "H ."),)
    write("MRPC/train.tsv", [MRPC, *(rows[n] for n in (0, 2, 3, 5))])
    assert load_split(small("mrpc"), "train", str(tmp_path)).fingerprint == train.fingerprint


def test_mrpc_without_the_ids_is_refused(tmp_path: Path, write: Write) -> None:
    write("MRPC/msr_paraphrase_train.txt", [MRPC, "1\t1\t2\tA .\tB ."])
    with pytest.raises(DataError, match=r"dev_ids\.tsv, which tells them apart, is missing"):
        load_split(small("mrpc"), "dev", str(tmp_path))


def test_qqps_broken_lines_are_left_out_and_counted(tmp_path: Path, write: Write) -> None:
    write(*FILES["qqp"]["train"])
    rows = load_split(small("qqp"), "train", str(tmp_path))
    assert len(rows) == 3
    assert rows.left_out == ("line 3: 5 tab-separated fields, but 6 are needed",)
    assert rows.texts[2] == ("", "Why not?"), "a pair of which one text is empty is a pair"


@pytest.mark.parametrize("name", [name for name in GLUE if name != "qqp"])
def test_broken_lines_of_the_others_are_refused(name: str, tmp_path: Path, write: Write) -> None:
    file, lines = FILES[name]["train"]
    write(file, [*lines, "only one field"])
    with pytest.raises(DataError, match=f"line {len(lines) + 1}: 1 tab-separated fields"):
        load_split(small(name), "train", str(tmp_path))


def test_mnlis_second_dev_split_comes_with_the_task(tmp_path: Path, write: Write) -> None:
    file, lines = FILES["mnli"]["train"]
    write(file, lines)
    write("MNLI/dev_matched.tsv", lines[:3])
    write(*FILES["mnli"]["dev_mismatched"])
    _, splits = load_task(small("mnli"), str(tmp_path))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3, "dev": 2, "dev_mismatched": 1}
    assert splits["dev_mismatched"].labels.tolist() == [1], "the gold label, not the first annotator's"


def test_sizes_of_test_splits_are_checked_too(tmp_path: Path, write: Write) -> None:
    write(*FILES["rte"]["test"])
    with pytest.raises(DataError, match="2 rows, but RTE's test split has 3,000"):
        load_split(GLUE["rte"], "test", str(tmp_path))
