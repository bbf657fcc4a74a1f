"""The views of experts.yaml and of keys: a mistake at its line, a change as a diff, a key issued, used and revoked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from playwright.async_api import Browser, Page, expect
from ruamel.yaml import YAML

from tests.access.test_issued_keys import DECLARED, SECRET
from tests.gateway.served import Served, serving
from tests.ui.browsing import check_accessible, check_no_sideways_scroll, hold_requests, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), access={"keys": DECLARED}) as served:
        write_lines(served.folder / "experts.yaml", served)
        yield served


def write_lines(path: Path, served: Served) -> None:
    """The declaration as a person writes it, a key a line."""
    with path.open("w") as file:
        YAML().dump(orjson.loads(orjson.dumps(served.declared)), file)


async def sign_in(page: Page) -> None:
    await page.get_by_label("API key").fill(SECRET)
    await page.keyboard.press("Enter")


async def test_a_mistake_has_its_line_and_a_change_its_diff(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/config", phone=True, dark=True) as page:
        await sign_in(page)
        area = page.get_by_label("Text of experts.yaml")
        await expect(area).to_be_visible()
        heights = "['.gutter', 'textarea'].map((one) => document.querySelector(one).getBoundingClientRect().height)"
        numbers, lines = await page.evaluate(heights)
        assert abs(numbers - lines) < 30  # a scroll bar at most
        text = await area.input_value()
        await area.fill(text.replace("  model: good\n", "  modell: good\n"))
        await page.get_by_role("button", name="Check").click()
        wrong = page.get_by_role("listitem").filter(has_text="did you mean 'model'?")
        line = text[: text.index("  model: good\n")].count("\n") + 1
        await expect(page.locator(".gutter .wrong").last).to_contain_text(str(line))
        await wrong.get_by_role("button").click()
        assert (
            await area.evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)") == "  modell: good"
        )
        await area.fill(text.replace("  max_attempts: 1\n", "  max_attempts: 1\n  cost_weight: 0.5\n"))
        await page.get_by_role("button", name="Check").click()
        await expect(page.locator(".copyable")).to_contain_text("+  cost_weight: 0.5")
        await check_no_sideways_scroll(page)
        await check_accessible(page)
        await page.get_by_role("button", name="Load the file again").click()
        await expect(area).to_have_value(text)
        await expect(page.locator(".copyable")).to_have_count(0)


async def test_the_result_of_a_check_is_not_shown_for_text_that_was_edited_meanwhile(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/config") as page:
        await sign_in(page)
        checks = await hold_requests(page, "**/v1/config/check")
        area, check = page.get_by_label("Text of experts.yaml"), page.get_by_role("button", name="Check")
        text = await area.input_value()
        await area.fill(f"{text}# one\n")
        await check.click()
        await checks.arrived.wait()
        await area.fill(f"{text}# two\n")
        await expect(check).to_be_disabled()
        checks.released.set()
        await expect(check).to_be_enabled()
        await expect(page.locator(".copyable")).to_have_count(0)
        await check.click()
        await expect(page.locator(".copyable")).to_contain_text("+# two")


async def test_a_key_is_issued_shown_once_and_revoked(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/keys?new") as page:
        await sign_in(page)
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
        await expect(row).to_have_count(0)
        async with served.send_chat("good", headers={"x-api-key": secret}) as response:
            assert response.status == 401
