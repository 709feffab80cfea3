"""What the results in a study directory rest on beside the study: the data, and the packages' versions.

OUT/ground.json   kind → name → value, such as versions → torch → 2.13.0
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from manytune.storage.directory import differences
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_file
from manytune.utils.text import shortened

__all__ = ["StudyProvenance", "changes", "keep"]

StudyProvenance = Mapping[str, Mapping[str, str]]
"""Kind → name → value."""


def changes(root: Path, ground: StudyProvenance) -> list[str]:
    """What has changed since it was kept, as lines "what: <there> there, <here> here"; new names are no change.

    Raises:
        StoreError: What was kept is damaged.
    """
    there = _read(root)
    known = {kind: {**names, **_common(there.get(kind, {}), names)} for kind, names in ground.items()}
    return differences(known, {kind: dict(names) for kind, names in ground.items()})


def keep(root: Path, ground: StudyProvenance) -> None:
    """Keep it; what was kept of other names, such as the data of another task, stays."""
    there = _read(root)
    whole = {**there, **{kind: {**there.get(kind, {}), **names} for kind, names in ground.items()}}
    write_file(root / "ground.json", json.dumps(whole, indent=2) + "\n")


def _read(root: Path) -> StudyProvenance:
    path = root / "ground.json"
    text = read_text(path)
    if text is None:
        return {}
    try:
        return TypeAdapter(dict[str, dict[str, str]]).validate_json(text)
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {shortened(error)}. Delete it to go on.") from error


def _common(there: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in there.items() if name in here}
