# SPDX-License-Identifier: Apache-2.0
"""The page in a real Chromium: chat, memory map, theme, narrow screens, loading and a server that goes away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.server_process import ServerProcess, fake_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with fake_server(step_s=0.03, max_model_len=1024, max_running=2) as process:
        yield process


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    yield from open_page(browser, server.url)


def open_page(browser: Browser, url: str, *, width: int = 1280, errors_allowed: bool = False) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="light")
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert errors_allowed or not troubles, troubles


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_a_chat_streams_and_is_summed_up(page: Page, server: ServerProcess) -> None:
    ask(page, "hello")
    turn = page.locator(".turn.assistant")
    turn.locator(".meta").wait_for()
    words = turn.locator(".text").inner_text()
    assert len(words.split()) == 24
    assert "ziggurat" in words
    summary = turn.locator(".meta").inner_text()
    assert re.search(r"first token after \d+\.\d\d s · .* tokens/s · 24 tokens out · \d+ in", summary), summary
    ask(page, "and again")
    page.locator(".turn.assistant .meta").nth(1).wait_for()
    assert "from the prefix cache" in page.locator(".turn.assistant .meta").nth(1).inner_text()
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0
    assert page.locator("#welcome").is_visible()


def test_the_map_shows_the_numbers_of_memory(page: Page, server: ServerProcess) -> None:
    page.locator("#phase", has_text="ready").wait_for()
    assert page.locator("#model").inner_text() == "fake-1"
    assert page.locator("#used").inner_text() == "27.0 MiB"
    assert page.locator("#limit").inner_text() == "64.0 MiB budget"
    assert "process 75.0 MiB, less its baseline of 48.0 MiB" in page.locator("#beside").inner_text()
    assert page.locator("#verdict").inner_text() == "the budget holds"
    legend = page.locator("#legend").inner_text()
    assert "weights" in legend
    assert "15.0 MiB" in legend
    ledger = page.locator("#ledger tr")
    owners = [row.locator(".owner").inner_text() for row in ledger.all()]
    assert owners == ["model", "executor", "pool", "prefix cache", "planner", "process"]
    assert "packed weights, bf16" in page.locator("#ledger").inner_text()


def test_a_running_request_shows_and_stop_ends_it(browser: Browser) -> None:
    with fake_server(step_s=0.15, max_model_len=1024) as server:
        for page in open_page(browser, server.url):
            page.get_by_text("Settings").click()
            page.get_by_label("Most tokens").fill("14")
            ask(page, "x" * 300)
            page.locator("#requests li").first.wait_for()
            assert page.locator("#requests li").first.inner_text().startswith("chatcmpl-")
            assert page.locator("#grid i.c0").count() >= 1
            page.locator(".turn.assistant .meta", has_text="cut at the token limit").wait_for()
            page.locator("#no-requests").wait_for()

            page.get_by_label("Most tokens").fill("100")
            ask(page, "y" * 200)
            page.locator(".turn.streaming .text:not(:empty)").wait_for()
            page.get_by_role("button", name="Stop").click()
            page.locator(".turn.assistant .meta", has_text="stopped").wait_for()
            memory = server.wait_for(lambda memory: memory["requests"]["num_open"] == 0)
            assert memory["requests"]["generation_tokens"] < 14 + 24


def test_a_refusal_is_shown_in_words(browser: Browser, server: ServerProcess) -> None:
    for page in open_page(browser, server.url, errors_allowed=True):  # the browser itself logs the 400
        ask(page, "z" * 2000)
        page.locator(".failed").wait_for()
        assert "maximum context length is 1024 tokens" in page.locator(".failed").inner_text()


def test_text_never_becomes_markup(page: Page) -> None:
    ask(page, "<img src=x onerror=alert(1)><b>bold</b>")
    assert page.locator(".turn.user .text").inner_text() == "<img src=x onerror=alert(1)><b>bold</b>"
    assert page.locator(".turn img").count() == 0
    page.locator(".turn.assistant .meta").wait_for()


def test_themes_and_the_keyboard(page: Page) -> None:
    root = page.locator("html")
    assert root.get_attribute("data-theme") == "light"
    page.emulate_media(color_scheme="dark")
    page.locator("html[data-theme=dark]").wait_for()
    toggle = page.locator("#theme")
    toggle.click()
    assert (root.get_attribute("data-theme"), toggle.inner_text()) == ("light", "Light")
    page.reload()
    assert root.get_attribute("data-theme") == "light"
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the message box"
    page.keyboard.press("Enter")
    page.keyboard.type("typed")
    assert page.get_by_label("Message", exact=True).input_value() == "typed"


def test_every_control_has_a_name(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, [role=img], svg, table')].filter(node =>
            !(node.getAttribute('aria-label') || node.labels?.length || node.textContent.trim())).map(node => node.outerHTML)"""
    )
    assert nameless == []


def test_a_phone_shows_one_view_at_a_time_and_never_scrolls_sideways(browser: Browser, server: ServerProcess) -> None:
    for page in open_page(browser, server.url, width=360):
        page.locator("#phase", has_text="ready").wait_for()
        assert page.locator(".chat").is_visible()
        assert not page.locator(".memory").is_visible()
        page.get_by_role("button", name="Memory").click()
        assert page.locator(".memory").is_visible()
        assert not page.locator(".chat").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_loading_and_a_server_that_goes_away_are_said(browser: Browser) -> None:
    with fake_server(load_s=2.0, wait_ready=False) as process:
        for page in open_page(browser, process.url, errors_allowed=True):
            page.locator("#phase", has_text="loading").wait_for()
            assert "still being loaded" in page.locator("#notice").inner_text()
            page.locator("#phase", has_text="ready").wait_for()
            assert not page.locator("#notice").is_visible()
            process.signal()
            page.locator("#phase", has_text="offline").wait_for()
            assert "does not answer" in page.locator("#notice").inner_text()


def test_nothing_is_loaded_from_elsewhere(browser: Browser, server: ServerProcess) -> None:
    context = browser.new_context()
    page = context.new_page()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    answer = page.goto(server.url)
    page.locator("#phase", has_text="ready").wait_for()
    context.close()
    assert all(url.startswith((server.url, "data:")) for url in urls), urls
    assert answer is not None
    assert "default-src 'self'" in answer.headers["content-security-policy"]
