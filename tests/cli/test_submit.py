"""From a study of a GLUE task to what its server takes."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from command_line import Command

import manytune
from manytune.config import Study
from manytune.data.glue_zip import check_zip
from manytune.data.tasks import GLUE
from manytune.inference.submission import _chosen
from manytune.study import run_study
from study_factory import GLUE_LIKE, make_study_directory

HEADER = "index\tsentence1\tsentence2"


def write_wnli(root: Path) -> Path:
    """A GLUE folder with WNLI's file names and sizes."""
    folder = root / "glue" / "WNLI"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        label = "" if split == "test" else "\tlabel"
        rows = [
            f"{n}\tThe box {n} holds a ball.\tIt is {'red' if n % 2 else 'blue'}.{label and f'{label[0]}{n % 2}'}"
            for n in range(GLUE["wnli"].sizes[split])
        ]
        (folder / f"{split}.tsv").write_text("\n".join([HEADER + label, *rows]) + "\n")
    return root / "glue"


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("submit")
    glue = write_wnli(root)
    study = Study.from_dict(
        {
            "name": "small",
            "model": str(tiny),
            "tasks": ["wnli"],
            "data_dir": str(glue),
            "seeds": [0, 1],
            "training": {"max_steps": 40, "eval_every": 20},
            "methods": [{"method": "full", "learning_rate": 1e-2}],
        }
    )
    run_study(study, root / "out", device="cpu", callbacks=[])
    return root


def predictions(path: Path, name: str) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [line.split("\t")[1] for line in archive.read(name).decode().splitlines()[1:]]


def test_the_best_run_predicts_and_the_rest_is_named(trained: Path, command: Command) -> None:
    done = command("submit", "out", "--out", "glue.zip", cwd=trained)
    assert done.code == 0, done.err
    assert "WNLI.tsv: wnli-full-lr1e-2-s" in done.out
    assert done.out.count("a placeholder; no run of this task has finished") == 10
    assert check_zip(trained / "glue.zip") == []
    rows = [line.split("\t") for line in (trained / "glue/WNLI/test.tsv").read_text().splitlines()[1:]]
    made = manytune.load(trained / "out").predict([(row[1], row[2]) for row in rows])
    labels = GLUE["wnli"].labels
    assert predictions(trained / "glue.zip", "WNLI.tsv") == [str(labels.index(str(each.value))) for each in made]
    assert len(set(predictions(trained / "glue.zip", "WNLI.tsv"))) == 2, "the test would not see rows out of order"


def test_several_runs_of_a_task_are_an_ensemble(trained: Path, command: Command) -> None:
    ids = ",".join(sorted(path.name for path in (trained / "out/runs").iterdir()))
    done = command("submit", "out", "--run", ids, "--out", "both.zip", cwd=trained)
    assert done.code == 0, done.err
    assert f"WNLI.tsv: {ids.replace(',', ', ')}" in done.out


def test_a_zip_is_checked(trained: Path, command: Command) -> None:
    with zipfile.ZipFile(trained / "wrong.zip", "w") as archive:
        archive.writestr("CoLA.tsv", "index\tprediction\n0\t7\n")
    done = command("submit", "wrong.zip", cwd=trained)
    assert done.code == 2
    assert "CoLA.tsv, line 2: '7' is not one of: 0, 1" in done.out
    assert "RTE.tsv is missing." in done.out


def test_test_rows_that_are_not_there(trained: Path, command: Command, tmp_path: Path) -> None:
    glue = write_wnli(tmp_path)
    (glue / "WNLI/test.tsv").unlink()
    done = command("submit", trained / "out", "--data-dir", glue, "--out", tmp_path / "glue.zip", cwd=tmp_path)
    assert done.code == 2
    assert "no test.tsv for the test split of task wnli" in done.err
    assert not (tmp_path / "glue.zip").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photo.zip", "is no submission to GLUE"),
        ("glue", "is a directory"),
        ("pipe", "a device or a pipe"),
        ("out/packs/glue.zip", "among the study's own files"),
    ],
)
def test_what_no_submission_is_stays(
    trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    (trained / "photo.zip").write_text("mine")
    if not (trained / "pipe").exists():
        os.mkfifo(trained / "pipe")
    monkeypatch.setattr("manytune.inference.submission.Predictor", None)  # it is refused before anything is predicted
    done = command("submit", "out", "--out", name, cwd=trained)
    assert (done.code, done.out) == (2, "")
    assert expected in done.err
    assert (trained / "photo.zip").read_text() == "mine"
    assert (trained / "pipe").is_fifo()


def test_the_snapshot_of_another_run_is_refused(trained: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(trained / "out", tmp_path / "out")
    one, other = (path / "best" for path in sorted((tmp_path / "out" / "runs").iterdir()))
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    done = command("submit", "out", "--out", "glue.zip", cwd=tmp_path)
    assert done.code == 2
    assert "is not the file that the run wnli-full-lr1e-2-s" in done.err
    assert not (tmp_path / "glue.zip").exists()


def test_a_task_of_which_every_run_collapsed_is_a_placeholder(tmp_path: Path) -> None:
    methods = [{"method": "full", "learning_rate": 5e-5}]
    store = make_study_directory(
        tmp_path / "s", {**GLUE_LIKE, "seeds": [0], "methods": methods}, states={"cola": "collapsed"}, artifacts=False
    )
    assert list(_chosen([store], None)) == ["stsb"]
