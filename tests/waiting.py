"""Waiting for what another process, or a page in a browser, comes to."""

from __future__ import annotations

import time
from collections.abc import Callable
from subprocess import Popen
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["until", "until_brought_about"]


def until_brought_about(condition: Callable[[], bool], process: Popen[Any]) -> None:
    """Wait until a running process has brought something about; the processor is its own meanwhile."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def until(page: Page, condition: str, seconds: int = 20) -> None:
    """Wait until a condition in the page holds. Playwright's own way evaluates text, which the policy forbids."""
    page.evaluate(
        "new Promise((done, failed) => {"
        f"  const last = performance.now() + {1000 * seconds};"
        f"  const look = () => ({condition}) ? done() : performance.now() > last"
        "    ? failed(new Error('it did not come')) : requestAnimationFrame(look);"
        "  look();"
        "})"
    )
