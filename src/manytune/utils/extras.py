"""Packages that only some commands need: an extra of this package brings them."""

from __future__ import annotations

import importlib.util

from manytune.utils.errors import DependencyError


def is_installed(package: str) -> bool:
    """Whether a package is here; it is not imported."""
    return importlib.util.find_spec(package) is not None


def require(package: str, extra: str, purpose: str, instead: str = "") -> None:
    """Raise a DependencyError, "`purpose` needs the package …", where a package is missing that `extra` brings.

    `instead` says what can be done without it.
    """
    if not is_installed(package):
        raise DependencyError(f"{purpose} needs the package {package}: pip install 'manytune[{extra}]'.{instead}")
