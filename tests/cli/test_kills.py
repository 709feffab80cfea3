"""A study that is killed, or asked to stop, goes on and comes to the same end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from study_files import write_small_study

CAMPAIGN = Path(__file__).parents[1] / "faults" / "campaign.py"


def test_25_kills_at_random_moments_change_nothing() -> None:
    done = subprocess.run([sys.executable, CAMPAIGN, "--kills", "25"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 25
    assert result["differing"] == []
    assert len(result["phases"]) >= 5


def start(study: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "manytune", "run", str(study), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Path:
    """One that takes long enough to be asked to stop."""
    training = {"max_steps": 100_000, "eval_every": 50_000, "checkpoint_every": 10, "precision": "fp32"}
    return write_small_study(tmp_path, tiny, training)


def step_of(roster: Path) -> int:
    return int(roster.stem.removeprefix("roster-"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_after_a_checkpoint_and_says_how_to_go_on(
    study: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    steps: list[int] = []
    for _ in range(2):
        process = start(study, out)
        while not (kept := sorted(out.glob("packs/*/*.json"))) or (steps and step_of(kept[-1]) <= steps[-1]):
            assert process.poll() is None, process.communicate()
        process.send_signal(number)
        stdout, stderr = process.communicate()
        assert process.returncode == code
        assert "Interrupted. The same command goes on from what is kept." in stderr
        assert "Traceback" not in stderr + stdout
        if steps:
            assert "goes on from step " in stderr
            assert int(stderr.partition("goes on from step ")[2].partition(".")[0]) >= steps[-1]
        steps.append(step_of(sorted(out.glob("packs/*/*.json"))[-1]))
        assert not (out / "lock").exists()


def test_two_that_run_one_study_do_not_mix(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(study, out)
    while not (out / "lock").exists():
        assert first.poll() is None, first.communicate()
    second = start(study, out)
    _, stderr = second.communicate()
    assert second.returncode == 2
    assert f"is in use: the process {first.pid} on " in stderr
    first.kill()
    first.communicate()
