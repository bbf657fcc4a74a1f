"""The playground with recipes: a recipe answers, and is compared with its members."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.gateway.served import Served, serving
from tests.ui.browsing import check_accessible, check_no_sideways_scroll, needs_browser, visiting
from tests.ui.echo_server import EchoServer
from tests.ui.playground import answers, choose, send_prompt, wait_until_answered, wait_until_complete

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


async def test_the_panel_shows_the_calls_of_a_recipe(browser: Browser, served: Served) -> None:
    async with visiting(browser, url(served)) as page:
        await choose(page, "careful")
        await send_prompt(page, "7")
        await expect(page.get_by_role("article", name="Answer of careful, by coder")).to_contain_text("7")
        calls = page.get_by_role("complementary", name="Why").get_by_role("region", name="Calls of the recipe")
        await expect(calls.locator("tbody th")).to_have_text(["coder (returned)", "broken", "painter"])
        await expect(calls).to_contain_text("server_error")


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


@pytest.mark.parametrize("phone", [False, True])
@pytest.mark.parametrize("dark", [False, True])
async def test_a_comparison_fits_and_is_accessible(browser: Browser, served: Served, phone: bool, dark: bool) -> None:
    async with visiting(browser, url(served), phone=phone, dark=dark) as page:
        await choose(page, "careful", MEMBERS)
        await send_prompt(page, "7")
        await wait_until_complete(page)
        await expect(row(page, "careful")).to_contain_text("All steps were called.")
        await check_no_sideways_scroll(page)
        await check_accessible(page)


async def test_a_comparison_is_reached_by_the_keyboard(browser: Browser, served: Served) -> None:
    async with visiting(browser, url(served)) as page:
        model = page.get_by_label("Model")
        await model.focus()
        while await model.input_value() != "panel":  # a typed name is found only by a visitor who types without a pause
            await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Tab")
        await page.keyboard.press("ArrowDown")
        await expect(page.get_by_label("Compare with")).to_have_value(MEMBERS)
        await send_prompt(page, "7")
        await expect(page.get_by_role("region", name="panel and its members")).to_be_visible()
