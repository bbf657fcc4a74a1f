"""The views of live numbers and of experts in a real browser, before a real gateway of two processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.gateway.served import Served, serving
from tests.ui.browsing import check_accessible, check_no_sideways_scroll, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), environ={"COE_WORKERS": "2"}) as served:
        for name in ["good"] * 6 + ["slow-start"] * 2 + ["status-500"] * 2:
            await (await served.send_chat(name)).read()
        await served.records(10)  # after which they are counted
        yield served


async def since_the_start(page: Page) -> None:
    await page.get_by_role("combobox", name="Over").select_option(label="since start")


async def says(page: Page, state: str) -> None:
    await expect(page.get_by_role("status").first).to_have_text(state)


async def test_requests_of_all_processes_are_shown_by_expert_and_outcome(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/live") as page:
        await since_the_start(page)
        row = page.get_by_role("table", name="Experts").get_by_role("row")
        await expect(row.filter(has_text="good")).to_contain_text("60 %")
        await expect(row.filter(has_text="status-500")).to_contain_text("20 %")
        ended = page.get_by_role("table", name="Outcome").get_by_role("row")
        await expect(ended.filter(has_text="expert_unavailable")).to_contain_text("20 %")
        facts = page.get_by_role("region", name="Gateway")
        await expect(facts).to_contain_text("Workers 2")


async def test_pausing_by_button_or_space_stops_it_until_it_is_resumed(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/live") as page:
        await says(page, "Live")
        await page.get_by_role("button", name="Pause").click()
        await says(page, "Paused")
        before = await page.get_by_text("in total").text_content()
        await (await served.send_chat("good")).read()
        await page.get_by_role("heading", level=1).click()  # the focus is nowhere
        await page.keyboard.press("Space")
        await says(page, "Live")
        await expect(page.get_by_text("in total")).not_to_have_text(before or "")
        await page.keyboard.press("Space")
        await says(page, "Paused")


async def test_tiers_breakers_and_troubles_are_shown_where_there_are_any(browser: Browser, served: Served) -> None:
    async with served.client.get(f"{served.url}/metrics") as response:
        plain = await response.text()
    lines = [line for line in plain.splitlines() if not line.startswith("coe_breaker_state")]
    states = {"good": {"a:1": 3, "b:1": 0, "c:1": 3}, "silent": {"a:1": 3}}
    lines += [
        f'coe_breaker_state{{expert="{name}",replica="{replica}"}} {state}'
        for name, replicas in states.items()
        for replica, state in replicas.items()
    ]
    for name, tier in (("good", 1), ("silent", 2)):
        numbers = {"tier": tier, "waiting": 4, "switches": 7}
        lines += [f'coe_expert_{key}{{expert="{name}"}} {value}' for key, value in numbers.items()]
    pages = ["\n".join([*lines, 'coe_degraded{part="log"} 1.0', 'coe_degraded{part="reload"} 1.0'])]
    waits = {"tier": "stopped", "waiting": 4, "oldest_wait_s": 12.5, "reason": "waits for its turn"}
    server = waits | {
        "experts": ["good"],
        "memory_gb": 10,
        "in_flight": 0,
        "load_s": 20.0,
        "switches": 7,
    }
    device = {"device": "gpu0", "memory_gb": 76, "occupied_gb": 40, "host_memory_gb": 0}
    async with visiting(browser, f"{served.url}/ui/#/experts") as page:
        await page.route("**/metrics", lambda route: route.fulfill(body=pages[-1]))
        await page.route(
            "**/v1/residency", lambda route: route.fulfill(json={"devices": [device | {"servers": [server]}]})
        )
        await page.get_by_role("link", name="Live").click()
        row = page.get_by_role("table", name="Experts").get_by_role("row")
        await expect(row.filter(has_text="good")).to_contain_text("open 2 of 3")
        await expect(row.filter(has_text="good")).to_contain_text("asleep")
        await expect(row.filter(has_text="silent")).to_contain_text("switching")
        await expect(page.get_by_role("alert")).to_have_count(2)
        await expect(page.get_by_role("region", name="Device gpu0")).to_contain_text("40 of 76 GB")
        waiting = page.get_by_role("table", name="Servers on gpu0").get_by_role("row").filter(has_text="good")
        await expect(waiting).to_contain_text("12.5 s")
        await expect(waiting).to_contain_text("waits for its turn")
        await check_accessible(page)
        pages.append(plain)  # a reload has ended the sharing
        await expect(page.get_by_role("region", name="Device gpu0")).to_be_hidden()


async def test_quantiles_and_differences_are_right(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/live") as page:
        found = await page.evaluate(
            """async () => {
                const { quantile, increments, margins, failures } = await import("/ui/views/live/counters.js");
                const bounds = [0.1, 0.2, 0.4];
                return [
                    quantile(bounds, [0, 0, 0, 0], 0.5),
                    quantile(bounds, [4, 0, 0, 0], 0.5),
                    quantile(bounds, [2, 2, 4, 0], 0.75),
                    quantile(bounds, [0, 0, 0, 3], 0.5),
                    increments({ a: 3, b: 2, c: 1 }, { a: 1, b: 2 }),
                    margins({ code: { x: 2, y: 1 }, art: { x: 4 } }),
                    failures({ ok: 5, aborted: 2, expert_busy: 3, draining: 1 }),
                ];
            }"""
        )
    assert found == [
        None,
        pytest.approx(50),
        pytest.approx(300),
        pytest.approx(400),
        {"a": 2, "c": 1},
        {"categories": {"code": 3, "art": 4}, "experts": {"x": 6, "y": 1}},
        4,
    ]


async def test_spend_is_read_on_request_and_summed_by_key_expert_and_category(browser: Browser, served: Served) -> None:
    rows = {"key": ("shop", 4.0, 30), "expert": ("large", 3.0, 10), "category": ("code", 4.0, 30)}
    experts = [{"expert": f"large-{n}", "dollars": 9.0 - n / 2, "saved": 4.5 - n / 2} for n in range(12)]
    always = {"requests": 35, "dollars": 4.5, "experts": experts, "unknown": ["home"]}
    found = {by: [dict(zip(("name", "dollars", "requests"), row, strict=True))] for by, row in rows.items()}
    total = {"requests": 35, "unpriced": 0, "dollars": 4.5}
    spend = {"total": total, "always": always, "rows": found, "note": "the same tokens"}

    async def reply(route: Route) -> None:
        await route.fulfill(
            body=orjson.dumps(
                {"object": "report", "report": {"spend": spend, "value": {"verdict": "routing saved $4.50"}}}
            )
        )

    async with visiting(browser, f"{served.url}/ui/#/live") as page:
        await page.route("**/v1/report?days=30", reply)
        card = page.get_by_role("region", name="Spend")
        await card.get_by_role("combobox", name="Period").select_option(label="last 30 days")
        await card.get_by_role("button", name="Read the log").click()
        await expect(card.get_by_role("definition").first).to_have_text("$4.5")
        for table, first in (("API key", "shop$430"), ("Expert", "large$310"), ("Category", "code$430")):
            row = card.get_by_role("table", name=f"Dollars by {table}").locator("tbody tr")
            await expect(row.first).to_have_text(first)
        baselines = card.get_by_role("table", name="Dollars of always").locator("tbody tr")
        await expect(baselines.first).to_have_text("large-11$3.5−$1")
        await expect(baselines).to_have_count(10)
        await expect(card).to_contain_text("2 more expensive")
        await expect(card).to_contain_text("routing saved $4.50.")
        await expect(card).to_contain_text("of unknown cost: home")
        await check_accessible(page)
        await check_no_sideways_scroll(page)


# ------------------------------------------------------------------------------------------------- experts


async def test_a_card_shows_requests_of_all_processes_and_links_to_the_records(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts/status-500") as page:
        good = page.get_by_role("region", name="good", exact=True)
        await expect(good).to_contain_text("Requests")
        card = page.get_by_role("region", name="status-500")
        await expect(card).to_contain_text("Failed100 %")
        await card.get_by_role("link", name="Records of status-500").click()
        await expect(page.locator("table.records tbody tr")).to_have_count(2)


async def test_an_address_leads_to_its_card_however_far_down(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts", phone=True) as page:
        card = page.get_by_role("heading", name="floods", exact=True)
        await expect(card).to_be_attached()
        await expect(card).not_to_be_in_viewport()
        await page.evaluate("location.hash = '#/experts/floods'")
        await expect(card).to_be_in_viewport()
