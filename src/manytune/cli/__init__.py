"""The command line: arguments and exit codes, nothing else.

common.py   the application, and what commands share
studies.py  before and while a study runs: init, check, params, run
results.py  what a study came to: status, show, report, compare, clean
use.py      what was trained, in use: predict, export, submit
lists.py    what there is: tasks, methods, models, schema
main.py     exit codes
"""

from __future__ import annotations

from manytune.cli.common import app
from manytune.cli.main import main

__all__ = ["app", "main"]
