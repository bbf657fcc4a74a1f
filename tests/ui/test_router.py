"""The router's view: versions and their reports, moving them, and what was found in the traffic."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from playwright.async_api import Browser, Page, expect

from coe.artifacts.store import ArtifactStore
from coe.reports.report import report
from coe.settings import Settings
from tests.admin.samples import router_published
from tests.gateway.served import Served, serving
from tests.learning.test_report import logged, settings, traffic
from tests.ui.browsing import check_accessible, check_no_sideways_scroll, needs_browser, visiting

__all__ = ["settings"]
pytestmark = [pytest.mark.anyio, needs_browser]

HARM = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'> \"quoted\" 'too' \u202egnp.exe"
CATEGORIES = ("code", "art", "general")


def measured(accuracy: float) -> dict[str, object]:
    """As training tells it."""
    return {
        "examples": 300,
        "accuracy": accuracy,
        "accuracy_by_category": dict.fromkeys(CATEGORIES, accuracy),
        "escalated": 0.3,
        "ece": 0.02,
        "out_of_scope_auroc": 0.8,
        "confidence_threshold": 0.45,
        "rejected": 0.05,
        "rejected_out_of_scope": 0.3,
        "reliability": [
            {"count": 100, "confidence": 0.3, "accuracy": 0.4},
            {"count": 200, "confidence": 0.9, "accuracy": 0.9},
        ],
        "risk_coverage": [
            {"coverage": 0.5, "risk": 0.02, "confidence": 0.9},
            {"coverage": 1.0, "risk": 0.2, "confidence": 0.1},
        ],
        "confusion": {"categories": list(CATEGORIES), "counts": [[80, 15, 5], [10, 88, 2], [0, 0, 100]]},
    }


@dataclass(frozen=True)
class Shop:
    served: Served
    settings: Settings
    old: str
    new: str
    foreign: str

    def url(self, rest: str = "") -> str:
        return f"{self.served.url}/ui/#/router{rest}"

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.settings.artifacts, "router")


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    settings = Settings.read({}, config=folder / "experts.yaml")
    old = router_published(settings, "old", metrics=measured(0.8))
    new = router_published(settings, "new", metrics=measured(0.9))
    foreign = router_published(settings, "foreign", categories=("law",))
    store = ArtifactStore(settings.artifacts, "router")
    store.promote(new, by="train", why="trained on 300 prompts")
    gates = ArtifactStore(settings.artifacts, "gate")
    with gates.draft() as draft:
        (draft / "gate.npz").touch()
        gate = gates.publish(draft, categories=CATEGORIES, data="", metrics={}).manifest.version
    gates.promote(gate, by="retrain")
    async with serving(folder) as served:
        yield Shop(served, settings, old, new, foreign)


async def move(page: Page, button: str, why: str) -> None:
    await page.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("Reason")).to_be_focused()
    await expect(dialog.get_by_label("Reason")).to_have_value("")
    await page.keyboard.type(why)
    await page.keyboard.press("Enter")


@pytest.mark.parametrize("phone", [False, True])
async def test_two_versions_side_by_side_fit_and_are_accessible(browser: Browser, shop: Shop, phone: bool) -> None:
    async with visiting(browser, shop.url(f"/router/{shop.new}?with={shop.old}"), phone=phone, dark=phone) as page:
        metrics = page.get_by_role("table", name="Training metrics")
        await expect(metrics.get_by_role("row", name="Accuracy of held-out")).to_contain_text("90.0 %80.0 %+10.0 %")
        await expect(page.locator("coe-chart canvas")).to_have_count(2)
        cell = page.get_by_role("button", name="15 of 100 prompts of code were predicted as art")
        await cell.focus()
        await expect(page.locator(".heat-description")).to_contain_text("(15 %)")
        await check_no_sideways_scroll(page)
        await check_accessible(page)


async def test_a_version_is_promoted_with_a_reason_and_rolled_back(browser: Browser, shop: Shop) -> None:
    was = shop.store.in_use()
    to = shop.old if was == shop.new else shop.new
    async with visiting(browser, shop.url()) as page:
        await page.get_by_role("button", name=f"Promote {to}").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog.locator("dd")).to_have_text([str(was), to])
        await check_accessible(page)
        await page.keyboard.press("Enter")  # nothing said why
        await expect(dialog).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        assert shop.store.in_use() == was
        await move(page, f"Promote {to}", HARM)
        await expect(page.get_by_text(f"Router in use: {to}. The gateway serves it.")).to_be_visible()
        assert (shop.store.in_use(), shop.store.history()[-1].why) == (to, HARM)
        await page.get_by_text("History (").click()
        await expect(page.get_by_role("cell", name="<script>window.harmed = 1</script>").first).to_be_visible()
        assert await page.evaluate("window.harmed") is None
        await move(page, f"Roll back to {was}", "it was worse")
        await expect(page.get_by_text(f"Router in use: {was}. The gateway serves it.")).to_be_visible()
        assert shop.store.history()[-1].by == "rollback"


@pytest.fixture
def found(settings: Settings) -> dict[str, Any]:
    """Result of `GET /v1/report` for traffic that has shifted; the served gateway has no router for `coe report`."""
    now = time.time()
    logged(settings, traffic(600, start=now - 3 * 86_400, expert="coder"))
    logged(settings, traffic(600, start=now - 7_200, expert="coder", uncertain_share=0.4))
    made = orjson.loads(orjson.dumps(report(settings, now=now)))
    return {"object": "report", "time": now, "report": made}


async def test_findings_in_the_traffic_are_shown(browser: Browser, shop: Shop, found: dict[str, Any]) -> None:
    async with visiting(browser, shop.url()) as page:
        await page.route("**/v1/report", lambda route: route.fulfill(json=found))
        await page.get_by_role("button", name="Refresh").click()
        await expect(page.get_by_text("coder answered 100% of the last 600 requests")).to_be_visible()
        await expect(page.get_by_text("category mix has shifted")).to_be_visible()
        await expect(page.locator("coe-chart canvas")).to_have_count(4)
        await check_accessible(page)
        await check_no_sideways_scroll(page)
