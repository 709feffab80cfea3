"""Predict with what was trained, through every route."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Command, Finished

import manytune
from forked import run_forked
from manytune import cli
from manytune.config import Study
from manytune.data import metrics
from manytune.data.splits import load_split
from manytune.data.tasks import get_task
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.study import run_study
from manytune.utils.errors import DataError, ModelError, StoreError
from row_files import read_rows_of as read

ACCEPTABILITY, SIMILARITY = "builtin-acceptability", "builtin-similarity"


@dataclass(frozen=True)
class Trained:
    out: Path
    records: tuple[RunRecord, ...]

    def of(self, task: str, method: str = "") -> list[RunRecord]:
        return [record for record in self.records if record.task == task and record.method.startswith(method)]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A study of two tasks and every method."""
    study = Study.from_dict(
        {
            "name": "used",
            "model": str(tiny),
            "tasks": [ACCEPTABILITY, SIMILARITY],
            "seeds": [0, 1],
            "training": {"max_steps": 6, "eval_every": 3},
            "methods": [
                {"method": "full", "learning_rate": 1e-3},
                {"method": "bitfit", "learning_rate": 1e-2},
                {"method": "lora", "rank": [2, 4], "learning_rate": 1e-2},
                {"method": "head", "learning_rate": 1e-2, "head": "bias"},
                {"method": "ia3", "learning_rate": 1e-2},
                {"method": "ln-tuning", "learning_rate": 1e-2},
                {"method": "adapter", "reduction_factor": 8, "learning_rate": 1e-2},
            ],
        }
    )
    out = tmp_path_factory.mktemp("used") / "out"
    return Trained(out, run_study(study, out, device="cpu", callbacks=[]).records)


def score(task: str, values: list[Any]) -> dict[str, float]:
    """Metrics of predicted values on dev."""
    known = get_task(task)
    split = load_split(known, "dev")
    found = [known.labels.index(value) for value in values] if known.labels else [float(value) for value in values]
    return metrics.evaluate(known, np.array(found), split.labels)


def dev_rows(task: str) -> list[dict[str, str]]:
    known = get_task(task)
    return [dict(zip(known.text_columns, texts, strict=True)) for texts in load_split(known, "dev").texts]


@pytest.mark.parametrize("task", [ACCEPTABILITY, SIMILARITY])
def test_every_run_predicts_what_its_record_says(trained: Trained, task: str) -> None:
    texts = load_split(get_task(task), "dev").texts
    records = trained.of(task)
    assert len(records) == 16
    whole = manytune.load(trained.out, ",".join(record.run_id for record in records))
    logits = whole.logits(texts)
    store = Store.open(trained.out)
    for record, own in zip(records, logits, strict=True):
        kept = store.read_predictions(record.run_id)
        assert kept is not None
        np.testing.assert_allclose(own, kept, rtol=0, atol=1e-5)
        if record.state == "finished":
            alone = manytune.load(trained.out, record.run_id)
            values = [made.value for made in alone.predict(texts)]
            assert score(task, values) == pytest.approx(record.scores, abs=1e-4)


def test_an_ensemble_is_the_mean(trained: Trained) -> None:
    texts = load_split(get_task(ACCEPTABILITY), "dev").texts[:50]
    ids = [record.run_id for record in trained.of(ACCEPTABILITY)][:4]
    each = [manytune.load(trained.out, run_id).predict(texts) for run_id in ids]
    together = manytune.load(trained.out, ",".join(ids)).predict(texts)
    for index, made in enumerate(together):
        means = {name: np.mean([own[index].probabilities[name] for own in each]) for name in made.probabilities}
        assert made.probabilities == pytest.approx(means, abs=1e-6)
        assert made.value == max(made.probabilities, key=lambda name: made.probabilities[name] or 0)
        assert sum(p or 0 for p in made.probabilities.values()) == pytest.approx(1)
    scores = [record.run_id for record in trained.of(SIMILARITY)][:3]
    pairs = load_split(get_task(SIMILARITY), "dev").texts[:50]
    mean = np.mean([[made.value for made in manytune.load(trained.out, run_id).predict(pairs)] for run_id in scores], 0)
    ensemble = manytune.load(trained.out, ",".join(scores)).predict(pairs)
    np.testing.assert_allclose([made.value for made in ensemble], mean, atol=1e-5)


def test_best_is_the_best_of_its_task(trained: Trained) -> None:
    (chosen,) = manytune.load(trained.out, task=SIMILARITY).records
    finished = [record for record in trained.of(SIMILARITY) if record.state == "finished"]
    assert chosen.best_score == max(record.best_score or -1 for record in finished)
    with pytest.raises(manytune.ManytuneError, match="--task: this study has runs of builtin-acceptability, builtin-s"):
        manytune.load(trained.out)


# Files

SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("task", [ACCEPTABILITY, SIMILARITY])
def test_a_file_comes_out_with_predictions_that_give_the_recorded_score(
    trained: Trained, command: Command, tmp_path: Path, task: str, suffix: str
) -> None:
    record = next(record for record in trained.of(task, "lora") if record.state == "finished")
    rows = [{"id": str(number), **row} for number, row in enumerate(dev_rows(task))]
    given = written(tmp_path / f"given{suffix}", rows)
    done = command("predict", trained.out, given, "--run", record.run_id, "--out", f"made{suffix}", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")
    made = read(tmp_path / f"made{suffix}")
    assert [{name: row[name] for name in rows[0]} for row in made] == rows
    assert score(task, [row["prediction"] for row in made]) == pytest.approx(record.scores, abs=1e-4)
    names = {"id", *get_task(task).text_columns, "prediction", *(f"p_{name}" for name in get_task(task).labels)}
    assert set(made[0]) == names


def test_standard_input_and_output(
    trained: Trained, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('sentence,note\n"The cat, it ""sat"".",a\nÜber 🐱 שלום,b\n'))
    done = command("predict", trained.out, "-", "--task", ACCEPTABILITY, cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["sentence"] for row in rows] == ['The cat, it "sat".', "Über 🐱 שלום"]
    assert [row["note"] for row in rows] == ["a", "b"]
    assert {row["prediction"] for row in rows} <= {"acceptable", "unacceptable"}


def test_rows_are_utf_8_whatever_the_terminal_has_and_their_cells_stay_as_they_are(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = ["Café 中文", "=1+1", "\x1b[31m", "\u202egnp"]
    text = "sentence,own\n" + "".join(f"The cat sat.,{cell}\n" for cell in cells)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii", newline=""))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["manytune", "predict", str(trained.out), "-", "--task", ACCEPTABILITY])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert [row["own"] for row in csv.DictReader(io.StringIO(shown.getvalue().decode()))] == cells


def test_bytes_that_are_no_utf_8_go_through_a_pipe(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"sentence,own\nThe cat sat.,caf\xe9\n")))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown))
    monkeypatch.setattr(sys, "argv", ["manytune", "predict", str(trained.out), "-", "--task", ACCEPTABILITY])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert shown.getvalue().splitlines()[1].startswith(b"The cat sat.,caf\xe9,")


def test_a_text_itself(trained: Trained, command: Command, tmp_path: Path) -> None:
    one = command("predict", trained.out, "--task", ACCEPTABILITY, "--text", "The cat sat.", cwd=tmp_path)
    assert one.code == 0
    assert one.out.splitlines()[0] in ("acceptable", "unacceptable")
    assert len(one.out.splitlines()) == 3
    pair = command("predict", trained.out, "--task", SIMILARITY, "--text", "A cat.", "A dog.", cwd=tmp_path)
    assert pair.code == 0
    float(pair.out)
    several = ("--text", "The cat sat.", "--text", "Sat cat.")
    two = command("predict", trained.out, "--task", ACCEPTABILITY, *several, cwd=tmp_path).out.split("\n\n")
    assert [block.splitlines()[0] for block in two] == ["The cat sat.", "Sat cat."]
    assert two[0].splitlines()[1:] == one.out.splitlines()
    pairs = command("predict", trained.out, "--task", SIMILARITY, "--text", "A", "B", "A cat.", "A dog.", cwd=tmp_path)
    assert pairs.out.split("\n\n")[1].splitlines() == ["A cat.", "A dog.", pair.out.strip()]


def test_an_input_may_begin_with_a_dash(trained: Trained, command: Command, tmp_path: Path) -> None:
    first = command("predict", trained.out, "--task", ACCEPTABILITY, "--text", "-5 degrees", cwd=tmp_path)
    assert first.code == 0, first.err
    pair = ("--task=" + SIMILARITY, "--text", "-h and more", "second", "--device", "cpu")
    assert command("predict", trained.out, *pair, cwd=tmp_path).code == 0
    last = command("predict", trained.out, "--task", ACCEPTABILITY, "--text", "--", "--help", cwd=tmp_path)
    assert last.code == 0
    written(tmp_path / "-x.csv", [{"sentence": "-5 degrees"}])
    file = command("predict", trained.out, "-x.csv", "--task", ACCEPTABILITY, cwd=tmp_path)
    assert file.code == 0, file.err
    assert file.out.splitlines()[1].split(",")[1] == first.out.splitlines()[0]
    assert "Predict with a run" in command("predict", "-h", cwd=tmp_path).out


def test_cells_of_every_kind_are_read_as_in_training(trained: Trained, command: Command, tmp_path: Path) -> None:
    pq.write_table(pa.table({"sentence": [5.0, float("nan"), None]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("sentence\n5\n")
    made = []
    for name in ("a.parquet", "b.csv"):
        done = command("predict", trained.out, name, "--task", ACCEPTABILITY, "--out", "o.jsonl", cwd=tmp_path)
        assert done.code == 0, done.err
        made.append(read(tmp_path / "o.jsonl"))
    assert made[0][0]["p_acceptable"] == pytest.approx(made[1][0]["p_acceptable"], abs=1e-6)
    assert [row["prediction"] is None for row in made[0]] == [False, True, True]


def test_a_cell_that_is_no_text_is_refused_with_its_place(trained: Trained, command: Command, tmp_path: Path) -> None:
    rows = [*({"sentence": f"One {n}."} for n in range(1025)), {"sentence": ["a"]}]
    written(tmp_path / "a.jsonl", rows)
    done = command("predict", trained.out, "a.jsonl", "--task", ACCEPTABILITY, "--out", "o.csv", cwd=tmp_path)
    assert done.code == 2
    assert "error: a.jsonl, row 1026: sentence holds ['a'] (list), which is no text" in done.err


def test_what_python_may_give(trained: Trained) -> None:
    predictor = manytune.load(trained.out, task=ACCEPTABILITY)
    texts: list[Any] = ["One.", "5"]
    expected = predictor.predict(texts)
    for given in (tuple(texts), np.array(texts), pa.array(texts), iter(texts), [b"One.", 5.0], [["One."], (5,)]):
        assert predictor.predict(given) == expected  # type: ignore[arg-type]
    for wrong in ("One.", b"One.", {"sentence": "One."}, pa.table({"sentence": ["One."]}), 5, None):
        with pytest.raises(DataError, match="a list of texts is needed, or of tuples of texts; "):
            predictor.predict(wrong)  # type: ignore[arg-type]
    for row in (None, {"sentence": "One."}, ["a", "b"], [["a"]], float("nan"), "a\0"):
        with pytest.raises(DataError, match="row 2: "):
            predictor.predict(["One.", row])  # type: ignore[list-item]


def test_rows_without_a_text_keep_their_place(trained: Trained, command: Command, tmp_path: Path) -> None:
    given = written(tmp_path / "given.jsonl", [{"sentence": "One."}, {"sentence": " "}, {"sentence": None}])
    done = command("predict", trained.out, given, "--task", ACCEPTABILITY, "--out", "made.jsonl", cwd=tmp_path)
    assert done.code == 0
    assert done.err == "warning: 2 of 3 rows have an empty text; their predictions are empty too.\n"
    made = read(tmp_path / "made.jsonl")
    assert [row["prediction"] is None for row in made] == [False, True, True]
    assert made[1]["p_acceptable"] is None


def test_many_rows_go_through_in_parts(trained: Trained, tmp_path: Path) -> None:
    """Never more than a part is held."""
    from manytune.data.rows import read_parts

    given = written(tmp_path / "given.csv", [{"sentence": f"Sentence {number}."} for number in range(5000)])
    parts = [len(part) for part in read_parts(str(given), ["sentence"])]
    assert sum(parts) == 5000
    assert max(parts) <= 1024


def test_every_key_and_value_of_a_file_comes_out(trained: Trained, command: Command, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"sentence": f"One {n}.", "n": 1 if n < 1100 else 1.5} for n in range(1200)]
    rows[1150] |= {"late": "here", "n": None}
    given = written(tmp_path / "given.jsonl", rows)
    for suffix in SUFFIXES:
        out = f"made{suffix}"
        done = command("predict", trained.out, given, "--task", ACCEPTABILITY, "--out", out, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        made = read(tmp_path / out)
        assert [float(row["n"] or 0) for row in made] == [row["n"] or 0 for row in rows]
        assert [n for n, row in enumerate(made) if row.get("late")] == [1150]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_without_rows_comes_out_without_rows(
    trained: Trained, command: Command, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "a.csv").write_text("sentence,note\n")
    done = command("predict", trained.out, "a.csv", "--task", ACCEPTABILITY, "--out", f"made{suffix}", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    names = ["sentence", "note", "prediction", "p_unacceptable", "p_acceptable"]
    made = tmp_path / f"made{suffix}"
    if suffix == ".parquet":
        assert pq.read_table(made).column_names == names
    else:
        mark = "\t" if suffix == ".tsv" else ","
        assert made.read_text() == ("" if suffix == ".jsonl" else mark.join(names) + "\n")


def test_quotes_are_text_where_that_is_said(trained: Trained, command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('sentence,note\n"One,a\n\nTwo",b\n')
    done = command("predict", trained.out, "a.csv", "--task", ACCEPTABILITY, "--quoting", "none", cwd=tmp_path)
    assert [row["sentence"] for row in csv.DictReader(io.StringIO(done.out))] == ['"One', 'Two"']
    assert "1 blank line of a.csv left out: no rows." in done.err
    done = command("predict", trained.out, "a.csv", "--task", ACCEPTABILITY, "--quoting", "some", cwd=tmp_path)
    assert (done.code, "'some' is not one of: double, none" in done.err) == (2, True)


def test_a_pipe_is_read_as_a_file(trained: Trained, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "manytune", "predict", str(trained.out), "--task", ACCEPTABILITY, "/dev/stdin"]
    done = run_forked(words, input="sentence\nOne.\n")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 2)


def test_rows_in_python_keep_what_they_have(trained: Trained) -> None:
    predictor = manytune.load(trained.out, task=SIMILARITY)
    (made,), empty = predictor.predict_rows([{"sentence1": "A.", "sentence2": "B.", "id": 3}])
    assert (made["id"], set(made), empty) == (3, {"sentence1", "sentence2", "id", "prediction"}, 0)
    with pytest.raises(DataError, match="row 1: it has columns that the predictions are written to: prediction"):
        predictor.predict_rows([made])
    with pytest.raises(DataError, match="row 3: no column 'sentence2'; the columns found are: sentence1"):
        predictor.predict_rows([{"sentence1": "A."}], before=2)
    with pytest.raises(DataError, match="row 1: a mapping of columns to cells is needed; str was given"):
        predictor.predict_rows(["A."])  # type: ignore[list-item]


# What users get wrong


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            "Sentence\nOne.\n",
            "a.csv, line 1: no column 'sentence'; the columns found are: Sentence. Is it 'Sentence'?",
        ),
        ("a.csv", "sentence,b\nOne.\n", "a.csv, line 2: 1 cell, but the header names 2 columns"),
        ("a.csv", "sentence,sentence\nOne.,x\n", "a column is there twice"),
        ("a.csv", "", "a.csv is empty"),
        (
            "a.csv",
            "sentence,prediction\nOne.,x\n",
            "a.csv: it has columns that the predictions are written to: prediction",
        ),
        ("a.jsonl", '{"sentence": "One.", "p_acceptable": 1}\n', "line 1: it has columns that the predictions are"),
        ("a.csv", 'sentence\n"One.\nTwo.\n', "a.csv, line 2: the double quote that opens a cell here is never closed"),
        ("a.csv", "sentence\n".encode("utf-16"), "a.csv is UTF-16"),
        ("a.csv", b"sentence\n\xff\n", "a.csv, line 2: byte 0xff in sentence is not valid UTF-8"),
        ("a.jsonl", '{"sentence": "One."}\n{"sent\n', "a.jsonl, line 2: no JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl, line 1: a line must hold an object"),
        ("a.parquet", "no parquet", "a.parquet cannot be read"),
        ("a.xlsx", "", "a.xlsx: a file of rows ends in .csv"),
    ],
)
def test_files_that_cannot_be_read(
    trained: Trained, command: Command, tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    done = command("predict", trained.out, name, "--task", ACCEPTABILITY, cwd=tmp_path)
    assert done.code == 2
    assert says in done.err
    assert done.out == ""
    assert command("predict", trained.out, name, "--task", ACCEPTABILITY, "--out", "o.csv", cwd=tmp_path).code == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no half of a result


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.csv"], "--task: this study has runs of"),
        (["a.csv", "--task", "cola"], "'cola' is not one of: builtin-acceptability, builtin-similarity"),
        (["a.csv", "--run", "builtin-a"], "is the start of 16 runs"),
        (["a.csv", "--run", "nothing"], "There is no run 'nothing'"),
        (["nowhere.csv", "--task", ACCEPTABILITY], "nowhere.csv cannot be read"),
        (["a.csv", "--task", ACCEPTABILITY, "--out", "a.csv/made.csv"], "a.csv cannot be written"),
        (["a.csv", "--task", ACCEPTABILITY, "--out", "a.txt"], "a.txt: a file of rows ends in .csv"),
        (["a.csv", "--task", ACCEPTABILITY, "--device", "abacus"], "--device"),
        (["--text", "One.", "Two.", "3", "--task", SIMILARITY], "so texts come in pairs; 3 texts were given"),
        (["--text", "One.", "--task", SIMILARITY], "so texts come in pairs; 1 text was given"),
        (["--text", " ", "--task", ACCEPTABILITY], "sentence is empty"),
        (["--tsk", ACCEPTABILITY, "a.csv"], "'--tsk' is not one of: --run, --task,"),
        (["--text", "--cold", "--task", ACCEPTABILITY], "If it is the input itself, put -- before it."),
    ],
)
def test_words_that_cannot_be(trained: Trained, command: Command, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "a.csv").write_text("sentence\nOne.\n")
    done = command("predict", trained.out, *words, cwd=tmp_path)
    assert done.code == 2
    assert says in done.err


def test_runs_of_two_tasks_make_no_ensemble(trained: Trained) -> None:
    ids = [trained.of(task)[0].run_id for task in (ACCEPTABILITY, SIMILARITY)]
    with pytest.raises(manytune.ManytuneError, match="these runs are of builtin-acceptability, builtin-similarity"):
        manytune.load(trained.out, ",".join(ids))


def changed_record(trained: Trained, **changes: Any) -> RunRecord:
    record = trained.of(SIMILARITY)[0]
    provenance = record.provenance.model_copy(update=changes)
    return record.model_copy(update={"provenance": provenance})


def test_another_backbone_than_the_trained_one_is_refused(trained: Trained) -> None:
    store = Store.open(trained.out)
    with pytest.raises(ModelError, match=r"was trained on .* at sha256:0, and what is there now is sha256:"):
        manytune.Predictor(store, [changed_record(trained, model_revision="sha256:0")])


def test_no_rows_are_no_predictions(trained: Trained) -> None:
    assert manytune.load(trained.out, task=SIMILARITY).predict([]) == []


@pytest.mark.parametrize("row", ["One.", ("One.", ""), ("One.", "Two.", "Three.")])
def test_rows_that_do_not_fit_the_task(trained: Trained, row: Any) -> None:
    with pytest.raises(DataError, match="row 2: "):
        manytune.load(trained.out, task=SIMILARITY).predict([("A.", "B."), row])


def test_a_study_of_which_nothing_has_finished(tiny: Path, tmp_path: Path) -> None:
    study = {"name": "x", "model": str(tiny), "tasks": [SIMILARITY], "seeds": [0]}
    study["methods"] = [{"method": "head", "learning_rate": 1e-3}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(StoreError, match=r"No run of .* has finished"):
        manytune.load(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(trained: Trained, tmp_path: Path) -> None:
    """Ten times as many rows take as much memory: each part is written before the next one is read."""
    run = trained.of(ACCEPTABILITY, "head")[0].run_id
    peaks = []
    for rows in (3_000, 30_000):
        source = tmp_path / f"{rows}.csv"
        source.write_text("sentence,note\n" + "".join(f"ab {n},{'x' * 500}\n" for n in range(rows)))
        program = (
            "from pathlib import Path\nfrom manytune.cli import app\n"
            f"app({['predict', str(trained.out), str(source), '--run', run, '--out', str(tmp_path / 'made.csv')]!r}, "
            # Not ru_maxrss, which a process has from the one that started it.
            "standalone_mode=False)\nprint(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
        )
        done = run_forked([sys.executable, "-c", program], check=True)
        peaks.append(int(done.stdout.split()[-1]))
        with (tmp_path / "made.csv").open() as made:
            assert sum(1 for _ in made) == rows + 1
    assert peaks[1] - peaks[0] < 8_000, "kB; the larger file alone has 15,000 more"


ODD = ["emoji 🙂🙃", "שלום עולם", "مرحبا", "tab\tinside", "e\u0301", "\u200b zero width", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢"]


def test_texts_of_every_script_come_back_as_they_were(trained: Trained, command: Command, tmp_path: Path) -> None:
    with (tmp_path / "odd.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["sentence"], *([text] for text in ODD)])
    done = command("predict", trained.out, "odd.csv", "--task", ACCEPTABILITY, "--out", "made.csv", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    rows = list(csv.DictReader((tmp_path / "made.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["sentence"] for row in rows] == ODD


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_real_dev_rows_give_the_recorded_score_by_every_route(
    tiny: Path, tmp_path: Path, command: Command, glue_dir: Path, task: str
) -> None:
    """GLUE's own dev set, as a table and from Python, by a run of it and by its export in transformers."""
    known = get_task(task)
    study = {
        "name": "real",
        "model": str(tiny),
        "tasks": [task],
        "data_dir": str(glue_dir),
        "seeds": [0],
        "training": {"max_steps": 3, "max_length": 64},
        "methods": [{"method": "lora", "rank": 2, "learning_rate": 1e-2}],
    }
    out = tmp_path / "out"
    (record,) = run_study(Study.from_dict(study), out, device="cpu", callbacks=[]).records
    dev = load_split(known, "dev", str(glue_dir))
    with (tmp_path / "dev.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([known.text_columns, *dev.texts])
    by_table = command("predict", out, "dev.csv", "--run", record.run_id, cwd=tmp_path)
    values = [row["prediction"] for row in csv.DictReader(io.StringIO(by_table.out))]
    from_python = [made.value for made in manytune.load(out, record.run_id).predict(dev.texts)]
    for found in (values, from_python):
        numbers = [known.labels.index(str(v)) if known.labels else float(str(v)) for v in found]
        assert metrics.evaluate(known, np.array(numbers), dev.labels) == pytest.approx(record.scores, abs=1e-6)
    done = command("export", out, "--run", record.run_id, "--merge", "--to", tmp_path / "made", cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"Verified on {len(dev):,} dev rows" in done.out


# Where predictions go

ONE_ROW = [{"sentence": "The cat sat.", "id": "7"}]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return written(tmp_path / "given.csv", ONE_ROW)


def predicted(trained: Trained, command: Command, given: Path, out: object) -> Finished:
    return command("predict", trained.out, given, "--task", ACCEPTABILITY, "--out", out, cwd=given.parent)


def test_a_link_leads_to_the_file_and_its_permissions_stay(trained: Trained, command: Command, given: Path) -> None:
    there = given.with_name("there.csv")
    there.touch()
    there.chmod(0o600)
    for name, target in (("link.csv", there), ("dangling.csv", given.with_name("new.csv"))):
        given.with_name(name).symlink_to(target)
        assert predicted(trained, command, given, name).code == 0
        assert given.with_name(name).is_symlink()
        assert read(target)[0]["id"] == "7"
    assert there.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl"])
def test_a_named_pipe_is_written_into(trained: Trained, command: Command, given: Path, name: str) -> None:
    pipe = given.with_name(name)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # as the writer waits for one
    try:
        done = predicted(trained, command, given, name)
        assert (done.code, done.out, done.err) == (0, "", "")
        text = os.read(reader, 65536).decode()
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    (row,) = [json.loads(text)] if name.endswith("jsonl") else list(csv.DictReader(io.StringIO(text)))
    assert row["id"] == "7"


def test_devices_are_written_into(trained: Trained, given: Path) -> None:
    def predict(out: str, **streams: Any) -> str:
        words = ("-m", "manytune", "predict", trained.out, "given.csv", "--task", ACCEPTABILITY, "--out", out)
        done = run_forked([sys.executable, *words], cwd=given.parent, **streams)
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    (given.parent / "null.jsonl").symlink_to(os.devnull)
    predict("null.jsonl")
    piped = predict("/dev/stdout")
    assert next(csv.DictReader(io.StringIO(piped)))["id"] == "7"
    (given.parent / "log.csv").write_text("before\n")
    with (given.parent / "log.csv").open("a") as log:  # as a shell's >> does
        predict("/dev/stdout", stdout=log)
    assert (given.parent / "log.csv").read_text() == f"before\n{piped}"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (given.parent / "null.jsonl").is_symlink()
    assert not [path.name for path in given.parent.iterdir() if path.name.startswith(".")]


def a_device(given: Path) -> str:
    given.with_name("null.parquet").symlink_to(os.devnull)
    return "null.parquet"


def a_folder(given: Path) -> str:
    given.with_name("folder.csv").mkdir()
    return "folder.csv"


def the_input(given: Path) -> str:
    return "./given.csv"


def a_link_to_the_input(given: Path) -> str:
    given.with_name("link.csv").symlink_to(given)
    return "link.csv"


def the_input_by_another_name(given: Path) -> str:
    given.with_name("hard.csv").hardlink_to(given)
    return "hard.csv"


def below_a_file(given: Path) -> str:
    return "given.csv/made.csv"


def a_circle(given: Path) -> str:
    given.with_name("circle.csv").symlink_to("circle.csv")
    return "circle.csv"


def too_long(given: Path) -> str:
    return "a" * 252 + ".csv"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (a_device, "Parquet needs a file"),
        (a_folder, "is a directory"),
        (the_input, "is the file that the rows are read from"),
        (a_link_to_the_input, "is the file that the rows are read from"),
        (the_input_by_another_name, "is the file that the rows are read from"),
        (below_a_file, "given.csv cannot be written into: it is not a directory"),
        (a_circle, "symbolic links"),
        (too_long, "too long"),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(
    trained: Trained,
    command: Command,
    given: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], str],
    expected: str,
) -> None:
    monkeypatch.setattr("manytune.inference.predictor.Predictor", None)
    before = given.read_text()
    done = predicted(trained, command, given, make(given))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert expected in done.err
    assert len(done.err) < 1000
    assert given.read_text() == before


def test_the_studys_own_files_are_not_written_over(trained: Trained, command: Command, given: Path) -> None:
    history = trained.out / "runs" / trained.records[0].run_id / "history.csv"
    before = history.read_bytes()
    done = predicted(trained, command, given, history)
    assert done.code == 2
    assert "among the study's own files" in done.err
    assert history.read_bytes() == before


def test_a_name_as_long_as_can_be(trained: Trained, command: Command, given: Path) -> None:
    name = "a" * 251 + ".csv"
    assert predicted(trained, command, given, name).code == 0
    assert read(given.with_name(name))[0]["id"] == "7"


def test_no_rows_are_a_file_of_its_format(trained: Trained, command: Command, given: Path) -> None:
    given.write_text("sentence\n")
    assert predicted(trained, command, given, "made.parquet").code == 0
    assert read(given.with_name("made.parquet")) == []


# Whether a snapshot is the run's own


@pytest.fixture
def swapped(trained: Trained, tmp_path: Path) -> tuple[Path, str, str]:
    """A copy of the study to spoil, and two runs that differ by their seed alone."""
    shutil.copytree(trained.out, tmp_path / "copy")
    one, other = (record.run_id for record in trained.of(ACCEPTABILITY, "lora")[:2])
    return tmp_path / "copy", one, other


def as_an_earlier_version_wrote_it(out: Path) -> None:
    """Records of version 1, which hold no digests."""
    for path in out.glob("runs/*/record.json"):
        facts = json.loads(path.read_text())
        del facts["files"]
        path.write_text(json.dumps({**facts, "schema_version": 1}))


@pytest.mark.parametrize("name", ["best/snapshot.json", "best/snapshot.safetensors", "best"])
def test_the_snapshot_of_another_run_is_refused(
    swapped: tuple[Path, str, str], command: Command, tmp_path: Path, name: str
) -> None:
    out, one, other = swapped
    copy = shutil.copytree if name == "best" else shutil.copy
    if name == "best":
        shutil.rmtree(out / "runs" / one / name)
    copy(out / "runs" / other / name, out / "runs" / one / name)
    done = command("predict", out, "--run", one, "--text", "The cat sat.", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"is not the file that the run {one} wrote" in done.err
    assert f"delete {out / 'runs' / one} and run the study again" in done.err
    with pytest.raises(StoreError, match=f"is not the file that the run {one} wrote"):
        manytune.load(out, f"{other},{one}")
    shown = command("show", out, one, cwd=tmp_path)
    assert shown.code == 0
    assert shown.err.startswith("warning: ")
    assert f"is not the file that the run {one} wrote" in shown.err
    assert manytune.load(out, other).notes == ()


def test_without_digests_the_facts_tell_what_they_can(
    swapped: tuple[Path, str, str], command: Command, tmp_path: Path
) -> None:
    out, one, other = swapped
    as_an_earlier_version_wrote_it(out)
    done = command("predict", out, "--run", one, "--text", "The cat sat.", cwd=tmp_path)
    assert done.code == 0
    assert done.err.startswith(f"warning: {one}: trained by an earlier version, which kept no digest")
    with pytest.warns(UserWarning, match="cannot be checked"):
        manytune.load(out, one)
    shutil.copy(out / "runs" / other / "best" / "snapshot.json", out / "runs" / one / "best")
    done = command("predict", out, "--run", one, "--text", "The cat sat.", cwd=tmp_path)
    assert done.code == 2
    assert f"is not of the run {one}: its " in done.err


def test_settings_that_a_run_was_not_trained_with_are_refused(swapped: tuple[Path, str, str]) -> None:
    out, one, _ = swapped
    plan = json.loads((out / "plan.json").read_text())
    (run,) = [run for pack in plan["packs"] for run in pack["runs"] if run["id"] == one]
    run["method"]["alpha"] = 77
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(StoreError, match=f"is not of the run {one}: its alpha is 8.0, the run's 77.0"):
        manytune.load(out, one)
