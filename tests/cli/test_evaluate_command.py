"""Score trained runs on labelled rows, beside scikit-learn and the study's records; baselines are those of `check`."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Command
from sklearn.metrics import confusion_matrix, f1_score

import manytune
from manytune.config import Study
from manytune.data.splits import load_split
from manytune.data.tasks import get_task
from manytune.stats.examples import bootstrap_intervals, bootstrap_weights, metric_draws
from manytune.study import run_study

ACCEPTABILITY, SIMILARITY = "builtin-acceptability", "builtin-similarity"
METHODS = [{"method": "bitfit", "learning_rate": 0.01}]


@pytest.fixture(scope="module")
def used(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of both built-in tasks, its results, and its dev rows as files."""
    folder = tmp_path_factory.mktemp("evaluated")
    training = {"max_steps": 8, "eval_every": 4}
    study = {"name": "used", "model": str(tiny), "tasks": [ACCEPTABILITY, SIMILARITY], "seeds": [0, 1]}
    (folder / "study.yaml").write_text(yaml.safe_dump({**study, "training": training, "methods": METHODS}))
    run_study(Study.from_file(folder / "study.yaml"), folder / "results", device="cpu", callbacks=[])
    for name in (ACCEPTABILITY, SIMILARITY):
        task, split = get_task(name), load_split(get_task(name), "dev")
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*task.text_columns, task.label_column])
            rows = zip(split.texts, split.labels, strict=True)
            writer.writerows([*texts, task.type.value(task, label)] for texts, label in rows)
    return folder


def ids(folder: Path, task: str) -> list[str]:
    return sorted(path.name for path in (folder / "results" / "runs").iterdir() if path.name.startswith(task))


def test_scores_are_those_of_the_record_and_baselines_those_of_check(used: Path, command: Command) -> None:
    runs = ids(used, ACCEPTABILITY)
    done = command("evaluate", "results", f"{ACCEPTABILITY}.csv", "--run", ",".join(runs), "--json", cwd=used)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["rows"], found["left_out"]) == (450, [])
    first, second, mean, constant, tfidf = found["scored"]
    assert [each["kind"] for each in found["scored"]] == ["run", "run", "ensemble", "baseline", "baseline"]
    for run, scored in zip(runs, (first, second), strict=True):
        record = json.loads((used / "results" / "runs" / run / "record.json").read_text())
        assert scored["name"] == run
        for metric, score in record["scores"].items():
            assert scored["scores"][metric]["score"] == pytest.approx(score, abs=1e-6)
    checked = json.loads(command("check", "study.yaml", "--json", cwd=used).out)["tasks"][0]["baselines"]
    kept = json.loads((used / "results" / "tasks" / ACCEPTABILITY / "baselines.json").read_text())["scores"]
    assert checked == kept
    for baseline, scored in zip(kept, (constant, tfidf), strict=True):
        assert scored["name"] == baseline["title"]
        for metric, score in baseline["scores"].items():
            assert scored["scores"][metric]["score"] == pytest.approx(score, abs=1e-5)
    # What the mean of the runs predicts, beside scikit-learn.
    split, task = load_split(get_task(ACCEPTABILITY), "dev"), get_task(ACCEPTABILITY)
    predicted = np.array(manytune.load(used / "results", ",".join(runs)).values(split.texts)).astype(int)
    wanted = f1_score(split.labels, predicted, average="macro", zero_division=0.0)
    assert mean["scores"]["macro_f1"]["score"] == pytest.approx(wanted)
    assert mean["scores"]["macro_f1"]["low"] <= wanted <= mean["scores"]["macro_f1"]["high"]
    matrix = [[row[f"predicted_{name}"] for name in task.labels] for row in found["confusion"]]
    assert matrix == confusion_matrix(split.labels, predicted).tolist()
    assert [row["support"] for row in found["classes"]] == [225, 225]
    assert "450 of 450 rows have the text of a dev row" in found["notes"][0]


def test_rows_without_a_known_label_are_named_and_counted(used: Path, command: Command) -> None:
    lines = (used / f"{ACCEPTABILITY}.csv").read_text().splitlines()[1:40]
    rows = ["phrase,gold", *lines, "So it is.,maybe", "So it was.,maybe", "It is.,", ",acceptable"]
    (used / "own.csv").write_text("\n".join(rows) + "\n")
    named = ("--run", ids(used, ACCEPTABILITY)[0], "--text", "phrase", "--label", "gold")
    done = command("evaluate", "results", "own.csv", *named, "--out", "figures.csv", cwd=used)
    assert done.code == 0, done.err
    for text in (
        "39 rows of own.csv scored.",
        "4 rows left out:",
        "own.csv, line 41: label 'maybe' is not one of",
        "own.csv, line 43: gold is empty",
        "own.csv, line 44: phrase is empty",
        f"Labels that {ACCEPTABILITY} does not know: maybe (2 rows).",
        "TF-IDF with a linear model",
        f"Confusion matrix: {ACCEPTABILITY}-bitfit",
        "precision",
    ):
        assert text in done.out
    with (used / "figures.csv").open(newline="") as file:
        figures = list(csv.DictReader(file))
    assert {row["part"] for row in figures} == {"score", "confusion", "classes"}
    assert sum(float(row["value"]) for row in figures if row["figure"] == "support") == 39


def test_numbers_have_their_own_figures(used: Path, command: Command) -> None:
    run_id = ids(used, SIMILARITY)[0]
    done = command("evaluate", "results", f"{SIMILARITY}.csv", "--run", run_id, "--out", "s.json", cwd=used)
    assert done.code == 0, done.err
    found = json.loads((used / "s.json").read_text())
    run, constant, tfidf = found["scored"]
    assert list(run["scores"]) == ["pearson", "spearman", "rmse", "mae"]
    assert constant["scores"]["pearson"] == {"score": None, "low": None, "high": None}
    assert constant["scores"]["mae"]["low"] < constant["scores"]["mae"]["score"] < constant["scores"]["mae"]["high"]
    assert tfidf["scores"]["rmse"]["score"] > 0
    assert [row["rows"] for row in found["sizes"]] == [420, 84, 84, 84, 84, 84]
    assert "undefined" in done.out


def test_baselines_need_the_training_rows(used: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    lines = [f"a {word} text {at},{'no' if at % 3 else 'yes'}" for at, word in enumerate(["cat", "dog", "cow"] * 10)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,answer", *lines]) + "\n")
    task = {"name": "own", "train": str(tmp_path / "rows.csv"), "dev": 0.3, "text": "text", "label": "answer"}
    study = {"name": "own", "model": str(tiny), "tasks": [task], "seeds": [0], "training": {"max_steps": 2}}
    run_study(Study.from_dict({**study, "methods": METHODS}), tmp_path / "out", device="cpu", callbacks=[])
    (run,) = os.listdir(tmp_path / "out" / "runs")
    args = ("evaluate", "out", "labelled.csv", "--run", run)
    (tmp_path / "rows.csv").rename(tmp_path / "labelled.csv")
    done = command(*args, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "Without baselines: their training rows cannot be had." in done.out
    assert "TF-IDF" not in done.out
    (tmp_path / "rows.csv").write_text("\n".join(["text,answer", *lines[:20]]) + "\n")
    assert "no longer those that the run was trained on" in command(*args, cwd=tmp_path).out
    (tmp_path / "rows.csv").write_text("\n".join(["text,answer", *lines]) + "\n")
    whole = command(*args, cwd=tmp_path).out
    assert "TF-IDF with a linear model" in whole
    assert "30 rows have the text of a training row, so scores are too high." in whole


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([f"{ACCEPTABILITY}.csv", "--label", "gold"], "no column 'gold'; the columns found are: sentence, label."),
        ([f"{ACCEPTABILITY}.csv", "--text", "sentence", "--text", "label"], "takes 1: sentence"),
        ([f"{ACCEPTABILITY}.csv", "--out", "figures.txt"], "must end in .csv or .json"),
        ([f"{ACCEPTABILITY}.csv", "--quoting", "single"], "--quoting"),
        (["rows.doc"], "a file of rows ends in"),
        ([f"{ACCEPTABILITY}.csv", "--label", "sentence"], "none of its 450 rows can be scored; of the first,"),
    ],
)
def test_what_cannot_be_scored_is_refused(used: Path, command: Command, args: list[str], message: str) -> None:
    done = command("evaluate", "results", *args, "--run", ids(used, ACCEPTABILITY)[0], cwd=used)
    assert done.code != 0
    assert message in " ".join(done.err.split())


def test_intervals_are_quantiles_of_resampled_scores() -> None:
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(0, 2, 50), draw.integers(0, 2, (2, 50))
    found = bootstrap_intervals(["accuracy", "nothing"], predictions, labels)
    drawn = metric_draws("accuracy", predictions, labels, bootstrap_weights(50))
    assert drawn is not None
    assert list(found) == ["accuracy"]
    np.testing.assert_allclose(found["accuracy"], np.quantile(drawn, [0.025, 0.975], axis=0))
