"""The experts' view in a real browser: cards, their failures, and an expert added by its checklist."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.experts.faulty_server import FaultyServer
from tests.gateway.served import Served, serving
from tests.ui.browsing import check_accessible, check_no_sideways_scroll, hold_requests, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]
LOOK_ONCE = """() => {
  let hidden = false;
  Object.defineProperty(document, "hidden", { get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
  hidden = true;
}"""
"""The page loads the experts now, and not again by itself: a hidden page does not."""


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), environ={"COE_WORKERS": "2"}) as served:
        for name in ["good"] * 3 + ["status-500"] * 2:
            await (await served.send_chat(name)).read()
        await served.records(5)  # the page reads the failures once
        yield served


async def fill(page: Page, **fields: str) -> None:
    for label, text in fields.items():
        await page.get_by_label(label.replace("_", " "), exact=True).fill(text)


async def check(page: Page) -> None:
    await page.get_by_role("button", name="Check entry").click()


@pytest.mark.parametrize("phone", [False, True])
@pytest.mark.parametrize("dark", [False, True])
async def test_cards_and_checklist_fit_and_are_accessible(
    browser: Browser, served: Served, phone: bool, dark: bool
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts?add", phone=phone, dark=dark) as page:
        await expect(page.get_by_role("heading", name="good", exact=True)).to_be_visible()
        await fill(page, Name="writer", Model="m", Base_URL="http://127.0.0.1:9/v1")
        await check(page)
        await expect(page.get_by_role("heading", name="Next steps for writer")).to_be_visible()
        await check_no_sideways_scroll(page)
        await check_accessible(page)


async def test_a_card_shows_requests_of_all_processes_and_links_to_the_records_of_failures(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts/status-500") as page:
        good = page.get_by_role("region", name="good", exact=True)
        await expect(good).to_contain_text("Requests3")
        card = page.get_by_role("region", name="status-500")
        await expect(card).to_contain_text("Failed100 %")
        failures = card.locator(".failure a")
        await expect(failures).to_have_count(2)
        identity = (await failures.first.get_attribute("href") or "").rpartition("/")[2]
        await failures.first.click()
        await expect(page.get_by_text(identity).first).to_be_visible()


async def test_an_expert_is_tested_from_its_card_at_most_every_five_seconds(browser: Browser, served: Served) -> None:
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
        tested, start = 0, time.monotonic()
        while True:
            async with served.client.post(f"{served.url}/v1/experts/good/test") as response:
                if response.status == 429:
                    break
                assert response.status == 200
            tested += 1
            assert tested <= 2 * (1 + (time.monotonic() - start) // 5)  # each of two processes counts for itself
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


async def test_an_entry_is_written_and_checked_and_its_steps_are_ticked_off(browser: Browser, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, visiting(browser, f"{served.url}/ui/#/experts?add") as page:
        await fill(page, Name="wrong name", Model="good", Base_URL=served.upstream.url)
        await check(page)
        await expect(page.get_by_text("Line 1", exact=True)).to_be_visible()
        await fill(page, Name="second")
        await page.get_by_label("tools").check()
        await expect(page.get_by_label("Entry for experts.yaml")).to_have_value(
            f"  - name: second\n    model: good\n    runtime: external\n    base_url: {served.upstream.url}\n"
            "    capabilities: [tools]\n"
        )
        await check(page)
        await expect(page.get_by_text("The entry fits the current experts.yaml.")).to_be_visible()
        step = page.get_by_role("listitem")
        await expect(step.filter(has_text="Declared: to do")).to_be_visible()
        new = {"name": "second", "model": "good", "runtime": "external", "base_url": served.upstream.url}
        new |= {"concurrent_requests": 8}
        served.declare(experts=[*served.declared["experts"], new])
        await expect(step.filter(has_text="Declared: done")).to_be_visible()
        await expect(step.filter(has_text="Served: done")).to_be_visible()
        await expect(step.filter(has_text="Receives traffic: to do")).to_be_visible()
        await (await served.send_chat("second")).read()
        await expect(step.filter(has_text="Receives traffic: done")).to_be_visible()
        await expect(step.filter(has_text="Reachable: done")).to_be_visible()
        await expect(step.filter(has_text="In the plan: to do")).to_be_visible()
        await page.reload()
        await expect(page.get_by_role("region", name="second", exact=True)).to_contain_text("In flight0 of 8")


async def test_the_result_of_a_check_is_not_shown_for_an_entry_that_was_edited_meanwhile(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts?add") as page:
        checks = await hold_requests(page, "**/v1/experts/check")
        await fill(page, Name="one", Model="good", Base_URL="http://127.0.0.1:9/v1")
        await check(page)
        await checks.arrived.wait()
        await fill(page, Name="two")
        checks.released.set()
        await expect(page.get_by_role("button", name="Check entry")).to_be_enabled()
        await expect(page.get_by_text("The entry fits the current experts.yaml.")).to_have_count(0)
        await check(page)
        await expect(page.get_by_role("heading", name="Next steps for two")).to_be_visible()


async def test_an_address_that_is_only_in_an_entry_is_never_called(browser: Browser, served: Served) -> None:
    stranger = FaultyServer()
    runner = await stranger.start()
    try:
        async with visiting(browser, f"{served.url}/ui/#/experts?add") as page:
            await fill(page, Name="stranger", Model="good", Base_URL=stranger.url)
            await check(page)
            await expect(page.get_by_text("The entry fits the current experts.yaml.")).to_be_visible()
            step = page.get_by_role("listitem")
            await expect(step.filter(has_text="Reachable: to do")).to_be_visible()
        assert (stranger.seen, dict(stranger.pages)) == ([], {})
    finally:
        await runner.cleanup()


async def test_whatever_is_typed_is_text(browser: Browser, served: Served) -> None:
    hostile = "\"><img src=x onerror=alert(1)><script>alert(2)</script>\u202e'"
    async with visiting(browser, f"{served.url}/ui/#/experts?add") as page:
        await fill(page, Name=hostile, Model=hostile, Base_URL="http://127.0.0.1:9/v1")
        await check(page)
        await expect(page.get_by_text("Line 1", exact=True)).to_be_visible()
        assert await page.locator("main img, main script").count() == 0
        await page.get_by_label("Entry for experts.yaml").fill("x" * 16_000)
        await check(page)
        await expect(page.get_by_text("expected one expert")).to_be_visible()
        await check_no_sideways_scroll(page)


async def test_it_comes_back_after_a_restart_of_the_gateway(browser: Browser, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, visiting(browser, f"{served.url}/ui/#/experts") as page:
        card = page.get_by_role("heading", name="good", exact=True)
        await expect(card).to_be_visible()
        await served.kill()
        await page.evaluate(LOOK_ONCE)
        await expect(page.get_by_role("alert")).to_contain_text("The gateway does not answer.")
        await served.start()
        await page.get_by_role("button", name="Try again").click()
        await expect(card).to_be_visible()
