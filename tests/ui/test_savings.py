"""The card of the map that compares the plan with always calling one expert."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.ui.browsing import check_accessible, check_no_sideways_scroll, needs_browser, visiting
from tests.ui.test_map import Planned, service

__all__ = ["service"]
pytestmark = [pytest.mark.anyio, needs_browser]

ROWS = [
    {"expert": "coder", "quality": 0.71, "difference": 0.08, "error": 0.012, "dollars": 40.0, "saved": 27.5},
    {"expert": "coder-low", "quality": 0.80, "difference": -0.01, "error": 0.004, "dollars": 10.0, "saved": -2.5},
]


async def reporting(page: Page, **savings: Any) -> None:
    """Answer /v1/status with a report that has these savings."""
    found = {"days": 7, "billed": {"requests": 300, "with_cost": 290, "dollars": 14.0}, "left_out": {}} | savings
    body = orjson.dumps({"object": "status", "time": 0, "report": {"savings": found}})

    async def respond(route: Route) -> None:
        await route.fulfill(body=body, content_type="application/json")

    await page.route("**/v1/status", respond)


async def test_the_card_shows_the_bill_the_comparison_and_what_is_not_known(browser: Browser, service: Planned) -> None:
    async with visiting(browser, service.url) as page:
        compared = {"plan": {"quality": 0.79, "dollars": 12.5}, "always": ROWS}
        await reporting(page, compared=compared, unknown=["nothing is known of new"])
        card = page.locator("section.card", has=page.get_by_role("heading", name="Savings"))
        await card.get_by_role("button", name="Compare").click()
        await expect(card.get_by_text("$14", exact=True)).to_be_visible()
        await expect(card.get_by_text("290 of 300 requests in 7 days")).to_be_visible()
        rows = card.locator("tbody tr")
        await expect(rows.nth(0)).to_have_text("coder$40$27.50.710+0.080 ± 0.012")
        await expect(rows.nth(1)).to_have_text("coder-low$10−$2.50.800−0.010 ± 0.004")
        await expect(card.get_by_text("nothing is known of new")).to_be_visible()
        await check_accessible(page)
        await check_no_sideways_scroll(page)


async def test_without_a_plan_or_requests_the_card_says_so(browser: Browser, service: Planned) -> None:
    async with visiting(browser, service.url) as page:
        await reporting(page, compared=None, unknown=[])
        await page.get_by_role("button", name="Compare").click()
        await expect(page.get_by_text("No plan that was made from scores is in use.")).to_be_visible()
    async with visiting(browser, service.url) as page:
        await reporting(page, billed={"requests": 0}, compared=None, unknown=[])
        await page.get_by_role("button", name="Compare").click()
        await expect(page.get_by_text("No requests in the last 7 days.")).to_be_visible()
