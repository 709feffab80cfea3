"""The options of `run` that choose an executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from manytune.utils.errors import StudyError, choices

if TYPE_CHECKING:
    from manytune.executors.base import ExecutorSpec

ExecutorName = Annotated[str, typer.Option("--executor", help="local, or ray: a Ray cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="auto or HOST:PORT.", show_default="RAY_ADDRESS, or this machine"),
]
PackResources = Annotated[
    str | None,
    typer.Option("--pack-resources", help="What Ray gives a pack: gpu=1,cpu=4,memory=8e9", show_default="cpu=1"),
]
RayStorage = Annotated[
    str | None,
    typer.Option("--ray-storage", help="A path or URL that all nodes see, for checkpoints.", show_default="the driver"),
]

WorkerCount = Annotated[
    int, typer.Option("--workers", help="Processes that train packs at once.", show_default="what ends first")
]
Threads = Annotated[
    int, typer.Option("--threads-per-worker", help="Threads of each.", show_default="an equal share of the cores")
]
Devices = Annotated[
    str | None, typer.Option("--devices", help="A device for each worker: cuda:0,cuda:1", show_default="the CPU")
]


def executor_of(
    executor: str,
    device: str,
    devices: str | None,
    workers: int,
    threads: int,
    ray_address: str | None,
    pack_resources: str | None,
    ray_storage: str | None,
) -> ExecutorSpec | None:
    """The executor that the options name, None where they name none; raises StudyError where they contradict."""
    if executor not in ("local", "ray"):
        raise StudyError(f"--executor: {choices(executor, ('local', 'ray'))}")
    local = {"--devices": devices, "--workers": workers, "--threads-per-worker": threads}
    on_ray = {"--ray-address": ray_address, "--pack-resources": pack_resources, "--ray-storage": ray_storage}
    other, misplaced = ("local", local) if executor == "ray" else ("ray", on_ray)
    for name, value in misplaced.items():
        if value:
            raise StudyError(f"{name}: it goes with --executor {other}, and not with {executor}.")
    if executor == "ray":
        if device != "auto":
            raise StudyError("--device: on a Ray cluster, --pack-resources says whether packs get GPUs: gpu=1.")
        from manytune.executors.ray_executor import OnRay, Resources

        return OnRay(ray_address, Resources.parse(pack_resources or ""), ray_storage)
    for name, count in (("--workers", workers), ("--threads-per-worker", threads)):
        if count < 0:
            raise StudyError(f"{name}: it must be at least 1, not {count}.")
    from manytune.executors import Workers

    if devices is not None:
        if device != "auto":
            raise StudyError("--device and --devices: give one of the two.")
        return Workers(workers, threads, tuple(name.strip() for name in devices.split(",")))
    if workers or threads:
        if device not in ("auto", "cpu"):
            raise StudyError(f"--workers: they share the CPU's cores; for several of {device}, name --devices.")
        return Workers(workers or 1, threads)
    return None
