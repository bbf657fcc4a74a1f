"""A visitor's walk through every view of a running service, with its real experts and router:

    .venv/bin/python -m tests.ui.walk http://127.0.0.1:8080

Exits 1 with the reason when a view does not show what it should, or the page does what it should not.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping

from playwright.async_api import Browser, Page, expect

from tests.ui.browsing import browsing, check_accessible, check_no_sideways_scroll, visiting

TIMEOUT_MS = 120_000
"""Milliseconds for a small model on a busy machine."""


async def send_prompt(page: Page) -> None:
    await page.get_by_label("Your message").fill("Write a Python function that reverses a list")
    await page.keyboard.press("Enter")
    why = page.get_by_role("complementary", name="Why")
    await expect(why.get_by_role("link", name="Open record")).to_be_visible(timeout=TIMEOUT_MS)
    await expect(why.locator(".neighbours li").first).to_be_visible()
    await expect(why.get_by_role("region", name="Candidates")).to_contain_text("(chosen)")
    await expect(page.locator("article.answer")).not_to_be_empty()


async def watch(page: Page) -> None:
    await expect(page.get_by_text("Live", exact=True).last).to_be_visible()
    await expect(page.get_by_role("heading", name="Outcomes")).to_be_visible()


async def read(page: Page) -> None:
    first = page.get_by_role("table").locator("tbody a").first
    await first.click()
    await expect(page.get_by_role("heading", name="Candidates")).to_be_visible()


async def loads(page: Page) -> None:
    """The view shows what there is."""
    await expect(page.get_by_role("status").filter(has_text="Loading")).to_have_count(0, timeout=TIMEOUT_MS)


WALK: Mapping[str, Callable[[Page], Coroutine[None, None, None]]] = {
    "playground": send_prompt,
    "live": watch,
    "log": read,
    "map": loads,
    "router": loads,
    "experts": loads,
}


async def walk(browser: Browser, url: str) -> None:
    for name, visit in WALK.items():
        async with visiting(browser, f"{url}/ui/#/{name}") as page:
            await expect(page.get_by_role("heading", level=1)).to_be_visible()
            await visit(page)
            await expect(page.get_by_role("alert")).to_have_count(0)
            await check_accessible(page)
            await check_no_sideways_scroll(page)


async def main() -> None:
    async with browsing() as browser:
        await walk(browser, sys.argv[1])


if __name__ == "__main__":
    asyncio.run(main())
