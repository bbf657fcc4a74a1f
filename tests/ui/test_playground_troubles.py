"""The playground where something goes wrong, is stopped, or is too much."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.access.samples import key_of
from tests.gateway.served import serving
from tests.ui.browsing import check_accessible, needs_browser, visiting
from tests.ui.playground import (
    Playground,
    answers,
    choose,
    open_playground,
    send_prompt,
    wait_until_answered,
    wait_until_complete,
)

pytestmark = [pytest.mark.anyio, needs_browser]


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


async def test_a_key_without_the_chat_scope_is_explained_and_forgetting_it_forgets_the_conversation(
    browser: Browser, tmp_path: Path
) -> None:
    keys = [key_of("looker", scopes=("admin",)).model_dump(mode="json")]
    async with (
        serving(tmp_path, access={"keys": keys}) as served,
        visiting(browser, f"{served.url}/ui/#/playground") as page,
    ):
        await page.get_by_label("API key").fill("looker")
        await page.keyboard.press("Enter")
        await send_prompt(page, "a secret of code")
        await expect(page.get_by_role("alert")).to_contain_text("403")
        await expect(page.get_by_role("alert")).to_contain_text("lacks the scope 'chat'")
        await expect(page.get_by_text("lacks the scope 'route'")).to_be_visible()
        await check_accessible(page)
        await page.get_by_role("button", name="Forget key").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        assert "secret" not in await page.evaluate("JSON.stringify([{ ...sessionStorage }, { ...localStorage }])")
        await page.get_by_label("API key").fill("looker")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Send a message.")).to_be_visible()
