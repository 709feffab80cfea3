"""`manytune watch` as a user starts and ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from command_line import Command

from study_factory import GLUE_LIKE, make_study_directory


def test_it_says_where_it_is_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    make_study_directory(tmp_path / "study", GLUE_LIKE)
    words = [sys.executable, "-m", "manytune", "watch", "study", "--port", "0"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}state") as answer:
            state = json.load(answer)
        assert state["complete"]
        assert state["packs"] == []
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


def test_what_is_no_study_is_refused(command: Command, tmp_path: Path) -> None:
    done = command("watch", "nowhere", cwd=tmp_path)
    assert done.code == 2
    assert "nowhere is not a study directory" in done.err
