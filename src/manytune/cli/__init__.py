"""The command line: a module for each group of commands, `common` for what they share, `main` for exit codes."""

from __future__ import annotations

from manytune.cli.common import app
from manytune.cli.main import main

__all__ = ["app", "main"]
