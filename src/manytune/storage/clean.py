"""What a study directory, and the user's cache, hold that nothing needs any more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manytune.storage.directory import OWN_FOLDERS, Store
from manytune.utils.caches import user_cache
from manytune.utils.files import left_over, writing


@dataclass(frozen=True)
class Waste:
    """Files of one kind that can go."""

    what: str
    """What they are, in the plural."""
    paths: tuple[Path, ...]
    """Files, or directories with all that is in them."""

    @property
    def bytes(self) -> int:
        """What they take on the disk."""
        return sum(_bytes(path) for path in self.paths)


def unneeded(store: Store) -> tuple[list[Waste], list[Path]]:
    """What can go from a study directory, and checkpoints that must stay.

    A checkpoint is needed while a run of its pack has not ended, or failed: `run` and `run --retry-failed` go on from
    it. Records, histories, snapshots, predictions, reports, the study, its plan and its data are never among what can
    go. What lies outside of the directory, behind a link, is not looked at.

    Raises:
        StoreError: The directory holds no study, or it is damaged.
    """
    whole = {run_id for run_id, record in store.finished_runs().items() if not record.failure}
    plan = store.read_plan()
    planned = {pack.id: pack for pack in plan or ()}
    kept: list[Path] = []
    done: list[Path] = []
    for path in _own(store.root, store.root.glob("packs/*")):
        pack = planned.get(path.name)
        # Without a plan the same packs may be planned anew, and go on from these.
        needed = plan is None or (pack is not None and not all(run.id in whole for run in pack.runs))
        (kept if needed else done).append(path)
    names = (*store.root.rglob(".*.tmp"), *store.root.rglob(".*.old"))
    left = [path for path in names if left_over(path, alone=path.relative_to(store.root).parts[0] in OWN_FOLDERS)]
    inside = {path for path in left for parent in path.parents if parent in left or parent in done}
    found = (
        Waste("checkpoints of packs that have ended", tuple(done)),
        Waste("files that a process which was killed left half-written", tuple(_own(store.root, set(left) - inside))),
    )
    return [waste for waste in found if waste.paths], kept


def cached() -> list[Waste]:
    """What can go from the user's cache, which all studies share: what is needed again is made again."""
    root = user_cache()
    found = (
        Waste("encoded rows", tuple(_own(root, root.glob("encoded/*.npz")))),
        Waste("compiled kernels", tuple(_own(root, root.glob("kernels-*.so")))),
    )
    return [waste for waste in found if waste.paths]


def still_waste(shown: Iterable[Waste], now: Iterable[Waste]) -> list[Waste]:
    """Of what a user was shown, what can still go."""
    found = {path for waste in now for path in waste.paths}
    return [Waste(waste.what, tuple(path for path in waste.paths if path in found)) for waste in shown]


def remove(found: Iterable[Waste]) -> None:
    """Delete it.

    Raises:
        StoreError: Something cannot be deleted; the rest of it stays.
    """
    for waste in found:
        for path in waste.paths:
            with writing(path):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _own(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Those that really lie in `root`, in order."""
    inside = root.resolve()
    for path in sorted(paths):
        if not path.is_symlink() and inside in path.resolve().parents:
            yield path


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sum(file.lstat().st_size for file in files)
