"""What no run could learn from or be scored by is refused where the data is read, for check, dry run and run alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manytune.config import Study
from manytune.data.splits import Split, load_task
from manytune.data.tasks import Task
from manytune.training.workload import load_splits
from manytune.utils.errors import DataError, StudyError

Rows = list[tuple[str, object]]

CLASSES: Rows = [(f"row {n}", "ab"[n % 2]) for n in range(12)]
NUMBERS: Rows = [(f"row {n}", n) for n in range(12)]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("text,y\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


def study(tmp_path: Path, train: Rows, dev: Rows | float, training: dict[str, Any] | None = None, **task: Any) -> Study:
    own = {"name": "own", "train": str(write(tmp_path / "train.csv", train)), "text": "text", "label": "y"}
    own |= {"dev": dev if isinstance(dev, float) else str(write(tmp_path / "dev.csv", dev))}
    selection = task.pop("selection", "dev")
    method = {"method": "bitfit", "learning_rate": 1e-3}
    data = {"name": "s", "tasks": [{**own, **task}], "seeds": [0, 1], "methods": [method], "training": training or {}}
    return Study.from_dict({**data, "selection": selection})


def refusal(*args: Any, **task: Any) -> str:
    made = study(*args, **task)
    with pytest.raises((DataError, StudyError)) as error:
        load_splits(made, "own")
    return str(error.value)


def numbers(tmp_path: Path, train: Rows, dev: Rows | float, **task: Any) -> tuple[Task, dict[str, Split]]:
    return load_splits(study(tmp_path, train, dev, type="regression", **task), "own")


def test_a_dev_set_of_one_class(tmp_path: Path) -> None:
    message = refusal(tmp_path, CLASSES, [("x", "a"), ("y", "a")])
    assert "dev.csv: in all 2 dev rows the label is 'a', so a constant prediction would be perfect" in message


def test_a_dev_set_of_one_row(tmp_path: Path) -> None:
    assert "of dev rows there is one alone" in refusal(tmp_path, CLASSES, [("x", "a")])
    message = refusal(tmp_path, NUMBERS[:5], 0.1, type="regression")
    assert message.endswith("give dev a larger share than 0.1, or a file of rows")


def test_constant_dev_targets_have_no_correlation(tmp_path: Path) -> None:
    constant: Rows = [("x", 3), ("y", 3)]
    message = refusal(tmp_path, NUMBERS, constant, type="regression")
    assert "in all 2 dev rows the target is 3, so pearson is undefined" in message
    assert "or take metric: rmse" in message
    assert len(numbers(tmp_path, NUMBERS, constant, metric="rmse")[1]["dev"]) == 2


def test_texts_that_are_all_the_same(tmp_path: Path) -> None:
    same: Rows = [("x", "a"), ("x", "b"), ("x", "a")]
    assert "in all 3 training rows the text is 'x'" in refusal(tmp_path, same, CLASSES)
    assert "in all 3 dev rows the text is 'x'" in refusal(tmp_path, CLASSES, same)


def test_what_a_held_out_share_leaves(tmp_path: Path) -> None:
    message = refusal(tmp_path, NUMBERS[:5], NUMBERS, type="regression", selection="train-split")
    assert "of rows that selection: train-split sets aside with seed 0 there is one alone" in message
    assert message.endswith("use selection: dev")
    message = refusal(tmp_path, [("a", 1), ("b", 1), ("c", 2)], NUMBERS, type="regression", selection="train-split")
    assert "selection: train-split" in message


def test_a_share_that_leaves_no_class_a_row_does_not_blame_the_selection(tmp_path: Path) -> None:
    message = refusal(tmp_path, [("x", "a"), ("y", "b")], 0.25)
    assert "dev: 0.25 sets training rows of each class aside, but no class has two rows among the 2" in message
    assert "selection" not in message


def test_class_weights_of_another_number_of_classes(tmp_path: Path) -> None:
    message = refusal(tmp_path, CLASSES, 0.5, {"class_weights": [1, 2, 3]})
    assert "training.class_weights: 3 numbers, but own has 2 classes: a, b" in message
    made = study(tmp_path, CLASSES, 0.5)
    entry = {"method": "head", "learning_rate": 1e-3, "training": {"class_weights": ["none", [1, 2, 3]]}}
    made = Study.from_dict({**made.model_dump(), "methods": [entry]})
    with pytest.raises(StudyError, match=r"methods.0.training.class_weights: 3 numbers, but own has 2 classes"):
        load_splits(made, "own")


@pytest.mark.parametrize("offset", [0, 1_700_000_000, 10**12])
def test_targets_keep_their_digits_whatever_their_size(tmp_path: Path, offset: int) -> None:
    rows: Rows = [(f"row {n}", offset + n) for n in range(12)]
    task, splits = numbers(tmp_path, rows, rows)
    assert splits["train"].labels.tolist() == [offset + n for n in range(12)]
    inside = task.type.loss_labels(task, splits["train"].labels)
    assert inside.dtype == np.float32
    np.testing.assert_allclose(inside, (np.arange(12) - 5.5) / np.arange(12).std(), rtol=1e-6)


def test_rows_whose_targets_differ_beyond_fp32_are_other_data(tmp_path: Path) -> None:
    prints = {
        numbers(tmp_path, [(f"row {n}", 1_700_000_000 + more + n) for n in range(12)], NUMBERS)[1]["train"].fingerprint
        for more in (0, 1)
    }
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("train", "dev", "scale", "message"),
    [
        ([1.7e9 + n for n in range(12)], range(12), False, "1700000011 differ too little for fp32"),
        ([1e-30 * n for n in range(12)], range(12), False, "differ too little for fp32"),
        ([*range(11), "1e39"], range(12), False, "train.csv, line 13: y 1e+39 is too far from 0 for scale: false"),
        (range(12), ["1e30", 2, 3], True, "dev.csv, line 2: y 1e+30 is too far from the training targets"),
        ([*range(11), "1e39"], range(12), True, "train.csv, line 13: y 1e+39 is so far from the others"),
        (["-1e308", "1e308", "1.5e308"], range(12), True, "cannot be scaled in fp64"),
        (["1e-310", "2e-310", "3e-310"], range(12), True, "cannot be scaled in fp64"),
    ],
)
def test_targets_beyond_fp32(tmp_path: Path, train: Any, dev: Any, scale: bool, message: str) -> None:
    rows: list[Rows] = [[(f"row {n}", value) for n, value in enumerate(values)] for values in (train, dev)]
    assert message in refusal(tmp_path, *rows, type="regression", scale=scale)


def test_rows_know_their_place_after_some_were_left_out_and_set_aside(tmp_path: Path) -> None:
    rows: Rows = [("", "a"), *CLASSES]
    task, splits = load_task(study(tmp_path, rows, 0.5).task("own"))
    assert task.labels == ("a", "b")
    for split in splits.values():
        for index, (text,) in enumerate(split.texts):
            assert split.place(index) == f"{tmp_path / 'train.csv'}, line {int(text.split()[1]) + 3}"


def test_a_thousand_classes_are_not_all_named(tmp_path: Path) -> None:
    rows: Rows = [(f"row {n}", f"class {n % 1000}") for n in range(2000)]
    assert len(refusal(tmp_path, rows, rows, {"class_weights": [1, 2]})) < 500


@pytest.mark.parametrize("column", ["prediction", "p_a"])
def test_a_text_column_that_predictions_would_overwrite(tmp_path: Path, column: str) -> None:
    made = study(tmp_path, CLASSES, 0.25, text=column)
    rows = "".join(f"{text},{label}\n" for text, label in CLASSES)
    (tmp_path / "train.csv").write_text(f"{column},y\n{rows}")
    with pytest.raises(StudyError, match=f"predictions are written to a column '{column}'; rename that of the text"):
        load_splits(made, "own")
