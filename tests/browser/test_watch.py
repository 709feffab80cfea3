"""The live page in a real browser, on a study that runs meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from forked import ForkedProcess
from manytune.report.live_page import serve
from manytune.storage.directory import Store
from study_files import write_small_study
from tiny import make_tiny
from waiting import until

SECONDS = 60_000  # milliseconds that anything may take to come


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A study that has begun and goes on until the end of the test."""
    methods = [
        {"method": "lora", "rank": [2, 4], "learning_rate": 1e-3},
        {"method": "bitfit", "learning_rate": [1e-3, 1e30]},
    ]
    training = {"max_steps": 100_000, "eval_every": 20, "precision": "fp32"}
    study = write_small_study(tmp_path, make_tiny(tmp_path / "model"), training, methods=methods, name="watched")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "manytune", "run", str(study), "--out", str(out), "--quiet"]
    with ForkedProcess(command, stderr=subprocess.PIPE) as process:
        while not list(out.glob("live/*.json")):
            assert process.poll() is None, process.communicate()
        yield out
        process.kill()


@pytest.fixture
def page(browser: Browser, out: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    with serve(Store.open(out)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
            yield page
        finally:
            server.shutdown()
            thread.join()
            context.close()


def test_the_page_grows_with_the_study(page: Page) -> None:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    expect(page.locator("h1")).to_have_text("watched", timeout=SECONDS)
    expect(page.locator(".pack")).to_have_count(1, timeout=SECONDS)
    expect(page.locator("#driver")).to_contain_text("works on it, since", timeout=SECONDS)
    expect(page.locator("#left")).to_contain_text("The packs that train now need about", timeout=SECONDS)
    expect(page.locator("#failures li")).to_have_count(2, timeout=SECONDS)  # of the rate that is too high
    expect(page.locator("#failures li").first).to_contain_text("learning rate that is too high")
    expect(page.locator("#runs tr .running").first).to_be_visible()
    expect(page.locator("#machine li").first).to_contain_text("CPU")
    chart = page.locator("[id=builtin-similarity-chart-curves]")
    expect(chart.locator(".main-svg").first).to_be_visible(timeout=SECONDS)
    step = page.locator(".pack progress")
    before = float(step.get_attribute("value") or 0)
    points = page.evaluate("document.querySelectorAll('.plot .point').length")
    until(
        page,
        f"document.querySelector('.pack progress').value > {before}"
        f" && document.querySelectorAll('.plot .point').length > {points}",
    )
    assert complaints == []


def test_when_its_server_ends_the_page_says_so(browser: Browser, out: Path) -> None:
    page = browser.new_context().new_page()
    page.set_default_timeout(SECONDS)
    with serve(Store.open(out)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        expect(page.locator("h1")).to_have_text("watched", timeout=SECONDS)
        server.shutdown()
        thread.join()
    expect(page.locator("#trouble")).to_contain_text("The server of this page has ended", timeout=SECONDS)
    expect(page.locator("h1")).to_have_text("watched")
    page.context.close()
