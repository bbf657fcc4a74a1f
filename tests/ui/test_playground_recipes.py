"""The playground with recipes: a recipe answers, and is compared with its members."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.gateway.served import Served, serving
from tests.ui.browsing import needs_browser, visiting
from tests.ui.echo_server import EchoServer
from tests.ui.playground import answers, choose, send_prompt, wait_until_answered

pytestmark = [pytest.mark.anyio, needs_browser]
RECIPES = [
    {"name": "panel", "vote": ["coder", "painter"]},
    {"name": "careful", "cascade": [["coder", "broken"], "painter"]},
]
MEMBERS = "*members"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    echo = EchoServer()
    runner = await echo.start()
    usual = {"runtime": "external", "base_url": echo.url, "prices": {"output": 2.0}, "context_length": 10**6}
    models = {"coder": "echo", "painter": "echo", "broken": "status:500"}
    experts = [{"name": name, "model": model, **usual} for name, model in models.items()]
    folder = tmp_path_factory.mktemp("recipes")
    async with serving(folder, experts=experts, assignment={"general": "coder"}, recipes=RECIPES) as served:
        yield served
    await runner.cleanup()


def url(served: Served) -> str:
    return f"{served.url}/ui/#/playground"


def row(page: Page, name: str) -> Locator:
    return page.locator(".comparison tbody tr").filter(has=page.locator("strong", has_text=name))


async def test_a_recipe_is_shown_beside_its_members_with_tokens_cost_time_and_why_it_stopped(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, url(served)) as page:
        await choose(page, "panel", MEMBERS)
        await send_prompt(page, "7")
        await wait_until_answered(page)
        await expect(answers(page)).to_have_count(3)
        for place in range(3):
            await expect(answers(page).nth(place).locator("coe-markdown")).to_have_text("7")
        table = page.get_by_role("region", name="panel and its members")
        await expect(table.locator("tbody tr strong")).to_have_text(["panel", "coder", "painter"])
        await expect(row(page, "panel")).to_contain_text("All steps were called.")
        await expect(row(page, "panel")).to_contain_text("returned the answer of coder")
        await expect(row(page, "coder")).to_contain_text("The answer is complete.")
        for one in await table.locator("tbody tr").all():  # the record comes after the answer
            await expect(one.locator("td").nth(2)).to_have_text(re.compile(r"\d+"))
            await expect(one.locator("td").nth(3)).to_have_text(re.compile(r"\$.+"))
        tokens = [int(await one.locator("td").nth(2).inner_text()) for one in await table.locator("tbody tr").all()]
        assert tokens[0] == tokens[1] + tokens[2] > 0  # the recipe called both
        for one in await table.locator("tbody tr").all():
            assert (await one.locator("td").nth(3).inner_text()).startswith("$")
            assert (await one.locator("td").nth(5).inner_text()).endswith("s")


async def test_a_member_that_fails_is_shown_and_the_conversation_goes_on_in_each_lane(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, url(served)) as page:
        await choose(page, "careful", MEMBERS)
        await send_prompt(page, "7")
        await wait_until_answered(page)
        await expect(page.locator(".comparison tbody tr strong")).to_have_text(
            ["careful", "coder", "broken", "painter"]
        )
        await expect(row(page, "broken")).to_contain_text("because I say so")
        await send_prompt(page, "8")
        await wait_until_answered(page)
        await expect(answers(page)).to_have_count(8)
        await expect(answers(page).nth(4).locator("coe-markdown")).to_have_text("8")
        await page.reload()
        await expect(page.locator(".comparison")).to_have_count(2)
        await expect(page.get_by_label("Compare with")).to_have_value(MEMBERS)


async def test_only_a_recipe_can_be_compared_with_its_members(browser: Browser, served: Served) -> None:
    async with visiting(browser, url(served)) as page:
        offered = page.get_by_label("Compare with").locator("option")
        await choose(page, "panel", MEMBERS)
        await page.get_by_label("Model").select_option("coder")
        await expect(page.get_by_label("Compare with")).to_have_value("")
        await expect(offered.filter(has_text="its members")).to_have_count(0)
        await send_prompt(page, "7")
        await wait_until_answered(page)
        await expect(answers(page)).to_have_count(1)
        await expect(page.locator(".comparison")).to_have_count(0)
