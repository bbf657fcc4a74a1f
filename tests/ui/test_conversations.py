"""Conversations: kept in the browser within bounds, changed and sent again, and several answers side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.ui.browsing import (
    check_accessible,
    check_no_sideways_scroll,
    needs_browser,
    visiting,
    wait_until,
)
from tests.ui.playground import (
    Playground,
    answers,
    choose,
    send_prompt,
    wait_until_answered,
    wait_until_complete,
)

pytestmark = [pytest.mark.anyio, needs_browser]


async def send_and_wait(page: Page, text: str) -> None:
    count = await answers(page).count()
    await send_prompt(page, text)
    await expect(answers(page)).to_have_count(count + 1)
    await wait_until_complete(page)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def contents(playground: Playground) -> list[str]:
    """The messages of the last request."""
    return [one["content"] for one in playground.echo.seen[-1]["messages"]]


async def test_conversations_are_kept_renamed_exported_and_deleted(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        await send_and_wait(page, "code first")
        await page.get_by_role("button", name="New conversation").click()
        await send_and_wait(page, "art second")
        await page.reload()
        await expect(answers(page)).to_contain_text("art second")
        await page.get_by_role("button", name="Conversations").click()
        listed = page.get_by_role("dialog").locator("li .title")
        await expect(listed).to_have_text(["art second", "code first"])
        await expect(page.get_by_role("dialog")).to_contain_text("sent nowhere")
        await check_accessible(page)
        await page.get_by_role("button", name="Rename code first").click()
        await page.get_by_label("New title").fill("<b>renamed</b>")
        await page.keyboard.press("Enter")
        await expect(listed).to_have_text(["art second", "<b>renamed</b>"])
        async with page.expect_download() as download:
            await page.get_by_role("button", name="Export all as JSON").click()
        exported = read_json(await (await download.value).path())["conversations"]
        assert [(one["title"], one["turns"][0]["answers"][0]["text"]) for one in exported] == [
            ("art second", "art second"),
            ("<b>renamed</b>", "code first"),
        ]
        await listed.nth(1).click()
        await expect(answers(page)).to_contain_text("code first")
        await expect(page.get_by_label("Your message")).to_be_focused()
        await send_and_wait(page, "and on")
        assert contents(playground) == ["code first", "code first", "and on"]
        await page.get_by_role("button", name="Conversations").click()
        await page.get_by_role("button", name="Delete art second").click()
        await expect(listed).to_have_text(["<b>renamed</b>"])
        page.once("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Delete all").click()
        await expect(listed).to_have_count(0)
        await page.reload()
        await expect(page.get_by_text("Send a message.")).to_be_visible()
        assert (
            await page.evaluate("Object.keys(localStorage).filter((one) => one.includes('conversation-')).length") == 0
        )


async def second_tab(page: Page, playground: Playground) -> Page:
    """A tab beside `page`, with the latest kept conversation open."""
    tab = await page.context.new_page()
    await tab.goto(playground.url)
    await tab.get_by_role("button", name="Conversations").click()
    await tab.get_by_role("dialog").locator("li .title").first.click()
    await expect(answers(tab)).not_to_have_count(0)
    return tab


async def test_deleted_conversations_do_not_come_back_from_another_tab(
    browser: Browser, playground: Playground
) -> None:
    async with visiting(browser, playground.url) as page:
        await send_and_wait(page, "code one")
        tab = await second_tab(page, playground)
        busy = await page.context.new_page()
        await busy.goto(playground.url)
        await choose(busy, "stalls")
        await send_prompt(busy, "wait")
        await expect(answers(busy)).to_contain_text("hi")
        await page.get_by_role("button", name="Conversations").click()
        await expect(page.get_by_role("dialog").locator("li .title")).to_have_count(2)  # `busy` has sent its own
        page.once("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Delete all").click()
        for other in (tab, busy):
            await expect(other.locator("main > .warn")).to_contain_text("removed in another tab")
            await expect(answers(other)).to_have_count(0)
            await other.goto("about:blank")
        await wait_until(page, "Object.keys(localStorage).length === 0")


async def test_a_prompt_is_edited_and_an_answer_regenerated(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        for text in ("code one", "code two", "code three"):
            await send_and_wait(page, text)
        async with page.expect_request("**/v1/chat/completions") as sent:
            await answers(page).last.get_by_role("button", name="Regenerate").click()
        assert (await sent.value).headers["x-coe-cache"] == "off"
        await wait_until_answered(page)
        assert contents(playground) == ["code one", "code one", "code two", "code two", "code three"]
        await page.get_by_role("button", name="Edit").nth(1).click()
        await expect(page.get_by_label("Edited message")).to_be_focused()
        await expect(page.get_by_label("Edited message")).to_have_value("code two")
        await page.get_by_label("Edited message").fill("code changed")
        await page.keyboard.press("Enter")
        await expect(answers(page)).to_have_count(2)
        await expect(answers(page).last).to_contain_text("code changed")
        await wait_until_answered(page)
        assert contents(playground) == ["code one", "code one", "code changed"]


async def test_three_answer_side_by_side_and_one_is_continued_with(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url, phone=True) as page:
        await choose(page, "auto", "broken")
        await page.get_by_label("And with").select_option("painter")
        await send_prompt(page, "code for all")
        await wait_until_complete(page)
        await expect(answers(page)).to_have_count(3)
        await expect(answers(page).nth(1).get_by_role("alert")).to_contain_text("because I say so")
        for place in (0, 2):
            await expect(answers(page).nth(place).locator(".measured")).to_contain_text("2 + 4 tokens · $0.000008")
        await check_no_sideways_scroll(page)
        await check_accessible(page)
        async with page.expect_request("**/v1/chat/completions") as sent:
            await answers(page).nth(2).get_by_role("button", name="Continue with this").click()
            await send_prompt(page, "go on")
        await wait_until_answered(page)
        await expect(answers(page)).to_have_count(4)
        await expect(answers(page).nth(2)).to_contain_text("continues with this answer")
        body = (await sent.value).post_data_json
        assert (body["model"], [one["content"] for one in body["messages"]]) == (
            "painter",
            ["code for all", "code for all", "go on"],
        )
        assert (await sent.value).headers["x-session-id"].endswith("-3")
