"""constraints.txt pins all that an installation takes, and nothing else."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

# The Makefile installs these itself, to build the package without fetching other versions of them.
BUILD = ("hatchling", "editables")

# torch's builds for GPUs require these in the versions that they were built for.
OF_TORCH = ("nvidia-", "cuda-", "triton")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def ours() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = (one for extra in project["optional-dependencies"].values() for one in extra)
    return [Requirement(text) for text in (*project["dependencies"], *extras, *BUILD)]


def needed(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[str]:
    """The names of a requirement and of all that it requires in this environment."""
    name = canonicalize_name(requirement.name)
    for extra in ("", *requirement.extras):
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        yield name
        try:
            found = requires(requirement.name) or []
        except PackageNotFoundError:
            continue
        for inner in map(Requirement, found):
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                yield from needed(inner, seen)


def test_every_package_is_pinned_and_no_other() -> None:
    seen: set[tuple[str, str]] = set()
    names = {name for requirement in ours() for name in needed(requirement, seen)}
    own = {canonicalize_name(requirement.name) for requirement in ours()}
    names = {name for name in names if name in own or not name.startswith(OF_TORCH)}
    assert len(names) >= 60
    assert names - pins().keys() == set(), "not pinned: see CONTRIBUTING.md for how to update constraints.txt"
    assert pins().keys() - names == set(), "pinned, but nothing needs them"


def test_pins_are_within_our_bounds() -> None:
    versions = pins()
    assert [str(one) for one in ours() if versions[canonicalize_name(one.name)] not in one.specifier] == []


def test_torch_is_pinned_for_every_build_of_that_version() -> None:
    assert pins()["torch"] == "2.13.0", "a local version such as +cpu would leave out the others"
