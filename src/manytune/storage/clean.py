"""What nothing needs any more of a study directory and of the user's cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from manytune.storage.directory import OWN_FOLDERS, Store
from manytune.utils.caches import user_cache
from manytune.utils.files import left_over, writing


@dataclass(frozen=True)
class Waste:
    """Files of one kind that can go."""

    what: str  # what they are, in the plural
    paths: tuple[Path, ...]  # files, or directories with all that is in them

    @property
    def bytes(self) -> int:
        """Their size on the disk."""
        files = [path for path in self.paths if path.is_file()]
        walks = (os.walk(path) for path in self.paths)  # nothing, of a file
        files += [Path(folder, name) for walk in walks for folder, _, names in walk for name in names]
        return sum(file.lstat().st_size for file in files)


def unneeded(store: Store) -> tuple[list[Waste], list[Path]]:
    """What can go from a study directory, and checkpoints that must stay.

    A checkpoint is needed while a run of its pack has not ended, or failed: `run` and `run --retry-failed` go on from
    it. Records, histories, snapshots, predictions, reports, the study, its plan and its data never go. What lies behind
    a link outside of the directory is not looked at. A StoreError says that it holds no study, or is damaged.
    """
    whole = {run_id for run_id, record in store.finished_runs().items() if not record.failure}
    plan = store.read_plan()
    planned = {pack.id: pack for pack in plan or ()}
    kept: list[Path] = []
    done: list[Path] = []
    for path in _inside(store.root, "packs/*"):
        pack = planned.get(path.name)
        # Without a plan the same packs may be planned anew, and go on from these.
        needed = plan is None or (pack is not None and not all(run.id in whole for run in pack.runs))
        (kept if needed else done).append(path)
    names = _inside(store.root, "**/.*.tmp", "**/.*.old")
    left = [path for path in names if left_over(path, alone=path.relative_to(store.root).parts[0] in OWN_FOLDERS)]
    half_written = [path for path in left if not any(parent in left or parent in done for parent in path.parents)]
    found = (
        Waste("checkpoints of packs that have ended", tuple(done)),
        Waste("files that a process which was killed left half-written", tuple(half_written)),
    )
    return [waste for waste in found if waste.paths], kept


def cached() -> list[Waste]:
    """What can go from the user's cache, which all studies share: what is needed again is made again."""
    root = user_cache()
    found = (
        Waste("encoded rows", tuple(_inside(root, "encoded/*.npz"))),
        Waste("compiled kernels", tuple(_inside(root, "kernels-*.so"))),
    )
    return [waste for waste in found if waste.paths]


def still_waste(shown: Iterable[Waste], now: Iterable[Waste]) -> list[Waste]:
    """Of what a user was shown, what can still go."""
    found = {path for waste in now for path in waste.paths}
    return [Waste(waste.what, tuple(path for path in waste.paths if path in found)) for waste in shown]


def remove(found: Iterable[Waste]) -> None:
    """Delete it; a StoreError where something cannot be deleted, and the rest of it stays."""
    for waste in found:
        for path in waste.paths:
            with writing(path):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _inside(root: Path, *patterns: str) -> list[Path]:
    """What matches one of the patterns and really lies in `root`, not behind a link; in order."""
    found = sorted(path for pattern in patterns for path in root.glob(pattern))
    return [path for path in found if not path.is_symlink() and root.resolve() in path.resolve().parents]
