"""The log's view: the list by its filters, a record's page, and labels."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from coe.records import open_log_and_feedback
from coe.records.record import RecipeCall, RoutingRecord
from tests.gateway.served import SQLITE, Served, serving
from tests.records.samples import record
from tests.ui.browsing import check_no_sideways_scroll, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]

HARM = (
    "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'> \"quoted\" 'too' \u202egnp.exe \x00\x07"
)
LONG = "word " * 20_000
POSTERIOR = {"code": 0.75, "art": 0.15, "general": 0.1}


def made(number: int, **changes: Any) -> RoutingRecord:
    usual = {
        "request_id": f"req_{number:032x}",
        "time": time.time() - 3_600 + number,
        "expert": "good",
        "candidates": ("good", "drips", "silent"),
        "utility": (0.8, 0.7, float("-inf")),
        "price": (0.01, 0.0, 0.0),
        "probabilities": POSTERIOR,
        "needs": (),
        "cost": 0.0012,
    }
    return record(number, **(usual | changes))


SPECIAL = {
    10: {
        "category": "art",
        "expert": "drips",
        "reason": "fallback",
        "attempts": 2,
        "prompt": "a picture of code",
        "fallback_from": "good",
        "correction": "3993bd4fc955" * 2,
        "cause": "connection_refused",
    },
    11: {"session": HARM[:100], "tenant": "retail", "prompt": HARM, "outcome": "expert_timeout"},
    12: {"prompt": LONG, "retrieval": "used", "gate": 0.7, "passages": ("handbook.md#2",), "passage_tokens": 90},
    14: {
        "expert": "careful",
        "reason": "pinned",
        "recipe": "careful",
        "recipe_stop": "unavailable",
        "steps": (
            RecipeCall("small_a", 0, "unverified", 7, 5, 12.0, 0, 0.61, True),
            RecipeCall("small_b", 0, "answered", 7, 6, 15.0, 1, 0.28),
            RecipeCall("large", 1, "timeout", ms=900.0),
        ),
    },
    13: {"category": "", "expert": "", "reason": "", "probabilities": {}, "candidates": (), "utility": (), "price": ()},
}
COUNT = 130


@dataclass(frozen=True)
class Shop:
    served: Served
    records: list[RoutingRecord]

    def url(self, rest: str = "") -> str:
        return f"{self.served.url}/ui/#/log{rest}"


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    records = [made(number, **SPECIAL.get(number, {})) for number in range(COUNT)]
    log = open_log_and_feedback(SQLITE, base=folder / ".coe")[0]
    await log.append(records)
    await log.aclose()
    async with serving(folder) as served:
        yield Shop(served, records)


def rows(page: Page) -> Any:
    return page.locator("table.records tbody tr")


async def unharmed(page: Page) -> None:
    assert await page.evaluate("window.harmed") is None


async def test_the_newest_come_first_and_pages_lead_back_to_the_oldest(browser: Browser, shop: Shop) -> None:
    async with visiting(browser, shop.url()) as page:
        await expect(rows(page)).to_have_count(50)
        for _ in range(2):
            await page.get_by_role("link", name="Older").click()
            await expect(page.get_by_role("link", name="Newest")).to_be_visible()
        await expect(rows(page)).to_have_count(30)
        await expect(page.get_by_text("end of log")).to_be_visible()
        await page.go_back()
        await expect(rows(page)).to_have_count(50)
        await page.get_by_role("link", name="Newest").click()
        await expect(rows(page).first.locator("a")).to_have_attribute("href", f"#/log/{shop.records[-1].request_id}")


async def test_filters_stand_in_the_address_and_come_from_it(browser: Browser, shop: Shop) -> None:
    async with visiting(browser, shop.url()) as page:
        await expect(rows(page)).to_have_count(50)
        await page.get_by_label("Reason").select_option("fallback")
        await expect(rows(page)).to_have_count(1)
        await expect(page).to_have_url(shop.url("?reason=fallback"))
        await page.get_by_label("Tenant").fill("nobody")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("No matching records.")).to_be_visible()
        await expect(page.get_by_label("Tenant")).to_be_focused()
        await page.get_by_role("link", name="Clear").click()
        await expect(rows(page)).to_have_count(50)
        await expect(page.get_by_label("Reason")).to_have_value("")
        await page.goto(shop.url("?tenant=retail&within=1d"))
        await expect(rows(page)).to_have_count(1)
        await expect(page.get_by_role("combobox", name=re.compile("^Time"))).to_have_value("1d")
        await page.goto(shop.url("?within=between&since=2001-01-01T00:00&until=2001-01-02T00:00"))
        await expect(page.get_by_text("No matching records.")).to_be_visible()
        await expect(page.get_by_label("From", exact=True)).to_have_value("2001-01-01T00:00")


async def test_a_row_leads_to_its_record_with_all_fields(browser: Browser, shop: Shop) -> None:
    async with visiting(browser, shop.url("?reason=fallback")) as page:
        await expect(rows(page).first).to_contain_text("good: connection_refused")
        await rows(page).first.locator("td").nth(1).click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(shop.records[10].request_id)
        for text in (
            "good did not answer: nothing listens at its address, so drips answered",
            "near the correction 3993bd4fc955;",
            "good: connection_refused",
            "No document store is declared",
            "a picture of code",
            "$0.0012",
            "No feedback.",
        ):
            await expect(page.get_by_text(text).first).to_be_visible()
        considered = page.get_by_role("region", name="Candidates").locator("tbody tr")
        assert await considered.nth(0).inner_text() == "good\t0.810\t0.010\t0.800"
        assert await considered.nth(2).inner_text() == "silent\t–\t0.000\t–"
        await expect(considered.nth(1)).to_contain_text("(chosen)")


async def test_labels_are_stored_and_shown(browser: Browser, shop: Shop) -> None:
    request_id = shop.records[20].request_id
    async with visiting(browser, shop.url(f"/{request_id}")) as page:
        await page.get_by_role("button", name="Bad").click()
        await expect(page.get_by_text("Feedback saved.")).to_be_visible()
        await page.get_by_label("Correct category").select_option("art")
        await page.locator("form", has=page.get_by_label("Correct category")).get_by_role("button").click()
        said = page.get_by_role("region", name="Feedback").locator("tbody tr")
        await expect(said).to_have_count(2)
        await expect(said.nth(0)).to_contain_text("down")
        await expect(said.nth(1)).to_contain_text("art")
    log = open_log_and_feedback(SQLITE, base=shop.served.folder / ".coe")[1]
    kept = {(event.kind, event.value) for event in await log.for_request(request_id, keys=(None,))}
    await log.aclose()
    assert kept == {("thumb", -1), ("category", "art")}


@pytest.mark.parametrize("number", [11, 12])
async def test_what_a_prompt_contains_is_text(browser: Browser, shop: Shop, number: int) -> None:
    one = shop.records[number]
    async with visiting(browser, shop.url(f"/{one.request_id}"), phone=True) as page:
        shown = page.get_by_role("region", name="Classified text").locator("pre")
        await expect(shown).to_be_visible()
        assert one.prompt is not None
        assert (await shown.evaluate("node => node.textContent")).replace("\ufffd", "\x00") == one.prompt
        await check_no_sideways_scroll(page)
        if number == 11:
            await page.get_by_role("link", name="window.harmed").click()
            await expect(rows(page)).to_have_count(1)
        await unharmed(page)
