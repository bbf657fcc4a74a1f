"""VllmClient against a stand-in that answers as vLLM 0.32 does; tests/vllm uses the real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from coe.errors import FleetError
from coe.fleet.engines.vllm import VllmClient
from coe.fleet.probe import open_probe_session
from coe.fleet.specs import free_port

pytestmark = pytest.mark.anyio


class StandIn:
    """Records requests; does not sleep if `insomniac`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, object]] = []
        self.asleep = False
        self.insomniac = False
        self.adapters: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.path_qs, body))
        if request.path == "/sleep":
            if self.insomniac:
                await asyncio.sleep(60)
            self.asleep = True
        elif request.path == "/wake_up":
            self.asleep = request.query_string == "tags=weights"
        elif request.path == "/v1/load_lora_adapter":
            return self.load(body)
        elif request.path == "/v1/unload_lora_adapter" and self.adapters.pop(body["lora_name"], None) is None:
            return refusal(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return web.json_response({})

    def load(self, body: dict[str, str]) -> web.Response:
        if body["lora_path"] == "/nowhere":
            return refusal(404, "Loading lora a failed: No adapter found for /nowhere")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


@asynccontextmanager
async def standing_in() -> AsyncIterator[tuple[StandIn, VllmClient]]:
    server, app, port = StandIn(), web.Application(), free_port()
    for path in ("/sleep", "/wake_up", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        app.router.add_route("*", path, server.answer)
    app.router.add_post("/collective_rpc", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)  # one of its answers never comes
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with open_probe_session() as session:
            yield server, VllmClient(f"http://127.0.0.1:{port}", session)
    finally:
        await runner.cleanup()


async def test_a_server_sleeps_and_wakes() -> None:
    async with standing_in() as (server, vllm):
        await vllm.sleep()
        assert server.asleep
        await vllm.wake()
        assert not server.asleep
        assert server.requests[0] == ("/sleep?level=1&mode=wait", None), "work in flight ends first"


async def test_after_level_two_the_weights_are_reloaded_before_the_server_wakes() -> None:
    async with standing_in() as (server, vllm):
        await vllm.sleep(level=2)
        server.requests.clear()
        await vllm.wake(level=2)
        assert [path for path, _ in server.requests] == [
            "/wake_up?tags=weights",
            "/collective_rpc",
            "/wake_up?tags=kv_cache",
        ]


async def test_a_server_that_does_not_fall_asleep_in_time_is_woken_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coe.fleet.engines.vllm.SLEEP_TIMEOUT", 0.2)
    async with standing_in() as (server, vllm):
        server.insomniac = True
        with pytest.raises(FleetError, match=r"/sleep\?level=1&mode=wait gave no answer within 0.2 s"):
            await vllm.sleep()
        assert server.requests[-1][0] == "/wake_up"


async def test_adapters_are_loaded_and_unloaded_repeatedly(tmp_path: Path) -> None:
    async with standing_in() as (server, vllm):
        for _ in range(2):
            await vllm.load_adapter("poet", tmp_path)
        assert server.adapters == {"poet": str(tmp_path)}
        for _ in range(2):
            await vllm.unload_adapter("poet")
        assert not server.adapters


async def test_a_refusal_keeps_the_servers_message() -> None:
    async with standing_in() as (_, vllm):
        with pytest.raises(FleetError, match="answered 404: Loading lora a failed: No adapter found for /nowhere"):
            await vllm.load_adapter("a", Path("/nowhere"))


async def test_a_missing_server_is_an_error_at_once() -> None:
    async with open_probe_session() as session:
        with pytest.raises(FleetError, match="cannot be reached"):
            await VllmClient(f"http://127.0.0.1:{free_port()}", session).sleep()
