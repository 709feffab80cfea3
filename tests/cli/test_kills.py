"""A study that is killed, or asked to stop, goes on and comes to the same end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command

from forked import ForkedProcess
from study_files import write_small_study
from waiting import until_brought_about

CAMPAIGN = Path(__file__).parents[1] / "faults" / "campaign.py"
QUEUE = CAMPAIGN.with_name("joined_pack.py")
SEARCH = CAMPAIGN.with_name("search_kills.py")


def test_25_kills_at_random_moments_change_nothing() -> None:
    done = subprocess.run([sys.executable, CAMPAIGN, "--kills", "25"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 25
    assert result["differing"] == []
    assert len(result["phases"]) >= 5


def test_a_pack_that_runs_join_goes_on_with_the_same_runs_to_the_same_end() -> None:
    """Ten runs with room for four; killed after a record, at a tick, before a roster and after a checkpoint."""
    moments = ["record:2", "step:6", "roster:3", "checkpoint:4"]
    done = subprocess.run([sys.executable, QUEUE, *moments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["codes"] == [-signal.SIGKILL] * len(moments) + [0]
    assert result["differing"] == []
    assert result["states"] == ["failed", *["finished"] * 9]
    assert len(set(result["steps"])) >= 7


def test_a_search_goes_on_as_it_would_have_whatever_it_was_killed_at() -> None:
    """At each kind of moment once: a step, a decision, a line of the journal or half of one, a record."""
    done = subprocess.run([sys.executable, SEARCH, "--kills", "9"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 9
    assert len(result["moments"]) >= 5
    assert result["trials"].keys() == {"finished", "pruned", "failed"}
    assert result["differing"] == []


def start(study: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "manytune", "run", str(study), "--out", str(out)]
    return ForkedProcess(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Path:
    """One that takes long enough to be asked to stop."""
    training = {"max_steps": 100_000, "eval_every": 50_000, "checkpoint_every": 10, "precision": "fp32"}
    return write_small_study(tmp_path, tiny, training)


def step_of(roster: Path) -> int:
    return int(roster.stem.removeprefix("roster-"))


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_two_do_not_mix_and_a_signal_ends_it_after_a_checkpoint(
    study: Path, tmp_path: Path, command: Command, numbers: tuple[signal.Signals, ...]
) -> None:
    out = tmp_path / "out"
    step = 0

    def goes_on() -> bool:
        return any(step_of(roster) > step for roster in out.glob("packs/*/*.json"))

    for number in numbers:  # of a study that begins, and of one that goes on
        process = start(study, out)
        until_brought_about(goes_on, process)
        if not step:
            second = command("run", study, "--out", out, cwd=tmp_path)
            assert second.code == 2
            assert f"is in use: the process {process.pid} on " in second.err
        process.send_signal(number)
        stdout, stderr = process.communicate()
        assert process.returncode == 128 + number
        assert "Interrupted. The same command goes on from what is kept." in stderr
        assert "Traceback" not in stderr + stdout
        if step:
            assert "goes on from step " in stderr
            assert int(stderr.partition("goes on from step ")[2].partition(".")[0]) >= step
        step = max(map(step_of, out.glob("packs/*/*.json")))
        assert not (out / "lock").exists()
