"""The view of experts.yaml in a real browser: a mistake is shown at its line, a change as a diff, and saved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from playwright.async_api import Browser, Dialog, Route, expect
from ruamel.yaml import YAML

from tests.access.test_issued_keys import DECLARED
from tests.gateway.served import Served, serving
from tests.ui.browsing import (
    check_accessible,
    check_no_sideways_scroll,
    hold_requests,
    needs_browser,
    visiting,
    wait_until,
)
from tests.ui.test_keys import sign_in

pytestmark = [pytest.mark.anyio, needs_browser]


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), access={"keys": DECLARED}) as served:
        write_lines(served.folder / "experts.yaml", served)
        yield served


def write_lines(path: Path, served: Served) -> None:
    """The declaration as a person writes it, a key a line."""
    with path.open("w") as file:
        YAML().dump(orjson.loads(orjson.dumps(served.declared)), file)


@pytest.mark.parametrize(("phone", "dark"), [(False, False), (True, True)])
async def test_a_mistake_has_its_line_and_a_change_its_diff(
    browser: Browser, served: Served, phone: bool, dark: bool
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/config", phone=phone, dark=dark) as page:
        await sign_in(page)
        area = page.get_by_label("Text of experts.yaml")
        await expect(page.get_by_text("in use", exact=True)).to_be_visible()
        heights = "['.gutter', 'textarea'].map((one) => document.querySelector(one).getBoundingClientRect().height)"
        numbers, lines = await page.evaluate(heights)
        assert abs(numbers - lines) < 30  # a scroll bar at most
        text = await area.input_value()
        await area.fill(text.replace("  model: good\n", "  modell: good\n"))
        await page.get_by_role("button", name="Check").click()
        wrong = page.get_by_role("listitem").filter(has_text="did you mean 'model'?")
        line = text[: text.index("  model: good\n")].count("\n") + 1
        await expect(page.locator(".gutter .wrong").last).to_contain_text(str(line))
        await wrong.get_by_role("button").click()
        assert (
            await area.evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)") == "  modell: good"
        )
        value = 0.25 if phone else 0.5
        await area.fill(text.replace("  max_attempts: 1\n", f"  max_attempts: 1\n  cost_weight: {value}\n"))
        await page.get_by_role("button", name="Check").click()
        await expect(page.get_by_label("Changes")).to_contain_text(f"+  cost_weight: {value}")
        await check_no_sideways_scroll(page)
        await check_accessible(page)
        if not phone:
            await page.get_by_role("button", name="Save and reload").click()
            await expect(page.get_by_text("This gateway serves the new text.")).to_be_visible()
            assert f"cost_weight: {value}" in (served.folder / "experts.yaml").read_text()
            write_lines(served.folder / "experts.yaml", served)


async def test_the_result_of_a_check_is_not_shown_for_text_that_was_edited_meanwhile(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/config") as page:
        await sign_in(page)
        checks = await hold_requests(page, "**/v1/config/check")
        area, check = page.get_by_label("Text of experts.yaml"), page.get_by_role("button", name="Check")
        text = await area.input_value()
        await area.fill(f"{text}# one\n")
        await check.click()
        await checks.arrived.wait()
        await area.fill(f"{text}# two\n")
        await expect(check).to_be_disabled()
        checks.released.set()
        await expect(check).to_be_enabled()
        await expect(page.get_by_label("Changes")).to_have_count(0)
        await check.click()
        await expect(page.get_by_label("Changes")).to_contain_text("+# two")
        await page.get_by_role("button", name="Discard changes").click()


async def test_edited_text_survives_another_view_and_is_not_lost_without_a_question(
    browser: Browser, served: Served
) -> None:
    async with visiting(browser, f"{served.url}/ui/#/config") as page:
        await sign_in(page)
        area = page.get_by_label("Text of experts.yaml")
        text = await area.input_value()
        await area.press("Control+End")
        await area.press_sequentially("# edited")
        await page.get_by_role("link", name="Keys").click()
        await expect(page.get_by_role("heading", name="Keys")).to_be_visible()
        await page.get_by_role("link", name="experts.yaml").click()
        await expect(area).to_have_value(f"{text}# edited")
        await page.get_by_role("button", name="Check").click()
        await expect(page.get_by_label("Changes")).to_contain_text("+# edited")
        (served.folder / "experts.yaml").write_text(f"# changed meanwhile\n{text}")
        await wait_until(page, "async () => (await (await import('./api.js')).api.get('v1/config')).in_force")
        await page.get_by_role("link", name="Keys").click()
        await expect(page.get_by_role("heading", name="Keys")).to_be_visible()
        await page.get_by_role("link", name="experts.yaml").click()
        await page.get_by_role("button", name="Check").click()
        await expect(page.get_by_label("Changes")).to_contain_text("-# changed meanwhile")
        await page.get_by_role("button", name="Save and reload").click()
        await expect(page.get_by_role("status").locator("p.bad")).to_contain_text("changed")
        assert "edited" not in (served.folder / "experts.yaml").read_text()
        asked: list[str] = []

        async def leave(dialog: Dialog) -> None:
            asked.append(dialog.type)
            await dialog.accept()

        page.on("dialog", leave)
        await page.reload()
        await expect(area).to_have_value(f"# changed meanwhile\n{text}")
        await page.reload()
        assert asked == ["beforeunload"]
        write_lines(served.folder / "experts.yaml", served)


async def test_a_file_that_is_not_in_use_yet_is_loaded_until_it_is(browser: Browser, served: Served) -> None:
    in_use = asyncio.Event()

    async def serve(route: Route) -> None:
        response = await route.fetch()
        found = await response.json()
        if response.ok and not in_use.is_set():
            found |= {"in_force": False}
        await route.fulfill(response=response, json=found)

    async with visiting(browser, f"{served.url}/ui/#/config") as page:
        await page.route("**/v1/config", serve)
        await sign_in(page)
        await expect(page.get_by_text("being loaded", exact=True)).to_be_visible()
        in_use.set()
        await expect(page.get_by_text("in use", exact=True)).to_be_visible()


async def test_a_view_that_is_closed_while_the_file_loads_polls_no_more(browser: Browser, served: Served) -> None:
    loading, closed, loads = asyncio.Event(), asyncio.Event(), list[str]()

    async def serve(route: Route) -> None:
        if route.request.method == "PUT":
            await route.fulfill(json={})
            return
        loads.append(route.request.url)
        loading.set()
        await closed.wait()
        await route.fulfill(json=found | {"in_force": False})

    async with visiting(browser, f"{served.url}/ui/#/config") as page:
        async with page.expect_response(lambda one: one.url.endswith("/v1/config") and one.ok) as answer:
            await sign_in(page)
        found = await (await answer.value).json()
        area = page.get_by_label("Text of experts.yaml")
        await area.fill(found["text"].replace("  max_attempts: 1\n", "  max_attempts: 1\n  cost_weight: 0.75\n"))
        await page.get_by_role("button", name="Check").click()
        await expect(page.get_by_label("Changes")).to_be_visible()
        await expect(page.get_by_text("in use", exact=True)).to_be_visible()  # no load of the page's own is due
        await page.clock.install()
        await page.route("**/v1/config", serve)
        await page.get_by_role("button", name="Save and reload").click()
        await loading.wait()
        await page.get_by_role("link", name="Live").click()
        await page.get_by_role("heading", name="Live", exact=True).wait_for()
        async with page.expect_response("**/v1/config"):
            closed.set()
        await page.clock.run_for(5000)
        assert len(loads) == 1
