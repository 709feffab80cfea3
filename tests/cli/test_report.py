"""`manytune report` and `compare` as a user meets them, and the report that `run` writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_line import Command, manytune

from manytune.cli import result_commands
from study_factory import GLUE_LIKE, make_study_directory
from study_files import small_task, write_small_study

SMALL = {**GLUE_LIKE, "tasks": ["cola"], "methods": GLUE_LIKE["methods"][:2]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study_directory(tmp_path_factory.mktemp("cli") / "results", SMALL).root


def test_it_writes_the_page_and_says_where(study: Path, command: Command) -> None:
    done = command("report", study.name, cwd=study.parent)
    assert (done.code, done.err) == (0, "")
    page, headline = done.out.splitlines()
    assert page == f"Report: {Path('results', 'report', 'index.html')}"
    assert headline.startswith("CoLA, MCC: full fine-tuning is best, 0.")
    assert (study / "report" / "index.html").is_file()


def test_one_sentence_stands_on_the_terminal_the_page_and_in_the_summary(
    tiny: Path, command: Command, tmp_path: Path
) -> None:
    methods = [{"method": name, "learning_rate": 1e-3} for name in ("bitfit", "head")]
    training = {"max_steps": 2, "eval_every": 1, "precision": "fp32"}
    write_small_study(tmp_path, tiny, training, methods=methods, tasks=[small_task(tmp_path)])
    without = command("run", "study.yaml", "--out", "out", "--no-report", cwd=tmp_path)
    assert without.code == 0, without.err
    assert not (tmp_path / "out" / "report").exists()
    done = command("run", "study.yaml", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    (task,) = json.loads((tmp_path / "out" / "report" / "summary.json").read_text())["tasks"]
    headline = task["answer"]["headline"]
    assert headline.startswith("small, Pearson: ")
    assert "too few seeds for a verdict" in headline
    for finished in (without, done):
        assert headline in " ".join(finished.out.split())
    assert f"<h3>{headline}</h3>" in (tmp_path / "out" / "report" / "index.html").read_text()
    again = command("report", "out", cwd=tmp_path)
    assert again.out.splitlines()[1] == headline


def test_it_needs_no_torch(study: Path) -> None:
    program = (
        "import sys; from manytune import cli\n"
        f"sys.argv[1:] = ['report', {str(study)!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'pandas', 'plotly', 'matplotlib.pyplot'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_it_is_written_elsewhere_and_without_sentences_if_asked(study: Path, command: Command, tmp_path: Path) -> None:
    done = command("report", study, "--out", "there", "--no-examples", cwd=tmp_path)
    assert done.code == 0
    assert (tmp_path / "there" / "index.html").is_file()
    assert not (tmp_path / "there" / "tables" / "cola-mistakes.csv").exists()


def test_it_opens_the_page_if_asked(study: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    command("report", study, "--open", cwd=study)
    assert opened == [(study / "report" / "index.html").as_uri()]


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["nowhere"], "is not a study directory"), ([".", "."], "--out is missing")]
)
def test_what_cannot_be_is_refused(study: Path, command: Command, arguments: list[str], expected: str) -> None:
    done = command("report", *arguments, cwd=study)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert expected in done.err


def test_watching_writes_anew_until_the_study_is_complete(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study_directory(tmp_path / "s", SMALL, pending=["cola-bitfit"], artifacts=False)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:  # the runs that were pending end
            make_study_directory(tmp_path / "s", SMALL, artifacts=False)

    monkeypatch.setattr(result_commands, "time", SimpleNamespace(sleep=wait))
    done = command("report", "s", "--watch", "--every", "5", cwd=tmp_path)
    assert (done.code, waits) == (0, [5.0, 5.0])
    assert done.out.count("Report: ") == 1
    assert "not complete" not in (tmp_path / "s" / "report" / "index.html").read_text()


def test_run_writes_the_report_of_what_it_trained(tiny: Path, command: Command, tmp_path: Path) -> None:
    study = {
        "name": "end-to-end",
        "model": str(tiny),
        "tasks": ["builtin-acceptability", "builtin-similarity"],
        "seeds": [0, 1],
        "training": {"max_steps": 4, "eval_every": 2, "precision": "fp32"},
        "methods": [
            {"method": "bitfit", "learning_rate": 1e-3},
            {"method": "lora", "rank": [2, 4], "learning_rate": 1e-2},
        ],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = command("run", "study.yaml", "--out", "results", "--quiet", cwd=tmp_path)
    assert done.code == 0
    page = tmp_path / "results" / "report" / "index.html"
    assert f"Report: {page.relative_to(tmp_path)}\n" in done.out
    text = page.read_text()
    assert "too few seeds for a verdict" in text
    for there in ("Built-in acceptability: worst mistakes", "encoder.layer.0–1", "frozen + r=2, 4", "chart-curves"):
        assert there in text
    summary = json.loads((page.parent / "summary.json").read_text())
    assert [task["task"] for task in summary["tasks"]] == study["tasks"]
    assert all(c["examples_interval"] for task in summary["tasks"] for c in task["configurations"])


def test_where_every_run_collapsed_there_is_a_report_and_predict_says_it(
    tiny: Path, command: Command, tmp_path: Path
) -> None:
    study = {"name": "s", "model": str(tiny), "tasks": ["builtin-acceptability"], "seeds": [0]}
    study |= {"training": {"max_steps": 2}, "methods": [{"method": "head", "head": "bias", "learning_rate": 1e2}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = command("run", "study.yaml", "--out", "results", cwd=tmp_path)
    assert done.code == 0
    assert "collapsed: It predicts one constant for all dev rows (MCC 0.000)" in done.err
    assert "1 collapsed (predicting one constant)." in (tmp_path / "results" / "report" / "report.md").read_text()
    words = ("predict", "results", "--text", "The cat sat.")
    refused = command(*words, cwd=tmp_path)
    assert refused.code == 2
    assert "1 collapsed (predicting one constant for every text; --run builtin-acceptability-head" in refused.err
    (run,) = (tmp_path / "results" / "runs").iterdir()
    assert command(*words, "--run", run.name, cwd=tmp_path).code == 0


def test_what_a_report_goes_without_is_a_warning(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "results")
    damaged = sorted((tmp_path / "results").glob("runs/*/history.csv"))[0]
    damaged.write_text("step\n1\n")
    done = manytune("report", "results", cwd=tmp_path)
    assert done.code == 0
    assert done.out.startswith("Report: ")
    (line,) = done.err.splitlines()
    assert line.startswith(f"warning: No curve of {damaged.parent.name}: ")


def test_run_goes_without_a_report_if_asked(tiny: Path, command: Command, tmp_path: Path) -> None:
    study = {"name": "s", "model": str(tiny), "tasks": ["builtin-acceptability"], "seeds": [0]}
    study |= {"training": {"max_steps": 2}, "methods": [{"method": "head", "learning_rate": 1e-3}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert command("run", "study.yaml", "--out", "results", "--no-report", cwd=tmp_path).code == 0
    assert not (tmp_path / "results" / "report").exists()
    (tmp_path / "results" / "report").write_text("in the way")
    done = command("run", "study.yaml", "--out", "results", cwd=tmp_path)
    assert done.code == 0  # the results are whole all the same
    assert "warning: no report: " in done.err


def test_compare_says_what_changed(study: Path, command: Command, tmp_path: Path) -> None:
    other = make_study_directory(
        tmp_path / "other", {**SMALL, "template": "spaced"}, artifacts=False, quality={"full": 0.7, "bitfit": 0.5}
    )
    done = command("compare", study, other.root, cwd=tmp_path)
    assert done.code == 0
    assert "template" in done.out
    assert "changed" in done.out
    as_json = json.loads(command("compare", study, other.root, "--json", cwd=tmp_path).out)
    assert as_json["settings"] == [["template", "native", "spaced"]]
    assert len(as_json["changes"]) == 3
