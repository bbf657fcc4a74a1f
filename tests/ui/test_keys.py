"""The view of keys: a key issued, used and revoked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from tests.access.test_issued_keys import DECLARED, SECRET
from tests.gateway.served import Served, serving
from tests.ui.browsing import needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), access={"keys": DECLARED}) as served:
        yield served


async def test_a_key_is_issued_shown_once_and_revoked(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/keys?new") as page:
        await page.get_by_label("API key").fill(SECRET)
        await page.keyboard.press("Enter")
        await page.get_by_label("Name").fill("app")
        await page.get_by_role("button", name="Issue key").click()
        await expect(page.get_by_role("alert")).to_contain_text("taken")
        await page.get_by_label("Name").fill("shop")
        await page.get_by_role("textbox", name="Experts").fill("good, text-*")
        await page.get_by_label("Dollars per day").fill("2.5")
        await page.get_by_role("button", name="Issue key").click()
        secret = await page.get_by_role("status").locator("pre").inner_text()
        row = page.get_by_role("row").filter(has_text="shop")
        await expect(row).to_contain_text("experts: good, text-*")
        await expect(row).to_contain_text("2.5 dollars per day")
        async with served.send_chat("good", headers={"x-api-key": secret}) as response:
            assert response.status == 200
        await page.get_by_role("button", name="Hide the key").click()
        await expect(page.get_by_role("status").locator("pre")).to_have_count(0)
        await page.reload()
        await expect(row).to_contain_text("issued")
        assert secret not in await page.content()
        await expect(page.get_by_role("row").filter(has_text="declared").get_by_role("button")).to_have_count(0)
        await row.get_by_role("button", name="Revoke").click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(row).to_contain_text("revoked")
        async with served.send_chat("good", headers={"x-api-key": secret}) as response:
            assert response.status == 401
