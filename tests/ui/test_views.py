"""Every view fits and is accessible: on a phone, with names as long as those of real models, and in the dark."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from coe.registry import load
from coe.settings import Settings
from tests.admin.samples import SCORES, SIZES, planned
from tests.gateway.served import Served, chat, serving
from tests.ui.browsing import check_accessible, check_no_broken_words, check_no_sideways_scroll, needs_browser, visiting
from tests.ui.test_map import declared, taken_over

pytestmark = [pytest.mark.anyio, needs_browser]

NAMES = {"coder": "deepseek-coder-v2-lite", "painter": "llama-3.3-70b-versatile", "generalist": "phi-4-mini-reasoning"}


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("phone")
    with pytest.MonkeyPatch.context() as patched:
        for old, new in NAMES.items():
            patched.setitem(SIZES, new, SIZES[old])
            patched.setitem(SCORES, new, SCORES[old])
            patched.delitem(SIZES, old)
        names = {"assignment": {"general": NAMES["generalist"]}}
        async with serving(folder, **declared(**names, budget={"mean_active_b": 15})) as served:
            settings = Settings.read({}, config=folder / "experts.yaml")
            version, _ = planned(settings, load(settings.config, environ={}))
            await taken_over(served, version)
            for name in NAMES.values():
                async with served.client.post(f"{served.url}/v1/chat/completions", json=chat(name)) as answer:
                    await answer.read()
            await served.records(len(NAMES))
            yield served


TEXTS = dict.fromkeys(("playground", "live", "log", "map", "experts"), NAMES["coder"])
TEXTS |= {"router": "on probes", "keys": "Issue a key"}


@pytest.mark.parametrize("view", TEXTS)
@pytest.mark.parametrize("phone", [False, True])
async def test_a_view_fits_and_is_accessible(browser: Browser, served: Served, view: str, phone: bool) -> None:
    async with visiting(browser, f"{served.url}/ui/#/{view}", phone=phone, dark=not phone) as page:
        await expect(page.get_by_text(TEXTS[view]).first).to_be_attached()
        await check_no_sideways_scroll(page)
        await check_accessible(page)
        if phone:
            await check_no_broken_words(page)
