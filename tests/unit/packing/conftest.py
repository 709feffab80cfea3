"""The two sets of kernels."""

from __future__ import annotations

import pytest

from manytune.packing.kernels import Kernels
from manytune.packing.kernels.compiled import CompiledKernels, compiled_kernels
from manytune.packing.kernels.reference import ReferenceKernels


@pytest.fixture(scope="session")
def compiled() -> CompiledKernels:
    kernels = compiled_kernels()
    if kernels is None:
        pytest.skip("no C++ compiler on this machine: the compiled kernels cannot be made")
    return kernels


@pytest.fixture(params=["plain", "compiled"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return ReferenceKernels() if request.param == "plain" else request.getfixturevalue("compiled")
