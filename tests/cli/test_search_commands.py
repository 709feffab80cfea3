"""What commands say of a search: `report` and `show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command

from search_factory import SEARCH, make_search_directory

SMALL = {**SEARCH, "confirm": {"seeds": 3}}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_search_directory(tmp_path_factory.mktemp("cli") / "results", SMALL, trials=9).root


def table_rows(out: str) -> dict[str, list[str]]:
    """First word of each line → its words."""
    return {words[0]: words for line in out.splitlines() if (words := line.split())}


def test_show_without_a_run_says_what_the_search_found_and_who_was_confirmed(searched: Path, command: Command) -> None:
    done = command("show", "results", cwd=searched.parent)
    assert (done.code, done.err) == (0, "")
    search, confirmed = done.out.split("CoLA on minilm: mean")
    assert "CoLA on minilm: the search, MCC on a tenth of train, held out" in search
    rows = table_rows(search)
    assert [rows[name][1] for name in ("Full", "BitFit")] == ["9", "9"]
    assert "lr" in rows["BitFit"]
    assert "LoRA: of 9 trials, 2 failed" in search
    assert "CoLA, MCC: " in confirmed
    assert "of 3" not in confirmed


def test_show_of_the_winners_needs_a_run(searched: Path, command: Command) -> None:
    done = command("show", "results/confirm/cola", cwd=searched.parent)
    assert (done.code, done.out) == (2, "")
    assert "Missing argument 'RUN'" in done.err


def test_show_of_a_trial_has_its_rungs(searched: Path, command: Command) -> None:
    pruned = next(path for path in sorted(searched.glob("runs/*/record.json")) if '"pruned"' in path.read_text())
    record = json.loads(pruned.read_text())
    done = command("show", "results", record["run_id"], cwd=searched.parent)
    assert done.code == 0, done.err
    assert f"{record['trial']['number']} of {record['trial']['space']}" in done.out
    assert "(pruned)" in done.out


def test_report_prints_the_search_before_the_verdict(searched: Path, command: Command) -> None:
    done = command("report", "results", cwd=searched.parent)
    assert (done.code, done.err) == (0, "")
    page, *_, headline = done.out.splitlines()
    assert page == f"Report: {Path('results', 'report', 'index.html')}"
    assert "settings of the best" in done.out
    assert headline.startswith("CoLA, MCC: ")
    assert (searched / "report" / "tables" / "cola-search-trials.csv").is_file()
