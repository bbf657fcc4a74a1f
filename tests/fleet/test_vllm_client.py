"""VllmClient against a stand-in that answers as vLLM 0.32 does; tests/vllm uses the real server."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from coe.errors import FleetError
from coe.fleet.engines import VllmClient
from coe.fleet.probe import open_probe_session
from coe.fleet.specs import free_port

pytestmark = pytest.mark.anyio


async def test_a_server_that_does_not_fall_asleep_in_time_is_woken_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = list[str]()

    async def answer(request: web.Request) -> web.Response:
        requests.append(request.path_qs)
        if request.path == "/sleep":
            await asyncio.sleep(60)
        return web.json_response({})

    monkeypatch.setattr("coe.fleet.engines.SLEEP_TIMEOUT", 0.2)
    app, port = web.Application(), free_port()
    app.router.add_route("*", "/{path}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)  # one of its answers never comes
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with open_probe_session() as session:
            with pytest.raises(FleetError, match=r"/sleep\?level=1&mode=wait gave no answer within 0.2 s"):
                await VllmClient(f"http://127.0.0.1:{port}", session).sleep()
    finally:
        await runner.cleanup()
    assert requests == ["/sleep?level=1&mode=wait", "/wake_up"]
