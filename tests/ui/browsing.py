"""A real browser in front of a real gateway, which fails a test for whatever the page should not have done."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright, expect

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
"""A browser in a container, that asks nobody but the page's host."""
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TIMEOUT_MS = 120_000
"""Limit in milliseconds of whatever a page should do, and of its load. A page may wait for a plan, which a process of
low priority solves: beside other tests that takes over half a minute."""
SERIOUS = ("serious", "critical")


@asynccontextmanager
async def browsing(*switches: str) -> AsyncIterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*SWITCHES, *switches], timeout=TIMEOUT_MS
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visiting(browser: Browser, url: str, *, dark: bool = False, phone: bool = False) -> AsyncIterator[Page]:
    """A page of a new visitor, at `url`; on leaving it must have logged no error, broken no policy and asked no other
    host."""
    context: BrowserContext = await browser.new_context(
        viewport=PHONE if phone else DESKTOP, color_scheme="dark" if dark else "light"
    )
    context.set_default_timeout(TIMEOUT_MS)
    try:
        page = await context.new_page()
        with quiet(page, host=url.split("/")[2]):
            await page.goto(url)
            yield page
    finally:
        await context.close()


@contextmanager
def quiet(page: Page, *, host: str) -> Iterator[None]:
    """Raises AssertionError with what was logged as an error, or asked of another host. The console says of every
    answer 4xx that a resource failed to load; that is no error of the page."""
    found: list[str] = []

    def logged(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            found.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:", f"http://{host}/")):
            found.append(f"asked {request.url}")

    page.on("console", logged)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", asked)
    yield
    assert not found, found


async def wait_until(page: Page, script: str, argument: object = None) -> None:
    """`script` returns a true value, or a promise of one; Playwright's wait_for_function takes any promise for true."""
    with anyio.fail_after(TIMEOUT_MS / 1000):
        while not await page.evaluate(script, argument):
            await anyio.sleep(0.02)


async def check_accessible(page: Page) -> None:
    """axe finds nothing serious."""
    results = await Axe().run(page)
    serious = [one for one in results.response["violations"] if one["impact"] in SERIOUS]
    assert not serious, [(one["id"], [node["html"][:200] for node in one["nodes"]][:5]) for one in serious]


async def check_no_sideways_scroll(page: Page) -> None:
    """The page fits the width there is."""
    assert await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


async def check_no_broken_words(page: Page) -> None:
    """No word of the view is split between two lines; identifiers in code may be."""
    broken = await page.evaluate(
        """() => {
          const found = [];
          const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
          while (texts.nextNode()) {
            const { data, parentElement } = texts.currentNode;
            if (!parentElement.checkVisibility() || parentElement.closest(".code, code, pre, .unseen")) continue;
            for (const { 0: word, index } of data.matchAll(/[\\p{L}\\p{N}_]{2,}/gu)) {
              const range = document.createRange();
              range.setStart(texts.currentNode, index);
              range.setEnd(texts.currentNode, index + word.length);
              if (new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size > 1) found.push(word);
            }
          }
          return found;
        }"""
    )
    assert not broken, broken
