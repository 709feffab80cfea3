"""Run the command line.

Exit codes: 0 done, 1 some run failed, 2 the user's input is wrong, 128 + n stopped by the signal n: 130 by Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

from manytune.cli import (
    best_command,
    extend_command,
    list_commands,
    plan_command,
    quick_command,
    result_commands,
    study_commands,
    use_commands,
)
from manytune.cli.common import app
from manytune.utils.caches import settle_caches
from manytune.utils.errors import ManytuneError
from manytune.utils.text import say

COMMANDS = (
    study_commands,
    quick_command,
    plan_command,
    result_commands,
    best_command,
    extend_command,
    use_commands,
    list_commands,
)
"""The modules whose commands the application has, in the order of its help."""


def main() -> NoReturn:
    """Run the command line; an error that a user can mend is one message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the caller closed it
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks, such as ± in ASCII
    settle_caches()
    try:
        try:
            app(prog_name="manytune")
        finally:
            if sys.stdout is not None:  # None where the caller closed it
                sys.stdout.flush()
    except ManytuneError as error:
        say(f"error: {error}", error=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is not None:  # a file's: whoever opened it should have reported it
            raise
        # What is left to print goes nowhere, so that the interpreter does not fail at it once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            sys.exit(1)
        say(
            f"error: The output cannot be written: {error.strerror}. Send it elsewhere, or make room there.", error=True
        )
        sys.exit(2)
    sys.exit()
