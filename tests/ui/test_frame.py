"""The page's frame: its files, its policy, keys, and what it shows without the right scope."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from gateway.ui import ASSETS, POLICY
from tests.fakes import gateway_of
from tests.gateway.served import Served, serving
from tests.ui.browsing import check_accessible, needs_browser, visiting
from tests.ui.playground import send_prompt, wait_until_answered

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


@pytest.mark.parametrize("path", ["nothing.js", "../__init__.py", "%2e%2e/__init__.py", "vendor"])
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
        await send_prompt(page, "a secret of code")
        await wait_until_answered(page)
        await page.get_by_role("button", name="Forget key").click()
        await expect(asked).to_be_visible()
        assert "secret" not in await page.evaluate("JSON.stringify([{ ...sessionStorage }, { ...localStorage }])")


@needs_browser
async def test_a_key_without_the_scope_gets_an_explanation(browser: Browser, served: Served) -> None:
    async with visiting(browser, f"{served.url}/ui/#/experts") as page:
        await page.get_by_label("API key").fill(READER)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Permission denied")).to_be_visible()
        await check_accessible(page)
