"""The page's frame: its files, its policy, keys, and what it shows without the right scope."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from gateway.ui import ASSETS, POLICY
from tests.fakes import gateway_of
from tests.gateway.served import Served, serving
from tests.ui.browsing import check_accessible, check_no_sideways_scroll, needs_browser, visiting

pytestmark = pytest.mark.anyio
WEIGHT = 400 * 1024
"""Bytes that the page may have, compressed."""
ADMIN, READER = "admin-key", "reader-key"


def key(name: str, secret: str, *scopes: str) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "scopes": list(scopes)}


ACCESS = {"keys": [key("admin", ADMIN, "admin", "chat", "route", "feedback"), key("reader", READER, "chat")]}


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), access=ACCESS) as served:
        yield served


async def test_files_come_compressed_under_a_strict_policy_and_once() -> None:
    async with gateway_of() as gateway:
        assert (await gateway.post("/ui", method="GET")).headers["location"] == "ui/"
        page = await gateway.post("/ui/", method="GET", headers={"accept-encoding": "gzip"})
        assert page.headers["content-security-policy"] == POLICY
        assert b"<!doctype html>" in gzip.decompress(page.body)
        again = await gateway.post("/ui/", method="GET", headers={"if-none-match": page.headers["etag"]})
        assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["nothing.js", "../pages.py", "%2e%2e/pages.py", "vendor", "vendor/versions.json"])
async def test_nothing_but_the_pages_files_is_served(path: str) -> None:
    async with gateway_of() as gateway:
        assert (await gateway.post(f"/ui/{path}", method="GET")).status == 404


def test_the_page_weighs_little() -> None:
    files = [path for path in ASSETS.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")]
    assert (ASSETS / "vendor" / "lit-html.js") in files, "run scripts/vendor.py"
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) <= WEIGHT


@needs_browser
async def test_a_key_is_requested_stored_for_the_tab_and_forgotten(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/") as page:
        asked = page.get_by_label("API key")
        await expect(asked).to_be_focused()
        await check_accessible(page)
        await asked.fill("not-a-key")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("The key was not accepted.")
        await asked.fill(ADMIN)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("navigation")).to_be_visible()
        await expect(asked).to_be_hidden()
        await page.reload()
        await expect(page.get_by_role("heading", level=1)).to_be_visible()
        await expect(asked).to_be_hidden()
        await page.get_by_role("button", name="Forget key").click()
        await expect(asked).to_be_visible()


@needs_browser
async def test_a_request_of_before_the_key_that_is_refused_after_it_does_not_require_it_again(
    browser: Browser, served: Served
) -> None:
    signed_in = asyncio.Event()

    async def serve(route: Route) -> None:
        if "authorization" not in route.request.headers:
            await signed_in.wait()
        await route.continue_()

    async with visiting(browser, f"{served.url}/ui/#/playground") as page:
        await page.route("**/v1/recipes", serve)
        await page.reload()
        asked = page.get_by_label("API key")
        await asked.fill(ADMIN)
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Send a message.")).to_be_visible()
        async with page.expect_response("**/v1/recipes") as refused:
            signed_in.set()
        assert (await refused.value).status == 401
        await (await refused.value).finished()
        await page.evaluate("new Promise((done) => setTimeout(done))")  # the page has read the response
        await expect(asked).to_be_hidden()


@needs_browser
async def test_on_a_phone_the_link_of_the_open_view_is_in_sight(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts", phone=True) as page:
        await expect(page.get_by_role("link", name="Experts", exact=True)).to_be_in_viewport(ratio=1)
        await page.evaluate("location.hash = '#/playground'")
        await expect(page.get_by_role("link", name="Playground")).to_be_in_viewport(ratio=1)


@needs_browser
async def test_a_key_without_the_scope_gets_an_explanation(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts") as page:
        await page.get_by_label("API key").fill(READER)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Permission denied")).to_be_visible()
        await check_accessible(page)


@needs_browser
@pytest.mark.parametrize("phone", [False, True])
@pytest.mark.parametrize("dark", [False, True])
async def test_the_frame_fits_and_is_accessible(browser: Browser, tmp_path: Path, phone: bool, dark: bool) -> None:
    async with (
        serving(tmp_path) as served,
        visiting(browser, f"{served.url}/ui/#/experts", phone=phone, dark=dark) as page,
    ):
        await expect(page.get_by_role("heading", name="good", exact=True)).to_be_visible()
        await check_no_sideways_scroll(page)
        await check_accessible(page)
