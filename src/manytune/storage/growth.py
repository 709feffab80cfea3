"""How a study grew by seeds: the planned looks, and at how many seeds scores could be seen before more were added.

OUT/looks.json   only where looks were planned or seeds added
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from manytune.utils.errors import StoreError
from manytune.utils.files import read_text, write_atomically
from manytune.utils.text import listed, shortened


@dataclass(frozen=True)
class SeedGrowth:
    """When scores could be seen while a study grew."""

    planned: tuple[int, ...] = ()
    """Numbers of seeds at which a look was planned before any run had ended, ascending."""
    seen: tuple[int, ...] = ()
    """Numbers of seeds at which runs had ended when the seeds were changed, ascending."""

    def unplanned(self, least: int) -> tuple[int, ...]:
        """Those of `seen` that are no planned look, from `least` seeds on: with fewer, nothing could be claimed."""
        return tuple(count for count in self.seen if count >= least and count not in self.planned)

    def ignored(self, looks: tuple[int, ...]) -> str | None:
        """Say that the looks of a study file are not those that were planned; None where they are."""
        if looks == self.planned:
            return None
        instead = f"the planned looks stay {_numbers(self.planned)}" if self.planned else "no look counts as planned"
        now = f"looks at {_numbers(looks)} seeds" if looks else "no looks"
        return f"The study file has {now}, written after runs had ended: {instead}."


def read_growth(path: Path) -> SeedGrowth:
    """What a file says; nothing is known where there is none. A StoreError says that it is damaged."""
    text = read_text(path)
    if text is None:
        return SeedGrowth()
    try:
        return TypeAdapter(SeedGrowth).validate_json(text)
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged: {shortened(error)}. Put back a copy of it. Without the file, it is not known whether "
            "seeds were added after a look at the scores: if they were, what the report claims is too much."
        ) from error


def write_growth(path: Path, growth: SeedGrowth) -> None:
    """Write it whole or not at all."""
    write_atomically(path, json.dumps(asdict(growth)) + "\n")


def _numbers(counts: tuple[int, ...]) -> str:
    return listed([str(count) for count in counts], len(counts))
