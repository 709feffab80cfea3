"""The names of devices."""

from __future__ import annotations

import re

from manytune.utils.errors import StudyError, choices

DEVICES = ("auto", "cpu", "cuda", "mps")
"""What `--device` may be; `auto` takes the first of cuda, mps and cpu that is there."""


def check_device(name: str, option: str = "--device") -> None:
    """Refuse what is no device's name; whether this machine has it, only torch knows.

    Args:
        name: One of `DEVICES`, or `cuda:` and a number.
        option: What to call it in the error's message.

    Raises:
        StudyError: There is no such device.
    """
    if name not in DEVICES and not re.fullmatch(r"cuda:\d{1,3}", name):
        raise StudyError(f"{option}: {choices(name, (*DEVICES, 'cuda:N'))}")
