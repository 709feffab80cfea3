"""`quick` and `init --data`: from a file to a report, and to a study file."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest
import torch
from command_line import Command

from manytune.cli import training
from manytune.config import Study
from manytune.config.quick_study import Size, epochs_for, quick_study
from manytune.data.text_lines import Dialect
from manytune.executors import probe
from manytune.executors.fit import fit
from manytune.executors.probe import Pace, Probe
from manytune.methods import PackKind
from manytune.storage.directory import Store
from manytune.utils.errors import StudyError

ROWS = [(f"{'good' if n % 2 else 'bad'} thing {n}", ("gut", "schlecht")[n % 2]) for n in range(24)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="cp1252") as rows:
        csv.writer(rows, delimiter=";").writerows([("Text", "Bewertung"), *ROWS])
    return path


def test_from_a_file_to_a_report_and_on(
    tiny: Path, command: Command, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("quick", "reviews.csv", "--model", str(tiny), "--minutes", "60")
    probed, measure = [], probe._probe
    monkeypatch.setattr(probe, "_probe", lambda *args: probed.append(args) or measure(*args))
    done = command(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    said = done.out.splitlines()
    assert said[0] == "reviews.csv: 24 rows, columns Text, Bewertung."
    assert "5 seeds, all 20 training rows, 20 epochs: about" in done.out
    assert "manytune extend reviews-quick --seeds" in done.out
    assert (tmp_path / "reviews-quick" / "report" / "index.html").is_file()
    study = Study.from_file(tmp_path / "reviews-quick.yaml")
    assert study == Store.open(tmp_path / "reviews-quick").study()
    records = Store.open(tmp_path / "reviews-quick").finished_runs().values()
    assert {(record.method, record.seed) for record in records} == {
        (method, seed) for method in ("full", "lora", "bitfit", "head") for seed in range(5)
    }
    assert len(probed) == 3, "each kind of pack once, though the study is fitted and then trained"
    again = command(*words, cwd=tmp_path)
    assert again.code == 0
    assert again.out.startswith("reviews-quick.yaml is there: going on with it.")
    assert "25 of 25 runs have ended before" in again.err
    other = command(*words, "--label", "Text", cwd=tmp_path)
    assert other.code == 2
    assert "reviews-quick.yaml is there, and was not written by this command" in other.err
    (tmp_path / "reviews-quick.yaml").unlink()
    assert "reviews-quick holds a study already" in command(*words, cwd=tmp_path).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--type", "clases"], "type: 'clases' is not one of: classification, regression"),
        (["--separator", "blank"], "separator"),
        (["--encoding", "utf-99"], "it must be the name of an encoding"),
        (["--label", "Bewertng"], "no column 'Bewertng'; the columns found are: Text, Bewertung. Is it 'Bewertung'?"),
        (["--text", "Bewertung", "--label", "Bewertung"], "cannot be text and label at once"),
        (["--minutes", "0.4"], "Give --minutes"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    tiny: Path, command: Command, file: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    done = command("quick", file.name, "--model", str(tiny), *words, cwd=tmp_path)
    assert done.code == 2
    assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_init_writes_a_study_of_a_file(command: Command, file: Path, tmp_path: Path) -> None:
    done = command("init", "--data", file.name, cwd=tmp_path)
    assert done.out == "Wrote study.yaml. Edit it, then: manytune run study.yaml --out results\n"
    assert "label: Bewertung" in done.err
    study = Study.from_file(tmp_path / "study.yaml")
    assert (study.task_names, study.limit) == (("reviews",), 800)
    assert study.task("reviews").own.dialect.encoding is None, "these rows are the same in UTF-8"
    assert "exists already" in command("init", "--data", "no-such.csv", cwd=tmp_path).err
    assert "go with --data FILE" in command("init", "b.yaml", "--label", "x", cwd=tmp_path).err


def test_the_first_line_of_a_study_file_is_the_command_that_wrote_it(command: Command, tmp_path: Path) -> None:
    rows = [f"|a {'good' if n % 2 else 'bad'} thing, süß;{n % 2};it's {n}" for n in range(30)]
    (tmp_path / "my rows.csv").write_text("\n".join(["a|b,c;label;more", *rows, ""]), encoding="cp1252")
    options = ["--text", "a|b,c", "--text", "more", "--label", "label", "--type", "regression"]
    options += ["--separator", ";", "--quoting", "none", "--encoding", "cp1252"]
    done = command("init", "a study.yaml", "--data", "my rows.csv", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    written = (tmp_path / "a study.yaml").read_text()
    said, _, words = written.partition("\n")[0].partition("manytune ")
    assert said == "# Written by: "
    (tmp_path / "a study.yaml").unlink()
    assert command(*shlex.split(words), cwd=tmp_path).code == 0
    assert (tmp_path / "a study.yaml").read_text() == written
    task = Study.from_file(tmp_path / "a study.yaml").task("my-rows")
    assert task.own is not None
    assert (task.text_columns, task.own.dialect) == (("a|b,c", "more"), Dialect("none", "semicolon", "cp1252"))


@pytest.mark.parametrize("name", ["quick", "init"])
def test_a_task_has_columns_of_its_own(command: Command, tmp_path: Path, name: str) -> None:
    words = ("quick", "cola") if name == "quick" else ("init", "--data", "cola")
    done = command(*words, "--label", "grade", "--separator", "tab", cwd=tmp_path)
    assert done.code == 2
    assert "--label, --separator: cola is a known task, whose columns are known too." in " ".join(done.err.split())
    assert not list(tmp_path.iterdir())


def test_a_study_is_fitted_into_the_time(tiny: Path) -> None:
    def draft(size: Size) -> Study:
        return Study.from_dict(quick_study("builtin-acceptability", size, model=str(tiny)))

    def at(pace: float) -> Probe:
        """Steps take so many times as long as from products alone, instead of what is measured."""
        kinds: tuple[PackKind, ...] = ("full", "adapters", "head")
        return Probe({(kind, torch.get_num_threads()): Pace(pace, 0.0) for kind in kinds})

    slow = fit(draft, "cpu", 1e9, 5.0, at(2.0))
    whole = fit(draft, "cpu", 1e9, 5.0, at(1.0))
    assert whole.size == slow.size == Size(5, None, epochs_for(whole.rows))
    assert 5.0 < whole.seconds < slow.seconds
    previous = whole.size.seeds, whole.rows
    for share in (0.8, 0.5):
        there = 5.0 + share * (whole.seconds - 5.0)
        part = fit(draft, "cpu", there, 5.0, at(1.0))
        assert part.seconds <= there
        size = part.size.seeds, part.size.rows or part.rows
        assert size < previous, "fewer rows, or fewer seeds"
        previous = size
    with pytest.raises(StudyError, match=r"even a study of one seed and 100 rows takes about .* min on .* --minutes"):
        fit(draft, "cpu", 99.0, 100.0, at(1.0))


def test_a_page_is_opened_where_somebody_can_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not training.can_browse(), "tests have no terminal"
