"""Take pictures of a report's page as a browser shows it: on a desktop, on a phone and in the dark.

python benchmarks/page_picture.py STUDY_DIR/report/index.html FOLDER [--height 1500]
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--height", type=int, default=1500, help="pixels of the desktop's window")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    desktop = {"viewport": {"width": 1280, "height": options.height}}
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}
    kinds = {"desktop": desktop, "phone": phone, "dark": {**desktop, "color_scheme": "dark"}}
    path = os.environ.get("MANYTUNE_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        for name, settings in kinds.items():
            context = browser.new_context(offline=True, **settings)
            page = context.new_page()
            page.goto(options.page.resolve().as_uri())
            for section in ("answer", *page.evaluate("[...document.querySelectorAll('.task')].map(e => e.id)")):
                page.evaluate(f"document.getElementById({section!r}).scrollIntoView({{behavior: 'instant'}})")
                page.wait_for_selector(f"#{section} .main-svg, #{section}.task h2, #answer h2", state="attached")
                page.evaluate("new Promise(done => requestIdleCallback(done))")
                page.screenshot(path=options.folder / f"{name}-{section}.png")
            context.close()
        browser.close()
    print(*sorted(options.folder.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()
