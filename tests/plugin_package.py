"""A package that brings a plug-in by an entry point, as a fresh process sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import manytune

__all__ = ["printed_with_package"]


def printed_with_package(folder: Path, source: str, group: str, entry: str, program: str) -> tuple[str, str]:
    """What a program prints with the package installed, and without it; it must print no error.

    The package is the module `brought` with this source; `entry` names its class in the entry point `group`.
    """
    (folder / "brought.py").write_text(source)
    facts = folder / "brought-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{group}]\nplugin = brought:{entry}\n")
    sources = str(Path(manytune.__file__).parents[1])

    def printed(*paths: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.stdout.strip()

    return printed(str(folder), sources), printed(sources)
