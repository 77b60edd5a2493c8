"""Chromium and Node for tests: both driven by Playwright's package, the browser closed in every case."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def find_chromium() -> str:
    """Return the path of Chromium. Skips the test when there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed")


def find_node() -> str:
    """Return the path of the Node that comes with Playwright. Skips the test when there is none."""
    from playwright._impl._driver import compute_driver_executable

    node = Path(compute_driver_executable()[0])
    if not node.exists():
        pytest.skip("Playwright's package has no Node in it")
    return str(node)


@asynccontextmanager
async def launched(**options: Any) -> AsyncIterator[Browser]:
    """Run a Chromium for the length of an ``async with`` block; ``options`` are those of Playwright's ``launch()``."""
    executable = find_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=ARGUMENTS, **options)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def tab(browser: Browser, url: str = "about:blank", **options: Any) -> AsyncIterator[Page]:
    """Open a page in a profile of its own; afterwards assert that it raised nothing and wrote nothing."""
    context = await browser.new_context(**options)
    try:
        page = await context.new_page()
        with quiet(page):
            await page.goto(url)
            yield page
    finally:
        await context.close()


@contextmanager
def quiet(page: Page) -> Iterator[None]:
    """Assert afterwards that the page raised nothing and wrote nothing to the console."""
    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # What the browser itself has to say of a server that is not there, pages cannot prevent.
        if not message.text.startswith(("WebSocket connection to ", "Failed to load resource: net::")):
            said.append(f"{message.type}: {message.text}")

    page.on("console", note)
    page.on("pageerror", lambda error: said.append(f"uncaught: {error}"))
    yield
    assert not said, said
