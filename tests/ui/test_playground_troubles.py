"""The playground where something goes wrong, is stopped, or is too much."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.access.samples import key_of
from tests.gateway.served import serving
from tests.ui.browsing import check_accessible, needs_browser, visiting
from tests.ui.talking import Room, answers, choose, done, say, talking

pytestmark = [pytest.mark.anyio, needs_browser]


async def test_an_answer_is_stopped_and_asked_again(browser: Browser, room: Room) -> None:
    async with visiting(browser, room.url) as page:
        await choose(page, "stalls")
        await say(page, "hello")
        await expect(answers(page)).to_contain_text("hi")
        await page.get_by_role("button", name="Stop").click()
        await expect(answers(page)).to_contain_text("Stopped.")
        await page.get_by_role("button", name="Retry").click()
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await page.get_by_role("button", name="Stop").click()
        await expect(page.get_by_role("link", name="Open record")).to_be_visible()
        await expect(answers(page)).to_have_count(1)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("broken", ["503", "because I say so"]),
        ("busy", ["429", "Try again in 70 s."]),
    ],
)
async def test_what_goes_wrong_stands_where_the_answer_would(
    browser: Browser, room: Room, model: str, told: list[str]
) -> None:
    async with visiting(browser, room.url) as page:
        await choose(page, model)
        await say(page, "hello")
        await expect(page.get_by_role("alert")).to_be_visible()
        for text in told:
            await expect(answers(page)).to_contain_text(text)
        await check_accessible(page)


async def test_a_stream_that_breaks_off_says_so_below_what_came(browser: Browser, room: Room) -> None:
    async with visiting(browser, room.url) as page:
        await choose(page, "breaks")
        await say(page, "hello")
        await expect(answers(page)).to_contain_text("hi")
        room.echo.may_break.set()
        await expect(page.get_by_role("alert")).to_contain_text("interrupted")
        await expect(page.get_by_role("alert")).to_contain_text("cuda died")
        await expect(answers(page)).to_contain_text("hi")


async def test_a_gateway_that_is_killed_and_started_again_loses_nothing_of_the_conversation(
    browser: Browser, tmp_path: Path
) -> None:
    async with talking(tmp_path) as room, visiting(browser, room.url) as page:
        await say(page, "code one")
        await done(page)
        await room.served.kill()
        await say(page, "code two")
        await expect(page.get_by_role("alert")).to_contain_text("The gateway does not answer.")
        await room.served.start()
        await page.get_by_role("button", name="Retry").click()
        await expect(answers(page).nth(1)).to_contain_text("code two")
        await done(page)
        await page.reload()
        await expect(answers(page)).to_have_count(2)
    assert [one["content"] for one in room.echo.seen[-1]["messages"]] == ["code one", "code one", "code two"]


async def test_more_than_the_tab_may_keep_gives_way_from_the_oldest(browser: Browser, room: Room) -> None:
    async with visiting(browser, room.url) as page:
        for number in range(4):
            await say(page, f"{number} code " + "y" * 180_000)
            await expect(answers(page)).to_have_count(number + 1)
            await done(page)
        await page.reload()
        await expect(answers(page)).to_have_count(2)
        await expect(answers(page).last).to_contain_text("3 code")


async def test_a_key_that_may_not_chat_is_told_so_and_forgetting_it_forgets_the_conversation(
    browser: Browser, tmp_path: Path
) -> None:
    keys = [key_of("looker", scopes=("admin",)).model_dump(mode="json")]
    async with (
        serving(tmp_path, access={"keys": keys}) as served,
        visiting(browser, f"{served.url}/ui/#/playground") as page,
    ):
        await page.get_by_label("API key").fill("looker")
        await page.keyboard.press("Enter")
        await say(page, "a secret of code")
        await expect(page.get_by_role("alert")).to_contain_text("403")
        await expect(page.get_by_role("alert")).to_contain_text("lacks the scope 'chat'")
        await expect(page.get_by_text("lacks the scope 'route'")).to_be_visible()
        await check_accessible(page)
        await page.get_by_role("button", name="Forget key").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        assert "secret" not in await page.evaluate("JSON.stringify(sessionStorage)")
        await page.get_by_label("API key").fill("looker")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Send a message.")).to_be_visible()
