# SPDX-License-Identifier: Apache-2.0
"""Pictures of the page, idle and under load, light and dark, for docs/images. Needs a running server, playwright and a Chromium.

ziggurat serve --memory 64MiB --max-num-seqs 6 --port 8000 &
python scripts/page_images.py http://127.0.0.1:8000 --chromium /usr/bin/chromium
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NUM_REQUESTS = 9
LOAD_S = 8
SENTENCE = "The road to the old tower goes along the river, and whoever walks it counts the steps of brick. "


def post(url: str, body: dict[str, Any]) -> None:
    """The same request again and again, however fast the server is; nobody reads the answers."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    while True:
        urllib.request.urlopen(request, timeout=600).read()


def start_load(url: str) -> None:
    """Requests of different lengths in the background; a third of them begin alike, so that the prefix cache has work."""
    for index in range(NUM_REQUESTS):
        start = f"Number {index}. " if index % 3 else SENTENCE * 12
        body = {"prompt": start + SENTENCE * (3 + 5 * index), "max_tokens": 700, "ignore_eos": True}
        threading.Thread(target=post, args=(url, body), daemon=True).start()


def open_page(browser: Browser, url: str, theme: str, width: int = 1280, height: int = 860) -> Page:
    """The page, once its map is drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.locator("#phase", has_text="ready").wait_for()
    time.sleep(1.5)
    return page


def ask(page: Page, text: str) -> None:
    """Send a message and wait for its whole answer."""
    before = page.locator(".turn.assistant .meta").count()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.locator(".turn.assistant .meta").nth(before).wait_for(timeout=300_000)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--chromium", help="path of a Chromium (default: playwright's own)")
    options = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            open_page(browser, options.url, theme).screenshot(path=options.out / f"page-idle-{theme}.png")
        pages = {theme: open_page(browser, options.url, theme) for theme in ("light", "dark")}
        phone = open_page(browser, options.url, "light", 390, 844)
        for page in pages.values():
            ask(page, "What is a ledger?")
            ask(page, "And what is a tier?")
        start_load(options.url)
        time.sleep(LOAD_S)
        for theme, page in pages.items():
            page.screenshot(path=options.out / f"page-load-{theme}.png")
        phone.get_by_role("button", name="Memory").click()
        time.sleep(1.5)
        phone.screenshot(path=options.out / "page-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
