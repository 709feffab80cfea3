"""What the results of a study depend on beside its file: the data, and the packages' versions.

OUT/provenance.json   kind → name → value, such as versions → torch → 2.13.0; earlier versions wrote OUT/ground.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from manytune.storage.directory import differences
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_file
from manytune.utils.text import shortened

StudyProvenance = Mapping[str, Mapping[str, str]]
"""Kind → name → value."""


def changes(root: Path, now: StudyProvenance) -> list[str]:
    """What has changed since it was kept, as lines "what: <there> there, <here> here".

    A name that was not kept, such as the data of a new task, is no change; nor is a kept one that `now` does not have.
    A StoreError says that what was kept is damaged.
    """
    kept = _read(root)
    known = {
        kind: {name: kept.get(kind, {}).get(name, value) for name, value in names.items()}
        for kind, names in now.items()
    }
    return differences(known, {kind: dict(names) for kind, names in now.items()})


def refuse_changes(
    root: Path, now: StudyProvenance, say: Callable[[str, Literal["warning"]], None], *, accept_changes: bool
) -> None:
    """Raise StoreError where something has changed; with `accept_changes`, say it."""
    if not (changed := changes(root, now)):
        return
    lines = "\n".join(f"  {line}" for line in changed)
    if not accept_changes:
        raise StoreError(
            f"What the results in {root} rest on has changed since they were begun:\n{lines}\n"
            "Go back to that, give another --out, or --accept-changes to go on all the same."
        )
    say(f"Accepted changes:\n{lines}", "warning")


def keep(root: Path, now: StudyProvenance) -> None:
    """Keep the values of `now`; what was kept of other names, such as the data of another task, stays."""
    kept = _read(root)
    whole = {**kept, **{kind: {**kept.get(kind, {}), **names} for kind, names in now.items()}}
    write_file(root / "provenance.json", json.dumps(whole, indent=2) + "\n")


def _read(root: Path) -> StudyProvenance:
    for name in ("provenance.json", "ground.json"):
        path = root / name
        text = read_text(path)
        if text is not None:
            try:
                return TypeAdapter(dict[str, dict[str, str]]).validate_json(text)
            except ValueError as error:
                raise StoreError(f"{path} is damaged: {shortened(error)}. Delete it to go on.") from error
    return {}
