"""Run the command line as a user does: in a process of its own, or, where seconds count, in this one."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from forked import run_forked
from manytune import cli

__all__ = ["Command", "Finished", "manytune"]


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    code: int
    out: str
    err: str


def manytune(*args: object, cwd: Path, **environment: str) -> Finished:
    """Run the installed command in a process of its own."""
    command = [Path(sys.executable).with_name("manytune"), *args]
    done = run_forked(command, cwd=cwd, env=os.environ | environment)
    return Finished(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Command:
    """Runs the command line in this process, which has paid for its imports already."""

    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def __call__(self, *args: object, cwd: Path) -> Finished:
        self.patch.chdir(cwd)
        self.patch.setattr(sys, "argv", ["manytune", *map(str, args)])
        self.patch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
        self.capture.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        text = self.capture.readouterr()
        return Finished(stop.value.code if isinstance(stop.value.code, int) else 0, text.out, text.err)
