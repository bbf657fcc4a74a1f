"""The experts' view in a real browser: cards, their records, and the test of an expert."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from tests.gateway.served import Served, serving
from tests.ui.browsing import check_accessible, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]
"""The page loads the experts now, and not again by itself: a hidden page does not."""


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), environ={"COE_WORKERS": "2"}) as served:
        for name in ["good"] * 3 + ["status-500"] * 2:
            await (await served.send_chat(name)).read()
        await served.records(5)  # the page reads the failures once
        yield served


async def test_a_card_shows_requests_of_all_processes_and_links_to_the_records(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts/status-500") as page:
        good = page.get_by_role("region", name="good", exact=True)
        await expect(good).to_contain_text("Requests3")
        card = page.get_by_role("region", name="status-500")
        await expect(card).to_contain_text("Failed100 %")
        await card.get_by_role("link", name="Records of status-500").click()
        await expect(page.locator("table.records tbody tr")).to_have_count(2)


async def test_an_expert_is_tested_from_its_card(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts") as page:
        requests = len(served.upstream.seen)
        good = page.get_by_role("region", name="good", exact=True).get_by_role("status")
        await good.get_by_role("button", name="Test good").click()
        await expect(good).to_contain_text("answers")
        assert len(served.upstream.seen) == requests + 1
        failing = page.get_by_role("region", name="status-500").get_by_role("status")
        await failing.get_by_role("button", name="Test status-500").click()
        await expect(failing).to_contain_text("server_error")
        await expect(failing).to_contain_text("read the server's own log")
        async with served.client.post(f"{served.url}/v1/experts/nobody/test") as response:
            assert response.status == 404
        await check_accessible(page)


async def test_an_address_leads_to_its_card_however_far_down(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts", phone=True) as page:
        card = page.get_by_role("heading", name="floods", exact=True)
        await expect(card).to_be_attached()
        await expect(card).not_to_be_in_viewport()
        await page.evaluate("location.hash = '#/experts/floods'")
        await expect(card).to_be_in_viewport()
