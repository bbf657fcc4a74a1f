"""The map under an experts.yaml that differs from the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from coe.registry import load
from coe.settings import Settings
from tests.admin.samples import planned
from tests.gateway.served import serving
from tests.gateway.test_plan_follows import declared, mapped
from tests.ui.browsing import check_accessible, needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]


async def test_a_new_expert_has_empty_cells_and_the_consequences_are_listed(browser: Browser, tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.declare(**declared(served.upstream.url))
        settings = Settings.read({}, config=tmp_path / "experts.yaml")
        planned(settings, load(settings.config, environ={}))
        await mapped(served, "coder", "painter", "generalist")
        served.declare(**declared(served.upstream.url, "newcomer"))
        await mapped(served, "coder", "painter", "generalist", "newcomer")
        async with visiting(browser, f"{served.url}/ui/#/map") as page:
            await expect(page.get_by_role("heading", name="experts.yaml differs from the plan")).to_be_visible()
            await expect(page.get_by_text("expert 'newcomer' is not in the plan")).to_be_visible()
            cell = page.get_by_role("button", name="code, newcomer: not in the plan. Score it and plan again.")
            await expect(cell).to_have_text("–")
            await expect(page.get_by_role("row", name="newcomer not in the plan –")).to_be_visible()
            await check_accessible(page)
