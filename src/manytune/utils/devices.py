"""The names of devices."""

from __future__ import annotations

import re

from manytune.utils.errors import StudyError, choices

DEVICES = ("auto", "cpu", "cuda", "mps")
"""What `--device` may be; `auto` takes the first of cuda, mps and cpu that is there."""


def check_device(name: str, option: str = "--device") -> None:
    """Refuse a device that is neither in `DEVICES` nor `cuda:` and a number, by a StudyError about `option`."""
    if name not in DEVICES and not re.fullmatch(r"cuda:\d{1,3}", name):
        raise StudyError(f"{option}: {choices(name, (*DEVICES, 'cuda:N'))}")
