from __future__ import annotations

import dataclasses

import pytest

from manytune.errors import StudyError
from manytune.metrics import METRICS
from manytune.tasks import SPLITS, TASKS, get_task


def test_the_table_holds_these_tasks_under_their_own_names() -> None:
    assert list(TASKS) == ["cola", "stsb", "builtin-acceptability", "builtin-similarity"]
    assert [task.name for task in TASKS.values()] == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole(name: str) -> None:
    task = get_task(name)
    assert set(task.metrics) <= set(METRICS)
    assert len(task.text_columns) in (1, 2)
    assert (task.kind == "classification") == (len(task.labels) >= 2) == (task.target_range is None)
    if task.hub is not None:
        assert set(task.hub_splits) == set(SPLITS)
        assert task.folder
    if task.file_columns:
        assert {*task.text_columns, task.label_column} <= set(task.file_columns)


def test_glue_sizes_are_the_official_ones() -> None:
    assert TASKS["cola"].sizes == {"train": 8551, "dev": 1043}
    assert TASKS["stsb"].sizes == {"train": 5749, "dev": 1500}


@pytest.mark.parametrize("name", TASKS)
def test_parts_of_dev_follow_one_another_and_leave_no_row_out(name: str) -> None:
    task = get_task(name)
    bounds = [bound for part in task.dev_parts.values() for bound in part]
    assert bounds == sorted(bounds)
    assert not bounds or (bounds[0], bounds[-1]) == (0, task.sizes["dev"])


def test_colas_parts_are_the_papers() -> None:
    assert TASKS["cola"].dev_parts == {"in-domain": (0, 527), "out-of-domain": (527, 1043)}


def test_the_first_metric_is_primary() -> None:
    assert [task.primary_metric for task in TASKS.values()] == ["matthews_correlation", "pearson"] * 2
    swapped = dataclasses.replace(TASKS["stsb"], metrics=("spearman", "pearson"))
    assert swapped.primary_metric == "spearman"


def test_outputs_are_one_a_class_or_one_number() -> None:
    assert {name: task.num_outputs for name, task in TASKS.items()} == {
        "cola": 2,
        "stsb": 1,
        "builtin-acceptability": 2,
        "builtin-similarity": 1,
    }


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TASKS["mine"] = TASKS["cola"]  # type: ignore[index]
    with pytest.raises(TypeError):
        TASKS["cola"].sizes["dev"] = 1  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["cola"].name = "mine"  # type: ignore[misc]


def test_an_unknown_task_is_refused_with_the_choices() -> None:
    with pytest.raises(StudyError) as error:
        get_task("sts-b")
    assert str(error.value) == (
        "tasks: 'sts-b' is not one of: cola, stsb, builtin-acceptability, builtin-similarity. Did you mean 'stsb'?"
    )
