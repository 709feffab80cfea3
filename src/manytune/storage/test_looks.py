"""How often the test file of a search was looked at: each look that may lead to another choice makes it less of a test.

OUT/search/test-looks.json   task → the looks: the data's fingerprint, and how many runs had been scored on it by then
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from manytune.storage.record import RunRecord
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_file

_FILE = Path("search") / "test-looks.json"


@dataclass(frozen=True)
class TestLook:
    """One time at which scores on a test file could be seen."""

    fingerprint: str  # SHA-256 over the texts and labels of train and test
    runs: int  # that had been scored on it by then
    scored: str  # digest of their ids


def read_test_looks(root: Path) -> dict[str, list[TestLook]]:
    """Task → its looks, in their order; raises StoreError where the file is damaged."""
    text = read_text(root / _FILE)
    try:
        return {} if text is None else TypeAdapter(dict[str, list[TestLook]]).validate_json(text)
    except ValueError as error:
        raise StoreError(f"{root / _FILE} is damaged: {' '.join(str(error).split())}") from error


def note_test_look(root: Path, task: str, records: Iterable[RunRecord]) -> int:
    """Note that runs were scored on a task's test file, unless the same were at the last look.

    Returned is how often the file that is there now was looked at.
    """
    records = list(records)
    looks = read_test_looks(root)
    seen = looks.setdefault(task, [])
    if records:
        ids = "\n".join(sorted(record.run_id for record in records))
        scored = hashlib.sha256(ids.encode()).hexdigest()[:16]
        now = TestLook(str(records[-1].provenance.data_fingerprint), len(records), scored)
        if not seen or seen[-1] != now:
            seen.append(now)
            values = {name: [asdict(look) for look in each] for name, each in looks.items()}
            write_file(root / _FILE, json.dumps(values, indent=2) + "\n")
    return sum(look.fingerprint == seen[-1].fingerprint for look in seen) if seen else 0
