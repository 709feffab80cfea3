from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from manytune.config import Study
from manytune.data.metrics import METRICS
from manytune.data.splits import load_split
from manytune.data.task_types import Scale
from manytune.data.tasks import GLUE, SPLITS, TASKS, Task, get_task
from manytune.utils.errors import DataError, StudyError

GLUE_NAMES = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]


def test_the_table_holds_these_tasks_under_their_own_names() -> None:
    assert list(GLUE) == GLUE_NAMES
    assert list(TASKS) == [*GLUE_NAMES, "builtin-acceptability", "builtin-similarity"]
    assert [task.name for task in TASKS.values()] == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole(name: str) -> None:
    task = get_task(name)
    assert set(task.all_metrics) <= set(METRICS)
    assert set(task.metrics) <= set(task.type.metrics)
    assert len(task.text_columns) in (1, 2)
    assert (task.kind == "classification") == (len(task.labels) >= 2) == (task.target_range is None)
    if task.hub is not None:
        assert {*SPLITS, *task.also_scored} <= set(task.hub_splits)
        assert task.files is not None
        assert len(task.files.text_columns) == len(task.text_columns)
        assert set(task.hub_splits) == set(task.files.names) == set(task.sizes)


def test_glue_sizes_are_the_official_ones() -> None:
    """Train, dev and test of Wang et al. 2018, and of the hub's nyu-mll/glue."""
    assert {name: [task.sizes[split] for split in ("train", "dev", "test")] for name, task in GLUE.items()} == {
        "cola": [8551, 1043, 1063],
        "sst2": [67349, 872, 1821],
        "mrpc": [3668, 408, 1725],
        "qqp": [363846, 40430, 390965],
        "stsb": [5749, 1500, 1379],
        "mnli": [392702, 9815, 9796],
        "qnli": [104743, 5463, 5463],
        "rte": [2490, 277, 3000],
        "wnli": [635, 71, 146],
    }
    more = ("dev_mismatched", "test_mismatched", "diagnostic")
    assert [GLUE["mnli"].sizes[split] for split in more] == [9832, 9847, 1104]


def test_glue_metrics_are_the_official_ones() -> None:
    assert {name: task.all_metrics for name, task in GLUE.items()} == {
        "cola": ("matthews_correlation", "accuracy"),
        "sst2": ("accuracy",),
        "mrpc": ("f1", "accuracy"),
        "qqp": ("f1", "accuracy"),
        "stsb": ("pearson", "spearman"),
        "mnli": ("accuracy", "accuracy_mismatched"),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }


@pytest.mark.parametrize("name", TASKS)
def test_parts_of_dev_follow_one_another_and_leave_no_row_out(name: str) -> None:
    task = get_task(name)
    bounds = [bound for part in task.dev_parts.values() for bound in part]
    assert bounds == sorted(bounds)
    assert not bounds or (bounds[0], bounds[-1]) == (0, task.sizes["dev"])


def test_colas_parts_are_the_papers() -> None:
    assert TASKS["cola"].dev_parts == {"in-domain": (0, 527), "out-of-domain": (527, 1043)}


def test_the_first_metric_is_primary() -> None:
    assert TASKS["cola"].primary_metric == "matthews_correlation"
    swapped = dataclasses.replace(TASKS["stsb"], metrics=("spearman", "pearson"))
    assert swapped.primary_metric == "spearman"


def test_outputs_are_one_a_class_or_one_number() -> None:
    assert {name: task.num_outputs for name, task in TASKS.items()} == {
        **dict.fromkeys(TASKS, 2),
        "mnli": 3,
        "stsb": 1,
        "builtin-similarity": 1,
    }


def test_classes_that_only_the_data_knows_are_not_counted() -> None:
    task = Task("own", "own", "classification", ("text",), "label", labels=(), metrics=("accuracy",))
    with pytest.raises(ValueError, match="not known before its data is read"):
        _ = task.num_outputs


def test_a_scale_goes_there_and_back() -> None:
    task = dataclasses.replace(TASKS["stsb"], scale=Scale(center=200.0, spread=50.0))
    targets = np.array([100.0, 200.0, 275.0])
    assert task.inside(targets).tolist() == [-2.0, 0.0, 1.5]
    assert task.outside(task.inside(targets)).tolist() == targets.tolist()
    assert TASKS["stsb"].inside(targets) is targets
    assert TASKS["stsb"].outside(targets) is targets


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
    assert str(error.value) == f"tasks: 'sts-b' is not one of: {', '.join(TASKS)}. Did you mean 'stsb'?"


@pytest.mark.parametrize("name", ["ax", "AX", "diagnostic"])
def test_the_diagnostic_set_is_predicted_rather_than_trained(name: str) -> None:
    with pytest.raises(StudyError, match=r"has no rows to train on and no public labels\. Train mnli"):
        get_task(name)
    study = {"name": "s", "tasks": [name], "seeds": [0], "methods": [{"method": "full", "learning_rate": 1e-5}]}
    with pytest.raises(StudyError, match="`manytune submit` predicts the diagnostic rows"):
        Study.from_dict(study)


@pytest.mark.parametrize("name", GLUE)
def test_the_hub_is_asked_for_the_right_split(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each split of each task, by the names that nyu-mll/glue has."""
    import datasets

    asked: list[tuple[str, str]] = []

    def load_dataset(repository: str, configuration: str, split: str) -> datasets.Dataset:
        assert repository == "nyu-mll/glue"
        asked.append((configuration, split))
        columns: dict[str, list[object]] = {column: ["a", "b"] for column in GLUE[name].text_columns}
        return datasets.Dataset.from_dict({**columns, "label": [0, 1] if name != "stsb" else [0.5, 1.5]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = dataclasses.replace(GLUE[name], sizes={})
    for split in task.hub_splits:
        assert len(load_split(task, split)) == 2
    plain = [(name, "train"), (name, "validation"), (name, "test")]
    mnli = [
        ("mnli", "train"),
        *(("mnli", f"{part}_{kind}") for part in ("validation", "test") for kind in ("matched", "mismatched")),
        ("ax", "test"),
    ]
    assert sorted(asked) == sorted(mnli if name == "mnli" else plain)


def test_labels_by_name_must_be_the_tasks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset whose classes stand in another order would else be read upside down."""
    import datasets

    names = ["not_entailment", "entailment"]
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
        }
    )
    rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    assert load_split(dataclasses.replace(GLUE["rte"], sizes={}), "train").labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="label 'not_entailment' is not one of"):
        load_split(dataclasses.replace(GLUE["cola"], sizes={}, text_columns=("sentence1",)), "train")
