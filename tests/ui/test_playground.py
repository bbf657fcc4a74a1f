"""The playground: a conversation streams, side by side too, survives a reload, and says why."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, expect

from coe.records import open_log_and_feedback
from tests.gateway.served import SQLITE
from tests.ui.browsing import needs_browser, visiting
from tests.ui.playground import (
    MODELS,
    Playground,
    answers,
    choose,
    send_prompt,
    wait_until_answered,
)

pytestmark = [pytest.mark.anyio, needs_browser]


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
        await why.get_by_role("link", name="Open record").click()
        await expect(page.get_by_role("heading", name="Candidates")).to_be_visible()
        await page.go_back()
        await expect(answers(page)).to_contain_text("code, please")


async def test_two_experts_answer_the_same_prompt_side_by_side(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        await choose(page, "auto", "broken")
        await send_prompt(page, "art for all")
        await wait_until_answered(page)
        first, second = answers(page).nth(0), answers(page).nth(1)
        await expect(first).to_contain_text("art for all")
        await expect(second.get_by_role("alert")).to_contain_text("503")
        await expect(second.get_by_role("alert")).to_contain_text("because I say so")
        await first.get_by_text("Why?").click()
        await expect(first.get_by_text("painter is expected to answer best")).to_be_visible()
        await choose(page, "auto", "coder")
        await send_prompt(page, "and again")
        await expect(answers(page).nth(3)).to_contain_text("and again")
        await wait_until_answered(page)
    for body in playground.echo.seen[-2:]:
        assert [one["content"] for one in body["messages"]] == ["art for all", "art for all", "and again"]


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


async def test_thumbs_are_stored(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        await send_prompt(page, "code")
        await wait_until_answered(page)
        await page.get_by_role("button", name="Good").click()
        await expect(page.get_by_role("button", name="Good")).to_have_attribute("aria-pressed", "true")
        link = page.get_by_role("link", name="Open record")
        request_id = (await link.get_attribute("href") or "").rpartition("/")[2]
    log = open_log_and_feedback(SQLITE, base=playground.served.folder / ".coe")[1]
    said = await log.for_request(request_id, keys=(None,))
    await log.aclose()
    assert [(event.kind, event.value) for event in said] == [("thumb", 1)]
