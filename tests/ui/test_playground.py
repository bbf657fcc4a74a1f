"""The playground: a conversation streams and says why, recipes beside their members, and what goes wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from coe.records import open_log_and_feedback
from tests.gateway.served import SQLITE
from tests.ui.browsing import check_accessible, needs_browser, visiting
from tests.ui.playground import (
    MODELS,
    Playground,
    answers,
    choose,
    open_playground,
    send_prompt,
    wait_until_answered,
    wait_until_complete,
)

pytestmark = [pytest.mark.anyio, needs_browser]

MEMBERS = "*members"


async def test_an_answer_streams_and_the_panel_explains_the_decision(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        await send_prompt(page, "code, please")
        await expect(answers(page)).to_contain_text("code, please")
        why = page.get_by_role("complementary", name="Why")
        await expect(why.get_by_text("coder is expected to answer best (code")).to_be_visible()
        await expect(why.get_by_role("link", name="Open record")).to_be_visible()
        considered = why.get_by_role("region", name="Candidates").locator("tbody tr")
        await expect(considered).to_have_count(len(MODELS))
        await expect(considered.first).to_contain_text("coder (chosen)")
        await expect(why.locator(".stretches dt")).to_have_text(
            ["admit", "parse", "classify", "assign", "retrieve", "call", "relay", "record"]
        )
        for place, value in enumerate(await why.locator(".stretches dd").all_inner_texts()):
            assert bool(re.search(r"\d m?s$", value)) == (place < 7)
        await expect(why.locator(".neighbours li").first).to_contain_text("code")
        await expect(why.get_by_text("2 + 4")).to_be_visible()
        await page.get_by_role("button", name="Good").click()
        await expect(page.get_by_role("button", name="Good")).to_have_attribute("aria-pressed", "true")
        await why.get_by_role("link", name="Open record").click()
        await expect(page.get_by_role("heading", name="Candidates")).to_be_visible()
        await page.go_back()
        await expect(answers(page)).to_contain_text("code, please")


async def test_why_shows_the_nearest_measured_prompts_and_their_scores(
    browser: Browser, playground: Playground
) -> None:
    near = {"category": "code", "similarity": 0.914, "weight": 0.2}
    measured = [
        {**near, "prompt_id": "p1", "text": "sort a list", "scores": {"coder": 1.0, "painter": 0.0}},
        {**near, "prompt_id": "req_1", "category": "", "text": None, "scores": {"coder": 0.75}},
    ]

    async def add_measured(route: Route) -> None:
        response = await route.fetch()
        await route.fulfill(response=response, json=await response.json() | {"measured": measured})

    async with visiting(browser, playground.url) as page:
        await page.route("**/v1/route", add_measured)
        await send_prompt(page, "code, please")
        heading = page.get_by_role("heading", name="Nearest measured prompts")
        shown = page.locator("section").filter(has=heading).locator(".neighbours li")
        await expect(shown).to_have_count(2)
        for said in ("sort a list", "code", "0.91", "coder 1", "painter 0", "weight 20"):
            await expect(shown.first).to_contain_text(said)
        await expect(shown.last).to_contain_text("coder 0.75")
        await expect(shown.last.get_by_role("link", name="Rated request")).to_have_attribute("href", "#/log/req_1")


async def test_settings_go_with_each_request_and_the_conversation_too(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        await page.get_by_text("More", exact=True).click()
        await page.get_by_label("System prompt").fill("be brief")
        await page.get_by_label("Temperature").fill("0.3")
        await page.get_by_label("Max tokens").fill("77")
        await page.get_by_label("Cost weight").fill("0.5")
        await page.get_by_label("Retrieval").select_option("off")
        await send_prompt(page, "code one")
        await wait_until_answered(page)
        async with page.expect_request("**/v1/chat/completions") as asked:
            await send_prompt(page, "code two")
        assert (await asked.value).headers["x-coe-retrieval"] == "off"
        await expect(answers(page).nth(1)).to_contain_text("code two")
        link = page.get_by_role("link", name="Open record")
        request_id = (await link.get_attribute("href") or "").rpartition("/")[2]
    body = playground.echo.seen[-1]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0.3, 77, True)
    assert [(one["role"], one["content"]) for one in body["messages"]] == [
        ("system", "be brief"),
        ("user", "code one"),
        ("assistant", "code one"),
        ("user", "code two"),
    ]
    log = open_log_and_feedback(SQLITE, base=playground.served.folder / ".coe")[0]
    record = await log.find(request_id)
    await log.aclose()
    assert record is not None
    assert (record.cost_weight, record.reason) == (0.5, "sticky")
    assert (record.session or "").startswith("playground-")


# ------------------------------------------------------------------------------------------------- recipes


def row(page: Page, name: str) -> Locator:
    return page.locator(".comparison tbody tr").filter(has=page.locator("strong", has_text=name))


async def test_a_recipe_is_shown_beside_its_members_with_tokens_cost_time_and_why_it_stopped(
    browser: Browser, playground: Playground
) -> None:
    async with visiting(browser, playground.url) as page:
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
    browser: Browser, playground: Playground
) -> None:
    async with visiting(browser, playground.url) as page:
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


# ------------------------------------------------------------------------------------------------- troubles


async def test_an_answer_is_stopped_and_retried(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        await choose(page, "stalls")
        await send_prompt(page, "hello")
        await expect(answers(page)).to_contain_text("hi")
        await page.get_by_role("button", name="Stop").click()
        await expect(answers(page)).to_contain_text("Stopped.")
        await page.get_by_role("button", name="Retry").click()
        await expect(answers(page)).to_contain_text("First token")  # the record's id is in the head of the response
        await page.get_by_role("button", name="Stop").click()
        await expect(page.get_by_role("link", name="Open record")).to_be_visible()
        await expect(answers(page)).to_have_count(1)


@pytest.mark.parametrize(
    ("model", "texts"),
    [
        ("broken", ["503", "because I say so"]),
        ("busy", ["429", "Try again in 70 s."]),
    ],
)
async def test_errors_are_shown_in_place_of_the_answer(
    browser: Browser, playground: Playground, model: str, texts: list[str]
) -> None:
    async with visiting(browser, playground.url) as page:
        await choose(page, model)
        await send_prompt(page, "hello")
        await expect(page.get_by_role("alert")).to_be_visible()
        for text in texts:
            await expect(answers(page)).to_contain_text(text)
        await wait_until_complete(page)
        await check_accessible(page)


async def test_a_stream_that_breaks_off_shows_the_error_below_the_received_text(
    browser: Browser, playground: Playground
) -> None:
    async with visiting(browser, playground.url) as page:
        await choose(page, "breaks")
        await send_prompt(page, "hello")
        await expect(answers(page)).to_contain_text("hi")
        playground.echo.may_break.set()
        await expect(page.get_by_role("alert")).to_contain_text("interrupted")
        await expect(page.get_by_role("alert")).to_contain_text("cuda died")
        await expect(answers(page)).to_contain_text("hi")


async def test_the_conversation_survives_a_kill_and_restart_of_the_gateway(browser: Browser, tmp_path: Path) -> None:
    async with open_playground(tmp_path) as playground, visiting(browser, playground.url) as page:
        await send_prompt(page, "code one")
        await wait_until_answered(page)
        await expect(answers(page).locator("coe-markdown p")).to_have_text("code one")  # the renderer is loaded too
        await playground.served.kill()
        await send_prompt(page, "code two")
        await expect(page.get_by_role("alert")).to_contain_text("The gateway does not answer.")
        await playground.served.start()
        await page.get_by_role("button", name="Retry").click()
        await expect(answers(page).nth(1)).to_contain_text("code two")
        await wait_until_answered(page)
        await page.reload()
        await expect(answers(page)).to_have_count(2)
    assert [one["content"] for one in playground.echo.seen[-1]["messages"]] == ["code one", "code one", "code two"]
