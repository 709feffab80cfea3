"""What commands say of a search: `report` and `show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command

from manytune.config.plan import Pack, make_runs
from manytune.config.spaces import search_spaces
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
    assert "Whether the LoRA rank matters is not known" in " ".join(search.split())
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


def test_status_says_how_far_each_method_is(searched: Path, command: Command) -> None:
    done = command("status", "results", cwd=searched.parent)
    assert (done.code, done.err) == (0, "")
    found = json.loads(command("status", "results", "--json", cwd=searched.parent).out)["search"]
    assert [each["method"] for each in found] == ["full", "bitfit", "lora"]
    for each in found:
        assert (each["wanted"], each["begun"], sum(each["states"].values())) == (24, 9, 9)
        assert sum(left for _, left in each["rungs"]) == each["states"].get("pruned", 0)
        assert each["rungs"][0][0] == 9 - each["states"].get("failed", 0)
        assert (each["confirmed"], each["to_confirm"]) == (3, 3)
    row = next(line.split() for line in done.out.splitlines() if line.split()[:2] == ["cola", "lora"])
    assert row[2] == "24"
    assert row[-3:] == ["3", "of", "3"]
    assert "15" in row  # 24 less the 9 that have begun wait


def test_status_of_a_search_that_trains(tmp_path: Path, command: Command) -> None:
    store = make_search_directory(tmp_path / "s", SMALL, trials=4, confirmed=False, failed=False)
    study = store.study()
    space = search_spaces(study, "cola")[0]
    method, training = space.at({"learning_rate": 3e-5})
    run = next(make_runs(study, "cola", method, training, [99]))
    store.write_plan([Pack("cola-full-4", "cola", "full", (run,))])
    done = command("status", "s", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    row = next(line.split() for line in done.out.splitlines() if line.split()[:2] == ["cola", "full"])
    assert (row[2], row[-1]) == ("24", "–")
    full, *others = json.loads(command("status", "s", "--json", cwd=tmp_path).out)["search"]
    assert (full["begun"], sum(full["states"].values()), full["to_confirm"]) == (5, 4, 0)
    assert [each["begun"] for each in others] == [4, 4]
