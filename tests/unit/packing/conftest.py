"""The two sets of kernels."""

from __future__ import annotations

import pytest

from manytune.packing.kernels import Kernels
from manytune.packing.kernels.build import load_library
from manytune.packing.kernels.compiled import CompiledKernels, compiled_kernels
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.utils.errors import StudyError


@pytest.fixture(scope="session")
def native() -> CompiledKernels:
    """Those of this very processor."""
    kernels = compiled_kernels()
    if kernels is None:
        pytest.skip("no C++ compiler on this machine: the compiled kernels cannot be made")
    return kernels


@pytest.fixture(scope="session", params=["native", "x86-64-v3", "x86-64-v2"])
def compiled(request: pytest.FixtureRequest, native: CompiledKernels) -> CompiledKernels:
    """Those of each width: of this processor's, and of 8 and 4 lanes (the latter also stand for NEON)."""
    if request.param == "native":
        return native
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYTUNE_KERNEL_TARGET", request.param)
        try:
            kernels = load_library(CompiledKernels)
        except StudyError as error:
            pytest.skip(str(error))
    assert kernels is not None
    assert kernels.lanes == {"x86-64-v3": 8, "x86-64-v2": 4}[request.param]
    assert kernels.name == f"compiled for {request.param}"
    return kernels


@pytest.fixture(params=["plain", "compiled"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return ReferenceKernels() if request.param == "plain" else request.getfixturevalue("native")
