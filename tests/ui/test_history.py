"""The history card of the live view in a real browser, over a report of the real aggregation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from playwright.async_api import Browser, Page, Route, expect

from coe.learning.monitoring.history import BUCKETS, TrafficHistory
from coe.records.feedback import Feedback
from tests.gateway.served import Served, serving
from tests.records.samples import record
from tests.ui.browsing import check_accessible, check_no_sideways_scroll, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]
START = 1_700_000_000.0


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served")) as served:
        yield served


def report_of(period: str) -> dict[str, Any]:
    count, seconds = BUCKETS[period]  # type: ignore[index]
    found = TrafficHistory(START, count=count, seconds=seconds)
    for index in range(count):
        begin = START + index * seconds
        rows = [
            record(
                index * 100 + n,
                time=begin + n,
                expert=("large", "small", "coder")[n % 3],
                category=("code", "art")[n % 2],
                outcome="expert_timeout" if n == 7 else "ok",
                first_token_ms=100.0 + 20 * n + index,
                cost=0.01,
                key="shop",
            )
            for n in range(4 + index % 9)
        ]
        for row in rows:
            found.add(row, 3.0 if index == count - 1 else 1.0)
        found.rate([[Feedback(f"r{index}", rows[0].request_id, begin, "score", 0.5 + 0.4 * (index % 2))]])
    return found.report()


async def show(page: Page) -> None:
    async def reply(route: Route) -> None:
        period = route.request.url.rpartition("=")[2]
        await route.fulfill(body=orjson.dumps({"object": "history", "report": report_of(period)}))

    await page.route("**/v1/history?since=*", reply)
    await page.get_by_role("region", name="History").get_by_role("button", name="Read the log").click()


@pytest.mark.parametrize(("phone", "dark"), [(False, False), (True, True)])
async def test_a_period_is_read_on_request_and_drawn_by_expert_category_and_key(
    browser: Browser, served: Served, phone: bool, dark: bool
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/live", phone=phone, dark=dark) as page:
        card = page.get_by_role("region", name="History")
        await show(page)
        await expect(card.get_by_role("img", name="Requests by expert")).to_be_visible()
        await expect(card.get_by_role("definition").nth(3)).to_have_text("0.7")
        await expect(card).to_contain_text("1 of 48 intervals are busy")
        await card.get_by_role("combobox", name="By").select_option(label="API key")
        await card.get_by_role("heading", name="Dollars by API key").scroll_into_view_if_needed()
        await card.get_by_role("combobox", name="Period").select_option(label="last hour")
        await expect(card).to_contain_text("1 of 60 intervals")
        await card.get_by_text("Numbers of Requests by API key").click()
        await expect(card.get_by_role("table", name="Requests by API key").locator("tbody tr")).to_have_count(60)
        await check_accessible(page)
        await check_no_sideways_scroll(page)
