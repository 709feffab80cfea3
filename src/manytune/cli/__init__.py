"""The command line: arguments and exit codes, nothing else."""

from __future__ import annotations

from manytune.cli.common import app
from manytune.cli.main import main

__all__ = ["app", "main"]
