"""What every task type promises, and a new one that is defined here alone and goes through a whole study."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import manytune
from manytune.cli.check import check_study
from manytune.config import Study, study_json_schema
from manytune.config.plan import plan_runs
from manytune.data.cells import target_of
from manytune.data.metrics import METRICS, evaluate
from manytune.data.task_types import TASK_TYPES, Scale, TaskType, get_task_type, register
from manytune.data.tasks import OwnData, Task
from manytune.executors import Inline
from manytune.inference.export import export
from manytune.inference.predictor import load
from manytune.report.writing import write_report
from manytune.storage.directory import Store
from manytune.study import run_study
from manytune.training.workload import load_splits
from manytune.utils.errors import DataError, StudyError
from plugin_package import printed_with_package
from tiny import make_tiny

SOURCES = Path(manytune.__file__).parent


class Grades(TaskType):
    """Ordinal regression: whole grades, learned as numbers and predicted by rounding."""

    name = "grades"
    metrics = ("accuracy", "mae", "spearman")
    default_metrics = ("mae", "accuracy")
    label_word = "grade"
    value_type = float
    problem_type = "regression"

    def parser(self, task: Task) -> Callable[[object], int]:
        def parse(cell: object) -> int:
            grade = target_of(cell)
            if not grade.is_integer():
                raise ValueError(f"{task.label_column} {cell} is not a whole grade")
            return int(grade)

        return parse

    def as_array(self, task: Task, labels: Sequence[Any]) -> NDArray[Any]:
        return np.array(labels, dtype=np.int64)

    def learn_targets(self, task: Task, labels: NDArray[Any]) -> Task:
        return replace(task, target_range=(float(labels.min()), float(labels.max())))

    def num_outputs(self, task: Task) -> int:
        return 1

    def loss_labels(self, task: Task, labels: NDArray[Any]) -> NDArray[Any]:
        return labels.astype(np.float32)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits[..., 0] - labels).abs()

    def decode(self, logits: NDArray[Any]) -> NDArray[Any]:
        return np.rint(logits[..., 0].astype(np.float64))

    def value(self, task: Task, label: Any) -> float:
        return float(label)

    def describe_outputs(self, task: Task) -> str:
        return "Output: a grade, to be rounded."


@pytest.fixture(scope="module")
def grades() -> Iterator[TaskType]:
    yield register(Grades())
    del TASK_TYPES["grades"]


# What every type promises.

OWN = OwnData("train.csv", 0.1)
CASES: Mapping[str, tuple[Task, Sequence[object]]] = {
    "classification": (
        Task("t", "T", "classification", ("text",), "y", ("no", "yes", "so"), ("accuracy",), own=OWN),
        ["yes", "no", "so", "yes"],
    ),
    "regression": (
        Task("t", "T", "regression", ("text",), "y", (), ("pearson",), own=OWN, scale=Scale(100.0, 10.0)),
        ["90", 105.5, "1e2", 130],
    ),
    "grades": (Task("t", "T", "grades", ("text",), "y", (), ("mae",), own=OWN), ["3", 5, 1.0, "2"]),
}


@pytest.mark.usefixtures("grades")
def test_there_is_a_case_of_every_type() -> None:
    assert CASES.keys() == TASK_TYPES.keys()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, grades: TaskType) -> tuple[Task, NDArray[Any]]:
    """A task and the labels of four rows."""
    task, cells = CASES[request.param]
    parse = task.type.parser(task)
    return task, task.type.as_array(task, [parse(task.type.read_cell(cell)) for cell in cells])


def test_labels_are_one_a_row_and_the_trees_own_metrics_score_them(case: tuple[Task, NDArray[Any]]) -> None:
    task, labels = case
    kind = task.type
    assert labels.shape == (4,)
    assert set(kind.default_metrics) <= set(kind.metrics) <= set(METRICS)
    perfect = evaluate(replace(task, metrics=kind.metrics[:2]), labels, labels)
    assert all(abs(score - (1.0 if METRICS[name].higher_is_better else 0.0)) < 1e-9 for name, score in perfect.items())
    assert kind.may_hold(task, labels.tolist())
    assert isinstance(kind.value(task, labels[0]), kind.value_type)
    assert kind.all_alike(task, labels[0]).startswith(f"{kind.label_word} is ")
    assert bool(kind.class_counts(task, labels)) == kind.has_classes == bool(task.labels)
    assert not kind.errors(labels[None], labels).any()


def test_losses_are_one_a_row_and_each_of_its_own_logits_alone(case: tuple[Task, NDArray[Any]]) -> None:
    task, labels = case
    learned = torch.from_numpy(task.type.loss_labels(task, labels)).repeat(3, 1)
    logits = torch.randn(3, 4, task.num_outputs, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = task.type.losses(logits, learned)
    assert losses.shape == (3, 4)
    losses[1, 2].backward()
    assert logits.grad is not None
    assert logits.grad[1, 2].abs().sum() > 0
    logits.grad[1, 2] = 0
    assert logits.grad.abs().sum() == 0


def test_an_ensemble_of_one_run_predicts_as_the_run_does(case: tuple[Task, NDArray[Any]]) -> None:
    task, _ = case
    logits = np.random.default_rng(0).normal(0, 3, (1, 4, task.num_outputs))
    values, probabilities = task.type.combine(logits)
    np.testing.assert_array_equal(values, task.type.decode(logits[0]))
    assert probabilities.shape == (4, len(task.labels))
    if task.labels:
        np.testing.assert_allclose(probabilities.sum(1), 1.0)


# The registry.


def test_an_unknown_type_is_refused_with_the_choices() -> None:
    with pytest.raises(StudyError) as error:
        get_task_type("regresion")
    assert str(error.value) == f"type: 'regresion' is not one of: {', '.join(TASK_TYPES)}. Did you mean 'regression'?"
    with pytest.raises(StudyError, match="'regresion' is not one of: classification, regression"):
        study_of(Path("rows.csv"), Path("m"), type="regresion")


def test_a_type_that_cannot_be_is_not_registered(grades: TaskType) -> None:
    with pytest.raises(ValueError, match="there is a task type 'grades' already"):
        register(Grades())
    for attribute, value, message in (
        ("metrics", ("accuracy", "kappa"), "metric 'kappa' is not one of"),
        ("pooling", "token", "not every token"),
    ):
        wrong = type("Wrong", (Grades,), {"name": "wrong", attribute: value})
        with pytest.raises(ValueError, match=message):
            register(wrong())
    assert "wrong" not in TASK_TYPES


# A study of the new type.


def study_of(rows: Path, model: Path, **task: Any) -> Study:
    own = {"name": "essays", "train": str(rows), "dev": 0.25, "text": "text", "label": "grade", "type": "grades"}
    methods = [{"method": "lora", "rank": 2, "learning_rate": 2e-2}, {"method": "head", "learning_rate": 1e-2}]
    training = {"max_steps": 30, "eval_every": 10, "precision": "fp32"}
    data = {"name": "s", "model": str(model), "tasks": [{**own, **task}], "seeds": [0, 1], "methods": methods}
    return Study.from_dict({**data, "training": training})


@pytest.fixture(scope="module")
def trained(grades: TaskType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("grades")
    words = ("poor", "fair", "good", "great")
    rows = "".join(f"{word} essay {n},{grade}\n" for n in range(16) for grade, word in enumerate(words, 1))
    (folder / "rows.csv").write_text(f"text,grade\n{rows}")
    study = study_of(folder / "rows.csv", make_tiny(folder / "tiny"))
    run_study(study, folder / "out", device="cpu", executor=Inline("cpu"))
    return study, folder / "out"


def test_the_study_file_knows_the_type(trained: tuple[Study, Path]) -> None:
    study, out = trained
    assert study.task("essays").metrics == ("mae", "accuracy")
    assert yaml.safe_load((out / "study.yaml").read_text())["tasks"][0]["type"] == "grades"
    assert study_json_schema()["$defs"]["OwnTask"]["properties"]["type"]["enum"] == [*TASK_TYPES]
    with pytest.raises(StudyError, match=r"for a grades, 'rmse' is not one of.* It goes with type: regression"):
        study_of(out, out, metric="rmse")
    with pytest.raises(StudyError, match="labels are a classification's"):
        study_of(out, out, labels=["1", "2"])


def test_cells_are_read_by_the_type(grades: TaskType, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,grade\na,1\nb,2.5\n")
    with pytest.raises(DataError, match=r"rows\.csv, line 3: grade 2\.5 is not a whole grade"):
        load_splits(study_of(tmp_path / "rows.csv", tmp_path), "essays")
    (tmp_path / "rows.csv").write_text("text,grade\na,1\nb,1\n")
    with pytest.raises(DataError, match="the grade is 1"):
        load_splits(study_of(tmp_path / "rows.csv", tmp_path), "essays")


def test_its_runs_are_scored_by_its_rounded_predictions(trained: tuple[Study, Path]) -> None:
    study, out = trained
    store = Store.open(out)
    examples = store.task_artifacts("essays").examples()
    assert examples is not None
    records = [store.finished_runs()[run.id] for run in plan_runs(study)]
    assert len(records) == 4
    for record in records:
        logits = store.read_predictions(record.run_id)
        assert logits is not None
        errors = np.abs(np.rint(logits[:, 0]) - np.array(examples.labels))
        assert record.scores == {"mae": errors.mean(), "accuracy": (errors == 0).mean()}
    best = min(records, key=lambda record: record.best_score or 0.0)
    assert best.method == "lora"
    assert best.best_score is not None
    assert best.best_score < 0.6, "always the same grade would be off by 1"


def test_check_and_report_show_it(trained: tuple[Study, Path]) -> None:
    study, out = trained
    (checked,) = check_study(study).tasks
    assert checked.kind == "grades"
    assert (checked.splits["train"].targets["lowest"], checked.splits["train"].targets["highest"]) == (1.0, 4.0)
    page, whole = write_report([out])
    assert whole
    assert page.stat().st_size > 10_000
    summary = json.loads((page.parent / "summary.json").read_text())
    assert len(summary["tasks"]) == 1
    (mistakes,) = page.parent.rglob("*mistakes.csv")
    with mistakes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {float(row["label"]) for row in rows} <= {1.0, 2.0, 3.0, 4.0}


def test_it_predicts_and_is_exported(trained: tuple[Study, Path], tmp_path: Path) -> None:
    _, out = trained
    predictor = load(out, device="cpu")
    found = predictor.predict(["great essay", "poor essay"])
    assert [prediction.value for prediction in found] == predictor.values(["great essay", "poor essay"])
    assert all(float(prediction.value or 0.0).is_integer() for prediction in found)
    assert found[0].value != found[1].value
    assert found[0].probabilities == {}
    export(Store.open(out), predictor.records[0], tmp_path / "export", merge=True)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").config
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    assert "Output: a grade, to be rounded." in (tmp_path / "export" / "README.md").read_text()


# The tree.


def compared_names(tree: ast.AST) -> Iterator[int]:
    """Lines that compare something with the name of a built-in type, or match on it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and part.value in ("classification", "regression"):
                    yield part.lineno


def test_nothing_outside_the_types_asks_which_type_it_is() -> None:
    assert len(list(compared_names(ast.parse('a = task.kind == "regression" or kind in ("x", "classification")')))) == 2
    files = [path for path in SOURCES.rglob("*.py") if "task_types" not in path.parts]
    assert len(files) >= 100
    assert [
        f"{path.relative_to(SOURCES)}:{line}"
        for path in files
        for line in compared_names(ast.parse(path.read_text(encoding="utf-8")))
    ] == []


def test_a_package_that_is_installed_brings_its_types(tmp_path: Path) -> None:
    """By an entry point, so that the command line and worker processes have them too."""
    source = (
        "from manytune.data.task_types.regression import Regression\n\n\n"
        "class Ordinal(Regression):\n    name = 'ordinal'\n"
    )
    program = "from manytune.data.task_types import TASK_TYPES; print(*TASK_TYPES)"
    printed = printed_with_package(tmp_path, source, "manytune.task_types", "Ordinal", program)
    assert printed == ("classification regression ordinal", "classification regression")
