"""Where packs train, as the options of `run` say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from manytune.errors import StudyError

if TYPE_CHECKING:
    from manytune.executors.base import Place

__all__ = ["Devices", "Threads", "WorkerCount", "place_of"]

WorkerCount = Annotated[int, typer.Option("--workers", help="Processes that train packs at once.", show_default="1")]
Threads = Annotated[
    int, typer.Option("--threads-per-worker", help="Threads of each.", show_default="an equal share of the cores")
]
Devices = Annotated[
    str | None, typer.Option("--devices", help="A device for each worker: cuda:0,cuda:1", show_default="the CPU")
]


def place_of(device: str, devices: str | None, workers: int, threads: int) -> Place:
    """The place that the options name.

    Raises:
        StudyError: They contradict each other.
    """
    if workers < 0:
        raise StudyError(f"--workers: it must be at least 1, not {workers}.")
    if threads < 0:
        raise StudyError(f"--threads-per-worker: it must be at least 1, not {threads}.")
    from manytune.executors import Inline, Workers

    if devices is not None:
        if device != "auto":
            raise StudyError("--device and --devices: give one of the two.")
        return Workers(workers, threads, tuple(name.strip() for name in devices.split(",")))
    if workers or threads:
        if device not in ("auto", "cpu"):
            raise StudyError(f"--workers: they share the CPU's cores; for several of {device}, name --devices.")
        return Workers(workers or 1, threads)
    return Inline(device)
