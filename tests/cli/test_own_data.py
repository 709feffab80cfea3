"""One's own data, from the study file to the libraries that use what was trained."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Command
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import manytune
from forked import run_forked
from manytune.config import Study
from manytune.storage.directory import Store
from manytune.study import run_study

WORDS = {"billing": "invoice", "sales": "discount", "support": "crash"}


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a classification and a regression on one file, run by the command."""
    root = tmp_path_factory.mktemp("own")
    rows = [
        {"subject": f"The {word} {n}", "body": f"Item {n}.", "team": team, "price": 5000 + 100 * n}
        for n in range(30)
        for team, word in WORDS.items()
    ]
    rows[4]["team"] = ""
    with (root / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    study = {
        "name": "own",
        "model": str(tiny),
        "tasks": [
            {"name": "tickets", "train": "rows.csv", "dev": 0.3, "text": ["subject", "body"], "label": "team"},
            {
                "name": "price",
                "train": "rows.csv",
                "dev": "rows.csv",
                "text": "body",
                "label": "price",
                "type": "regression",
                "metric": ["rmse", "pearson"],
            },
        ],
        "seeds": [0],
        "training": {"max_steps": 30, "eval_every": 15},
        "methods": [
            {"method": "full", "learning_rate": {"tickets": 5e-3, "price": 5e-3}},
            {"method": "lora", "rank": 2, "learning_rate": 1e-2},
        ],
    }
    (root / "study.yaml").write_text(yaml.safe_dump(study))
    run = [sys.executable, "-m", "manytune", "run", "study.yaml", "--out", "out"]
    done = run_forked(run, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "tickets: 1 train row was left out (rows.csv, line 6: team is empty)" in done.stderr
    assert "price: 90 of 90 dev rows have the text of a training row" in done.stderr
    return root


def test_the_record_is_in_the_targets_own_unit(folder: Path) -> None:
    store = Store.open(folder / "out")
    (record,) = [r for r in store.finished_runs().values() if (r.task, r.method) == ("price", "full")]
    examples, logits = store.task_artifacts("price").examples(), store.read_predictions(record.run_id)
    assert examples is not None
    assert logits is not None
    targets = np.array(examples.labels)
    assert (targets.min(), targets.max()) == (5000, 7900)
    assert record.best_score == pytest.approx(np.sqrt(np.mean((logits[:, 0] - targets) ** 2)), rel=1e-4)
    assert record.best_score < targets.std(), "it is better than the mean"
    losses = [row.train_loss for row in store.read_history(record.run_id)]
    assert losses[-1] is not None
    assert losses[-1] < 3, "inside, targets have a spread of 1"


def test_predictions_bear_the_classes_names(folder: Path, command: Command) -> None:
    done = command("predict", "out", "rows.csv", "--task", "tickets", cwd=folder)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(done.out.splitlines()))
    assert len(rows) == 90
    assert set(rows[0]) == {"subject", "body", "team", "price", "prediction", "p_billing", "p_sales", "p_support"}
    right = np.mean([row["prediction"] == row["team"] for row in rows if row["team"]])
    assert right > 0.6


def test_a_file_is_read_as_those_of_the_task(tiny: Path, command: Command, tmp_path: Path) -> None:
    """Its header holds more commas than semicolons, and it is not in UTF-8."""
    lines = ["text;kind;a, b, c", *(f"süß {n};{'ja' if n % 3 else 'nein'};{n}" for n in range(30))]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="cp1252")
    task = {"name": "own", "train": str(tmp_path / "rows.csv"), "dev": 0.3, "text": "text", "label": "kind"}
    task |= {"separator": "semicolon", "encoding": "cp1252"}
    method = {"method": "head", "learning_rate": 1e-2}
    study = {"name": "own", "model": str(tiny), "tasks": [task], "seeds": [0], "training": {"max_steps": 1}}
    run_study(Study.from_dict({**study, "methods": [method]}), tmp_path / "out", device="cpu", callbacks=[])
    (run,) = (path.name for path in (tmp_path / "out" / "runs").iterdir())

    def rows_of(*args: str) -> list[dict[str, str]]:
        done = command("predict", "out", *args, "--run", run, cwd=tmp_path)
        assert done.code == 0, done.err
        return list(csv.DictReader(done.out.splitlines()))

    predicted = rows_of("rows.csv")
    assert [(row["text"], row["a, b, c"]) for row in predicted] == [(f"süß {n}", str(n)) for n in range(30)]
    scored = command("evaluate", "out", "rows.csv", "--run", run, cwd=tmp_path)
    assert "own: 30 rows of rows.csv scored." in scored.out, scored.err

    (tmp_path / "utf-8.csv").write_text("\n".join(lines), encoding="utf-8")
    assert rows_of("utf-8.csv") == predicted
    (tmp_path / "commas.csv").write_text("\n".join(["text,kind", "süß 1,ja"]), encoding="cp1252")
    for words in (("predict", "out", "commas.csv"), ("evaluate", "out", "commas.csv")):
        refused = command(*words, "--run", run, cwd=tmp_path)
        assert refused.code == 2
        assert "If a comma parts the cells" in refused.err
        assert "--separator comma for a command" in refused.err
    assert rows_of("commas.csv", "--separator", "comma")[0]["text"] == "süß 1"
    assert (
        "own: 1 row of" in command("evaluate", "out", "commas.csv", "--separator", ",", "--run", run, cwd=tmp_path).out
    )


def test_classes_in_another_order_than_the_run_learned_them_are_refused(
    folder: Path, command: Command, tmp_path: Path
) -> None:
    shutil.copytree(folder / "out", tmp_path / "out")
    path = tmp_path / "out" / "tasks" / "tickets" / "learned.json"
    path.write_text(path.read_text().replace("billing", "?").replace("sales", "billing").replace("?", "sales"))
    done = command("predict", "out", "--task", "tickets", "--text", "The invoice", "Item 1.", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"{path.relative_to(tmp_path)} is not what the run tickets-" in done.err


def test_a_score_is_predicted_in_its_own_unit(folder: Path) -> None:
    values = [made.value for made in manytune.load(folder / "out", task="price").predict(["Item 1.", "Item 28."])]
    assert all(isinstance(value, float) and 4000 < value < 9000 for value in values)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_export_puts_out_targets(folder: Path, command: Command, method: str, tmp_path: Path) -> None:
    run = f"price-{method}"
    merge = ["--merge"] if method == "lora" else []
    done = command("export", "out", "--run", run, "--to", tmp_path / "model", *merge, cwd=folder)
    assert done.code == 0, done.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    (score,) = model(**tokenizer("Item 7.", return_tensors="pt")).logits[0].tolist()
    (made,) = manytune.load(folder / "out", run).predict(["Item 7."])
    assert score == pytest.approx(made.value, rel=1e-5)


def test_an_adapter_puts_out_targets_too(folder: Path, command: Command, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    done = command("export", "out", "--run", "price-lora", "--to", tmp_path / "adapter", cwd=folder)
    assert done.code == 0, done.err
    assert "RMSE" in done.out


def test_a_pipeline_knows_the_classes(folder: Path, command: Command, tmp_path: Path) -> None:
    done = command("export", "out", "--run", "tickets-full", "--to", tmp_path / "model", cwd=folder)
    assert done.code == 0, done.err
    classify = pipeline("text-classification", model=str(tmp_path / "model"), device="cpu")
    (made,) = manytune.load(folder / "out", "tickets-full").predict([("The crash 3", "Item 3.")])
    assert classify({"text": "The crash 3", "text_pair": "Item 3."})["label"] == made.value
    assert "0 billing, 1 sales, 2 support" in (tmp_path / "model/README.md").read_text()


def test_check_says_what_would_spoil_a_result(folder: Path, command: Command) -> None:
    done = command("check", "study.yaml", cwd=folder)
    assert done.code == 0, done.err
    assert "1 train row left out:" in done.out
    assert "90 dev rows of 90 with the text of a training row, so scores on dev are too high:" in done.out
    found = json.loads(command("check", "study.yaml", "--json", cwd=folder).out)
    tickets, price = found["tasks"]
    assert tickets["splits"]["train"]["classes"] == {"billing": 21, "sales": 20, "support": 21}
    assert price["splits"]["train"]["targets"]["lowest"] == 5000


def test_check_says_how_lines_became_rows(folder: Path, command: Command) -> None:
    lines = (folder / "rows.csv").read_text().splitlines()
    (folder / "spread.csv").write_text("\n".join([*lines, '"The ""crash"" 3","Item\n\n3.",support,8000', "", ""]))
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["tasks"] = [{**study["tasks"][0], "train": "spread.csv"}]
    study["methods"] = [{"method": "full", "learning_rate": 1e-3}]
    (folder / "spread.yaml").write_text(yaml.safe_dump(study))
    done = command("check", "spread.yaml", "--json", cwd=folder)
    findings = [found["what"] for found in json.loads(done.out)["tasks"][0]["findings"]]
    assert findings[0] == (
        "spread.csv: 91 rows from 95 lines; 1 row takes several lines, at most lines 92–94; 1 line is blank."
    )


def test_a_resumed_study_needs_the_same_data(folder: Path, command: Command, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    rows = (tmp_path / "copy/rows.csv").read_text().replace("support", "help")
    (tmp_path / "copy/rows.csv").write_text(rows)
    again = ("run", "study.yaml", "seeds=[0,1]", "--out", "out")
    for accept in ([], ["--accept-changes"], ["--accept-changes"]):
        done = command(*again, *accept, cwd=tmp_path / "copy")
        assert done.code == 2
        assert ("Task tickets: its data has other classes" if accept else "--accept-changes") in done.err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"text": ["subject", "bdy"]}, "rows.csv, line 1: no column 'bdy'"),
        ({"train": "none.csv"}, "none.csv cannot be read: No such file"),
        ({"labl": "team"}, "tasks.0.labl"),
        ({"name": "cola"}, "'cola' is a task already"),
        (
            {"metric": "rmse"},
            "for a classification, 'rmse' is not one of: matthews_correlation, accuracy, f1, macro_f1.",
        ),
        ({"metric": "accuracy_mismatched"}, "'accuracy_mismatched' is not one of"),
        ({"type": "regression", "labels": ["a", "b"]}, "labels are a classification's"),
        ({"text": ["team", "body"]}, "the column 'team' cannot be text and label at once"),
        ({"dev": 1.0}, "received 1.0; it must be below 1"),
        ({"text": ["a", "b", "c"]}, "a model reads one text or two; join the columns"),
        ({"text": 5}, "it must be a column's name, or a list of two"),
        ({"labels": ["a"]}, "it must name at least two classes"),
        ({"labels": ["good", "go\u200bod"]}, "it must not hold 'good' twice"),
        ({"labels": ["\u200b", "a"]}, "received ''; it must not be empty"),
        ({"metric": 5}, "it must be a metric's name, or a list of them"),
        ({"metric": "pearson"}, "macro_f1. It goes with type: regression.\n"),
        ({"metric": "f1", "labels": ["a", "b", "c"]}, "the metric f1 is of two classes, but labels are 3"),
        ({"dev": "0.25"}, "write a share as a number without quotes"),
        ({"dev": None}, "it must be a file, the name of a split, or a share"),
        ({"language": "english"}, "it must be a code such as en"),
        ({"config": "x"}, "config is of a dataset on the hub"),
        ({"name": "../x"}, "it must be letters, digits"),
    ],
)
def test_wrong_descriptions(folder: Path, command: Command, task: dict[str, object], message: str) -> None:
    study = yaml.safe_load((folder / "study.yaml").read_text())
    own = {"name": "tickets", "train": "rows.csv", "text": ["subject", "body"], "label": "team", **task}
    study["tasks"], study["methods"] = [own], [{"method": "full", "learning_rate": 1e-3}]
    (folder / "wrong.yaml").write_text(yaml.safe_dump(study))
    done = command("check", "wrong.yaml", cwd=folder)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def small(tiny: Path, folder: Path, rows: list[tuple[str, object]], training: dict[str, object] | None = None) -> None:
    """A study of one classification on `rows`, half of which are dev."""
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "y"), *rows])
    own = {"name": "own", "train": "rows.csv", "dev": 0.5, "text": "text", "label": "y"}
    study = {"name": "s", "model": str(tiny), "tasks": [own], "seeds": [0], "training": training or {}}
    study["methods"] = [{"method": "bitfit", "learning_rate": 1e-3}]
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def test_check_names_classes_that_may_be_meant_as_one_or_as_none(tiny: Path, command: Command, tmp_path: Path) -> None:
    small(tiny, tmp_path, [(f"row {n}", ("NA", "Good", "good", "bad")[n % 4]) for n in range(16)])
    found = command("check", "study.yaml", cwd=tmp_path).out
    assert "A class like any other is called NA; where it means none, empty those cells." in found
    assert "Classes whose names differ in capitals or spelling alone, and may be meant as one:\n    Good, good" in found


def test_rows_without_a_token_are_said_before_training(tiny: Path, command: Command, tmp_path: Path) -> None:
    small(tiny, tmp_path, [*((f"row {n}", "ab"[n % 2]) for n in range(8)), ("\u200b", "a"), ("\u200b", "a")])
    found = command("check", "study.yaml", cwd=tmp_path)
    assert "of which the tokenizer makes no token:\n    rows.csv, line 1" in found.out
    done = command("run", "study.yaml", "--dry-run", cwd=tmp_path)
    assert "no token of its own, the first is rows.csv, line 1" in done.out


def test_check_says_what_cuts_rows_and_advises_nothing_that_is_done(
    tiny: Path, command: Command, tmp_path: Path
) -> None:
    rows = [(f"row {n} " * 200, "ab"[n % 30 == 0]) for n in range(60)]
    small(tiny, tmp_path, rows, {"class_weights": "balanced"})
    found = command("check", "study.yaml", cwd=tmp_path).out
    assert f"of the train rows are cut at 130 tokens, the most that {tiny} takes." in found
    assert "The classes are uneven: 1 training row of b, 29 of a.\n" in found
    assert "class_weights" not in found
    assert "class_weights" not in command("run", "study.yaml", "--dry-run", cwd=tmp_path).out


@pytest.mark.parametrize("words", [("check",), ("run", "--dry-run"), ("run", "--out", "out")])
def test_check_dry_run_and_run_refuse_the_same(
    tiny: Path, command: Command, tmp_path: Path, words: tuple[str, ...]
) -> None:
    small(tiny, tmp_path, [("the same", "ab"[n % 2]) for n in range(8)])
    done = command(words[0], "study.yaml", *words[1:], cwd=tmp_path)
    assert done.code == 2
    assert "error: task own, rows.csv: in all 4 training rows the text is 'the same'" in done.err
    small(tiny, tmp_path, [(f"row {n}", "ab"[n % 2]) for n in range(8)], {"class_weights": [1, 2, 3]})
    done = command(words[0], "study.yaml", *words[1:], cwd=tmp_path)
    assert "training.class_weights: 3 numbers, but own has 2 classes" in done.err


def test_targets_of_ten_digits_are_learned_and_predicted(tiny: Path, command: Command, tmp_path: Path) -> None:
    first = 1_700_000_000
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "y"), *((f"Item {n}.", first + n) for n in range(40))])
    file_name = str(tmp_path / "rows.csv")
    own = {"name": "when", "train": file_name, "dev": file_name, "text": "text", "label": "y", "type": "regression"}
    study = {"name": "s", "model": str(tiny), "tasks": [{**own, "metric": ["rmse", "pearson"]}], "seeds": [0]}
    study |= {"methods": [{"method": "full", "learning_rate": 5e-3}], "training": {"max_steps": 40, "eval_every": 40}}
    (record,) = run_study(Study.from_dict(study), tmp_path / "out").records
    spread = np.arange(40).std()
    assert record.state == "finished"
    assert record.best_score is not None
    assert record.best_score < spread, "it is better than the mean"
    store = Store.open(tmp_path / "out")
    examples, logits = store.task_artifacts("when").examples(), store.read_predictions(record.run_id)
    assert examples is not None
    assert logits is not None
    assert examples.labels == tuple(float(first + n) for n in range(40))
    assert record.best_score == pytest.approx(np.sqrt(np.mean((logits[:, 0] - examples.labels) ** 2)), rel=1e-6)
    made = manytune.load(tmp_path / "out").predict([f"Item {n}." for n in range(40)])
    np.testing.assert_allclose([each.value for each in made], logits[:, 0], rtol=0, atol=1e-2)
    done = command("export", "out", "--to", "model", cwd=tmp_path)
    assert done.code == 2
    assert "an export computes in fp32, which cannot hold targets around 1.7e+09" in done.err
