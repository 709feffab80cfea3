from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from manytune.report.writing import write_report
from study_factory import GLUE_LIKE, make_study_directory

# No sandbox: tests may run as root, and the page is our own. The rest keeps the browser from asking for updates.
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the one that MANYTUNE_CHROMIUM names."""
    path = os.environ.get("MANYTUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not here: `make test-browser` installs it on Debian and runs these tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two tasks and eight configurations, with hostile sentences, a collapsed and a failed run."""
    states = {"cola-bitfit-lr2e-4-s3": "collapsed", "cola-lora-r256-lr4e-4-s1": "failed"}
    study = {**GLUE_LIKE, "methods": [*GLUE_LIKE["methods"], {"method": "head", "learning_rate": 1e-3}]}
    root = make_study_directory(tmp_path_factory.mktemp("b") / "s", study, states=states, hostile=True).root
    return write_report([root])[0]
