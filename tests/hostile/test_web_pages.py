"""Web pages of another site in a real Chromium, against a real gateway on loopback."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page

from coe.artifacts.store import ArtifactStore
from coe.settings import Settings
from tests.admin.samples import router_published
from tests.gateway.served import Served, serving
from tests.ui.browsing import browsing, needs_browser

pytestmark = [pytest.mark.anyio, needs_browser]

SWITCHES = (
    "--host-resolver-rules=MAP *.example 127.0.0.1",
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",  # other browsers have none
)
ATTACK = """async ([url, method, type, body]) => {
  const options = { method, mode: "no-cors" };
  if (body !== null) options.body = type === null ? new Blob([body]) : new Blob([body], { type });
  try { return (await fetch(url, options)).type } catch (error) { return String(error) }
}"""
READ = """async ([url, options]) => {
  try {
    const response = await fetch(url, options);
    const headers = Object.fromEntries(response.headers);
    return { status: response.status, headers, text: await response.text() };
  } catch (error) { return { failed: String(error) } }
}"""
CHAT = '{"model": "good", "messages": [{"role": "user", "content": "hi"}]}'
STREAM = CHAT[:-1] + ', "stream": true}'
SDK = {  # as OpenAI's client for browsers sends them
    "authorization": "Bearer none",
    "content-type": "application/json",
    "x-stainless-arch": "unknown",
    "x-stainless-lang": "js",
    "x-stainless-os": "Unknown",
    "x-stainless-package-version": "6.1.0",
    "x-stainless-retry-count": "0",
    "x-stainless-runtime": "browser:chrome",
    "x-stainless-runtime-version": "150.0.0",
    "x-stainless-timeout": "600",
}


@dataclass(frozen=True)
class Scene:
    """A gateway whose router can be rolled back, and the ports of two other sites' pages."""

    served: Served
    store: ArtifactStore
    pages: int

    @property
    def app(self) -> str:
        return f"http://app.example:{self.pages}"

    @property
    def evil(self) -> str:
        return f"http://evil.example:{self.pages}"

    async def refused(self) -> float:
        return await self.served.metric("coe_refused_total")


@asynccontextmanager
async def page_server() -> AsyncIterator[int]:
    """Serves an empty page under every host name."""

    async def empty(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>a page</title>", content_type="text/html")

    site = web.Application()
    site.router.add_get("/", empty)
    runner = web.AppRunner(site, shutdown_timeout=0)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        try:
            yield listener.getsockname()[1]
        finally:
            await runner.cleanup()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with browsing(*SWITCHES) as browser:
        yield browser


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    settings = Settings.read({}, config=folder / "experts.yaml")
    old, new = router_published(settings, "old"), router_published(settings, "new")
    store = ArtifactStore(settings.artifacts, "router")
    store.promote(old)
    store.promote(new)
    async with page_server() as pages:
        access = {"allowed_origins": [f"http://app.example:{pages}"]}
        async with serving(folder, access=access) as served:
            yield Scene(served, store, pages)


@asynccontextmanager
async def visiting(browser: Browser, url: str) -> AsyncIterator[Page]:
    context = await browser.new_context()
    try:
        page = await context.new_page()
        await page.goto(url)
        yield page
    finally:
        await context.close()


async def test_a_foreign_page_neither_rolls_back_the_router_nor_spends_at_an_expert(
    browser: Browser, scene: Scene
) -> None:
    before, in_use, seen = await scene.refused(), scene.store.in_use(), len(scene.served.upstream.seen)
    attacks: list[tuple[str, str, str | None]] = [
        ("/v1/artifacts/router/rollback", "POST", '{"why": "harm"}'),
        ("/v1/chat/completions", "POST", CHAT),
        ("/metrics", "GET", None),
    ]
    async with visiting(browser, scene.evil) as page:
        for address, media_type in (("127.0.0.1", None), ("localhost", "text/plain")):
            for path, method, body in attacks:
                await page.evaluate(ATTACK, [f"http://{address}:{scene.served.port}{path}", method, media_type, body])
    assert scene.store.in_use() == in_use
    assert len(scene.served.upstream.seen) == seen
    assert await scene.refused() == before + 2 * len(attacks)


async def test_a_foreign_page_reads_nothing_and_its_form_does_nothing(browser: Browser, scene: Scene) -> None:
    async with visiting(browser, scene.evil) as page:
        for url in ("/v1/models", "/metrics", "/openapi.json", "/health/live"):
            found = await page.evaluate(READ, [scene.served.url + url, {}])
            assert set(found) == {"failed"}, found
        posted = await page.evaluate(
            READ, [f"{scene.served.url}/v1/chat/completions", {"method": "POST", "body": CHAT, "headers": SDK}]
        )
        assert set(posted) == {"failed"}
        form = f"""<form id=f method=post enctype=text/plain action="{scene.served.url}/v1/artifacts/router/rollback">
            <input name='{{"why": "' value='"}}'></form>"""
        await page.set_content(form)
        async with page.expect_navigation() as navigation:
            await page.evaluate("document.getElementById('f').submit()")
        response = await navigation.value
        assert response is not None
        assert response.status == 403


async def test_a_name_that_is_rebound_to_loopback_gets_nothing(browser: Browser, scene: Scene) -> None:
    """To the browser the attacker's page and the gateway are one origin: no CORS rule protects."""
    rebound = f"http://rebound.example:{scene.served.port}"
    seen = len(scene.served.upstream.seen)
    async with visiting(browser, rebound) as page:
        for path, options in (
            ("/v1/models", {}),
            ("/v1/chat/completions", {"method": "POST", "body": CHAT, "headers": SDK}),
            ("/v1/artifacts/router/rollback", {"method": "POST", "body": '{"why": "harm"}', "headers": SDK}),
        ):
            found: Any = await page.evaluate(READ, [rebound + path, options])
            assert found["status"] == 421, found
            assert "access.allowed_hosts" in found["text"]
    assert len(scene.served.upstream.seen) == seen
