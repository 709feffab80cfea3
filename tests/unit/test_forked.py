"""Processes that find the libraries imported are processes like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forked import ForkedProcess, run_forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are fresh processes")

SEEN = """
import json, os, sys
line = input()
loaded = [name for name in ("torch", "transformers", "manytune") if name in sys.modules]
print(json.dumps([loaded, os.getppid(), os.getcwd(), os.environ.get("SEEN"), sys.argv, line]))
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, ["torch", "transformers"]), ({"HF_ENDPOINT": "http://here"}, ["torch"]), ({"OMP_NUM_THREADS": "2"}, [])],
    ids=["the tests' own", "of another hub", "of another number of threads"],
)
def test_it_finds_imported_what_does_not_depend_on_its_environment(
    environment: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    given = {**os.environ, **environment, "SEEN": "yes"}
    done = run_forked([sys.executable, "-c", SEEN, "word"], cwd=tmp_path, env=given, input="line\n")
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout) == [expected, os.getpid(), str(tmp_path), "yes", ["-c", "word"], "line"]


def test_it_ends_as_it_should() -> None:
    assert run_forked([sys.executable, "-c", "1 / 0"]).returncode == 1
    assert "ZeroDivisionError" in run_forked([sys.executable, "-c", "1 / 0"]).stderr
    waiting = "import signal; print('here', flush=True); signal.pause()"
    with ForkedProcess([sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
