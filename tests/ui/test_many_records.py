"""Every view over a log of 100,000 records."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from playwright.async_api import Browser, expect

from coe.records import open_log_and_feedback
from tests.gateway.served import SQLITE, Served, serving
from tests.records.samples import record
from tests.ui.browsing import check_no_sideways_scroll, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]

COUNT, BATCH = 100_000, 5_000
RARE = 70_000


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    log, usual, now = open_log_and_feedback(SQLITE, base=folder / ".coe")[0], record(0, expert="good"), time.time()
    for begin in range(0, COUNT, BATCH):
        numbers = range(begin, begin + BATCH)
        await log.append(
            [
                replace(
                    usual,
                    request_id=f"req_{number:032x}",
                    time=now - COUNT + number,
                    category="art" if number == RARE else "code",
                    outcome="expert_timeout" if number % 1_000 == 0 else "ok",
                )
                for number in numbers
            ]
        )
    await log.aclose()
    async with serving(folder) as served:
        yield served


@pytest.mark.parametrize("view", ["playground", "live", "log", "map", "router", "experts"])
async def test_a_view_is_there_and_complete(browser: Browser, served: Served, view: str) -> None:
    async with visiting(browser, f"{served.url}/ui/#/{view}") as page:
        await expect(page.get_by_role("heading", level=1)).to_be_visible()
        await expect(page.get_by_role("status").filter(has_text="Loading")).to_have_count(0)
        if view == "router":  # its gateway routes by a stand-in, which `coe status` cannot load
            await expect(page.get_by_role("alert")).to_contain_text("no router is trained yet")
        else:
            await expect(page.get_by_role("alert")).to_have_count(0)
        await check_no_sideways_scroll(page)


async def test_one_record_among_all_is_found_by_its_category(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/log?category=art") as page:
        found = page.locator("table.records tbody tr")
        await expect(found).to_have_count(1)
        await found.locator("a").first.click()
        await expect(page.get_by_text(f"req_{RARE:032x}").first).to_be_visible()


async def test_the_newest_failures_of_an_expert_are_listed(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts/good") as page:
        await expect(page.locator(".failure")).to_have_count(10)


async def test_another_tab_of_a_view_leaves_the_page_where_it_is(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/router", phone=True) as page:
        await expect(page.get_by_role("heading", name="Router: versions")).to_be_visible()
        await expect(page.get_by_role("alert")).to_be_visible()  # all of it is there
        await page.evaluate("scrollTo(0, 100)")
        await page.get_by_role("link", name="Gate").click()
        await expect(page.get_by_role("heading", name="Gate: versions")).to_be_visible()
        assert await page.evaluate("scrollY") == 100
