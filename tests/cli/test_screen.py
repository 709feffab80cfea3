"""What users' files hold reaches a screen, a table or a document as text, whatever the text is."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command, manytune
from rich.console import Console
from rich.table import Table

import manytune as package
from manytune.storage.directory import Store
from manytune.tracking.progress import CleanConsole, TerminalProgress
from record_factory import make_record
from study_factory import make_study_directory

HOSTILE = "\x1b[31mred\x07\x9b2J\u202egnp\u2066\u2028"
SHOWN = r"\x1b[31mred\x07\x9b2J\u202egnp\u2066\u2028"
COMMANDS = "\x1b\x07\x9b\u202e\u2066\u2028"
STUDY: dict[str, Any] = {
    "name": "small",
    "tasks": ["builtin-acceptability"],
    "seeds": [0, 1, 2],
    "methods": [{"method": "lora", "rank": 4, "learning_rate": 1e-3}, {"method": "full", "learning_rate": 2e-5}],
}


def is_clean(text: str) -> bool:
    return not any(sign in text for sign in COMMANDS)


@pytest.fixture
def hostile(tmp_path: Path) -> Store:
    """A study directory of somebody else, in which every text that may be anything commands the terminal."""
    store = make_study_directory(tmp_path / "out", STUDY, states={"builtin-acceptability-lora-r4-lr1e-3-s0": "failed"})
    for path in store.root.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        record["label"] += f" {HOSTILE}\n\trow"
        record["notes"] = [HOSTILE]
        record["provenance"]["hardware"] = {"cpu": HOSTILE, HOSTILE: "x"}
        if record["failure"]:
            record["failure"] = HOSTILE
        path.write_text(json.dumps(record))
    return store


class TestCommands:
    def test_results_of_somebody_else(self, hostile: Store, command: Command, tmp_path: Path) -> None:
        run = next(path.name for path in hostile.root.glob("runs/*lora*s0*"))
        for words in (["status", "out"], ["status", "out", "--all"], ["show", "out", run], ["compare", "out", "out"]):
            done = command(*words, cwd=tmp_path)
            assert done.code == 0, done.err
            assert is_clean(done.out + done.err)
        assert SHOWN in command("show", "out", run, cwd=tmp_path).out.replace("\n", "")

    def test_a_cell_with_a_line_feed_or_a_tab_stays_in_its_row(
        self, hostile: Store, command: Command, tmp_path: Path
    ) -> None:
        run = next(path.name for path in hostile.root.glob("runs/*full*s0*"))
        (line,) = (line for line in command("show", "out", run, cwd=tmp_path).out.splitlines() if "method" in line)
        assert line.rstrip().endswith(r"\n\trow")

    @pytest.mark.parametrize("key", ["\x1b[31mred", "\u202egnp", "\x9b2J", "a\nerror: b", "\ud800"])
    def test_keys_and_values_of_a_study_file(self, key: str, command: Command, tmp_path: Path) -> None:
        study = yaml.safe_dump({**STUDY, key: key, "training": {"schedule": key, key: 1}})
        (tmp_path / "study.yaml").write_text(study)
        done = command("run", "study.yaml", "--dry-run", cwd=tmp_path)
        assert done.code == 2
        assert is_clean(done.err)
        assert not any(line.startswith("error: b") for line in done.err.splitlines())
        assert (done.err + done.out).encode()

    @pytest.mark.parametrize(
        "words",
        [
            ["run", HOSTILE],
            ["status", HOSTILE],
            ["report", HOSTILE],
            ["submit", f"{HOSTILE}.zip"],
            ["run", f"--{HOSTILE}"],
            ["run", "study.yaml", f"{HOSTILE}=1", "--dry-run"],
            ["run", "study.yaml", "--dry-run", "--device", HOSTILE],
            ["run", "study.yaml", "--dry-run", "--executor", HOSTILE],
            ["watch", "x", "--port", HOSTILE],
            ["params", "--method", HOSTILE, "minilm"],
            ["init", f"{HOSTILE}/x"],
            [HOSTILE],
            ["x" * 100_000],
            ["run", "study.yaml", "--dry-run", "--" + "x" * 100_000],
            ["params", "minilm", "--rank", "9" * 100_000],
        ],
    )
    def test_arguments(self, words: list[str], command: Command, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
        done = command(*words, cwd=tmp_path)
        assert done.code == 2
        assert is_clean(done.err + done.out)
        assert len(done.err) < 3500

    def test_json_is_ascii_and_holds_the_text_as_it_is(self, hostile: Store, command: Command, tmp_path: Path) -> None:
        run = next(path.name for path in hostile.root.glob("runs/*lora*s0*"))
        done = command("show", "out", run, "--json", cwd=tmp_path)
        assert done.out.isascii()
        assert "\x7f" not in done.out
        assert json.loads(done.out)["failure"] == HOSTILE

    def test_no_command_prints_by_another_way(self) -> None:
        folder = Path(package.__file__).parent
        found = [
            (path.relative_to(folder).as_posix(), node.func.id)
            for path in folder.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console")
        ]
        assert sorted(found) == [("cli/common.py", "print"), ("utils/text.py", "print")]


class TestProgress:
    def test_messages_and_failures(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=False, width=200)
        progress = TerminalProgress(console=console)
        progress.on_message(HOSTILE, "warning")
        progress.on_run_end("pack", make_record(run_id="run", state="failed", failure=HOSTILE))
        assert console.file.getvalue().splitlines() == [f"warning: {SHOWN}", f"error: run failed: {SHOWN}"]  # type: ignore[attr-defined]

    def test_the_console_escapes_what_any_part_of_it_draws(self) -> None:
        console = CleanConsole(file=io.StringIO(), force_terminal=True, width=200, color_system="standard")
        table = Table(title=HOSTILE)
        table.add_column(HOSTILE)
        table.add_row(HOSTILE, style="red")
        console.print(table)
        console.print(HOSTILE, highlight=False)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "\x1b[31m" in text  # the console's own red
        assert "\x1b[31mred" not in text
        assert not any(sign in text for sign in COMMANDS[1:])
        assert text.splitlines()[-1] == SHOWN.replace(r"\x07", "")  # rich drops the bell itself
        assert isinstance(TerminalProgress()._console, CleanConsole)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
class TestAnEncodingThatLacksLetters:
    def test_tables_and_messages(self, encoding: str, tmp_path: Path) -> None:
        make_study_directory(tmp_path / "out", STUDY)
        for words, code in ((["status", "out"], 0), (["methods"], 0), (["report", "out"], 0), (["status", "→"], 2)):
            done = manytune(*words, cwd=tmp_path, PYTHONIOENCODING=encoding, LC_ALL="C")
            assert done.code == code, done.err
            assert "Traceback" not in done.err
            assert (done.out + done.err).isascii()


def test_report_tables_hold_no_formula_and_no_command(hostile: Store, command: Command, tmp_path: Path) -> None:
    for path in hostile.root.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "label": "=HYPERLINK(1)" + record["label"]}))
    done = command("report", "out", "--no-examples", cwd=tmp_path)
    assert done.code == 0, done.err
    tables = sorted((tmp_path / "out" / "report" / "tables").glob("*.csv"))
    assert len(tables) > 4
    for path in tables:
        for row in csv.reader(io.StringIO(path.read_text(), newline="")):
            assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row)
    for path in (tmp_path / "out" / "report").rglob("*"):
        if path.suffix in (".csv", ".tex", ".md", ".svg"):
            assert not any(sign in path.read_text() for sign in "\x1b\x07\x9b\u202e\u2066"), path.name
