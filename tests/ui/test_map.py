"""The map's view of a plan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from coe.registry import Registry, load
from coe.settings import Settings
from tests.admin.samples import measured_registry, planned
from tests.gateway.served import Served, serving
from tests.ui.browsing import needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]


def declared(**changes: Any) -> dict[str, Any]:
    """For `serving`: experts of known sizes, one category pinned."""
    found = measured_registry(**changes).model_dump(mode="json", exclude_none=True)
    return {name: found[name] for name in ("experts", "assignment", "budget")}


@dataclass(frozen=True)
class Planned:
    served: Served
    settings: Settings
    registry: Registry
    version: str

    @property
    def url(self) -> str:
        return f"{self.served.url}/ui/#/map"


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Planned]:
    folder = tmp_path_factory.mktemp("planned")
    async with serving(folder, **declared(budget={"mean_active_b": 15})) as served:
        settings = Settings.read({}, config=folder / "experts.yaml")
        registry = load(settings.config, environ={})
        version, _ = planned(settings, registry)
        await taken_over(served, version)
        yield Planned(served, settings, registry, version)


async def taken_over(served: Served, version: str) -> None:
    async with asyncio.timeout(60):
        while True:
            async with served.client.get(f"{served.url}/v1/map") as answer:
                if (await answer.json())["version"] == version:
                    return
            await asyncio.sleep(0.05)


async def shown(page: Page) -> None:
    await expect(page.get_by_role("heading", name="Value of each expert")).to_be_visible()


async def test_cells_are_described_in_words_and_reached_by_arrow_keys(browser: Browser, service: Planned) -> None:
    async with visiting(browser, service.url) as page:
        await shown(page)
        first = page.get_by_role("button", name="code, coder:")
        await first.focus()
        description = page.locator(".heat-description")
        await expect(description).to_contain_text("of 80 scores")
        await expect(description).to_contain_text("Used by the plan: ")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_role("button", name="art, painter:")).to_be_focused()
        await expect(description).to_contain_text("of 40 scores")
        await page.keyboard.press("End")
        await page.keyboard.press("ArrowDown")
        await expect(page.get_by_role("button", name="general, generalist:")).to_be_focused()
        await expect(page.locator(".heat .cell[tabindex='0']")).to_have_count(1)
        await page.get_by_role("button", name="general, coder:").hover()
        await expect(description).to_contain_text("experts.yaml pins the category to generalist")


async def test_differences_of_experts_yaml_from_the_plan_are_listed(browser: Browser, service: Planned) -> None:
    async with service.served.client.get(f"{service.served.url}/v1/map") as answer:
        found = await answer.json()
    sentence = "expert 'newcomer' is not in the plan"
    found["consequences"] = [{"kind": "expert_added", "name": "newcomer", "sentence": sentence, "replan": True}]
    async with visiting(browser, f"{service.served.url}/ui/#/live") as page:
        await page.route("**/v1/map", lambda route: route.fulfill(json=found))
        await page.get_by_role("link", name="Map").click()
        await expect(page.get_by_role("heading", name="experts.yaml differs from the plan")).to_be_visible()
        await expect(page.get_by_text(sentence)).to_be_visible()
