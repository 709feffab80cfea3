"""The winner of each search space: found once, from the records of its trials, and kept from then on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from manytune.config.spaces import Space
from manytune.data.metrics import METRICS
from manytune.storage.record import RunRecord, RunState
from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_atomically
from manytune.utils.text import parse_json

FILE = Path("search") / "winners.json"


@dataclass(frozen=True)
class Winner:
    """The best trial of a space."""

    task: str
    space: str
    run_id: str
    score: float  # on the rows that select
    settings: dict[str, Any]  # of the space's dimensions
    trials: int  # that the space had
    pruned: int  # of them


def best_trial(records: Iterable[RunRecord]) -> RunRecord | None:
    """Of trials of one space the one with the best score, the earlier of equals, that trained to its end.

    One that predicts a constant is none: to train it again would say nothing. None where there is no other.
    """
    ended = [(record, record.trial.number) for record in records if record.trial is not None and _counts(record)]
    if not ended:
        return None
    sign = METRICS[ended[0][0].primary_metric].sign
    return max(ended, key=lambda each: (sign * (each[0].best_score or 0.0), -each[1]))[0]


def _counts(record: RunRecord) -> bool:
    return record.state is RunState.FINISHED and record.best_score is not None


def choose_winners(spaces: Sequence[Space], records: Iterable[RunRecord]) -> list[Winner]:
    """The winner of each space, by `best_trial`; a space may have none."""
    of_space: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        if record.trial is not None:
            of_space.setdefault((record.task, record.trial.space), []).append(record)
    found = []
    for space in spaces:
        mine = of_space.get((space.task, space.name), [])
        if (best := best_trial(mine)) is not None:
            assert best.trial is not None
            assert best.best_score is not None
            pruned = sum(each.state is RunState.PRUNED for each in mine)
            settings = dict(best.trial.settings)
            found.append(Winner(space.task, space.name, best.run_id, best.best_score, settings, len(mine), pruned))
    return found


def write_winners(root: Path, winners: Sequence[Winner]) -> None:
    """Keep them: the search has ended."""
    values = {"schema_version": 1, "winners": [asdict(winner) for winner in winners]}
    write_atomically(root / FILE, json.dumps(values, indent=2) + "\n")


def read_winners(root: Path) -> list[Winner] | None:
    """Those that were kept; None where the search has not ended. Raises StoreError where the file is damaged."""
    text = read_text(root / FILE)
    if text is None:
        return None
    try:
        values: Mapping[str, Any] = parse_json(text)
        if values["schema_version"] != 1:
            raise ValueError(f"its version is {values['schema_version']!r}, and not 1")
        return TypeAdapter(list[Winner]).validate_python(values["winners"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{root / FILE} is damaged ({' '.join(str(error).split())}). Delete it to have the winners found again."
        ) from error
