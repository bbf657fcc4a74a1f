"""The gateway in front of experts that share a device: real processes on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.fleet.residency.residency import Residency
from tests.fleet.fake_fleet import Fakes
from tests.gateway.served import Served, chat, serving
from tests.residency.shared_device import SharedDevice

pytestmark = pytest.mark.anyio


def expert(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": name, "runtime": "transformers", "memory_gb": 10, **more}


@asynccontextmanager
async def turning(fakes: Fakes, tmp_path: Path, **more: Any) -> AsyncIterator[tuple[Residency, Served]]:
    device = SharedDevice(fakes, {"a": "ok", "b": "ok"})
    async with device.open() as (residency, address):
        environ = {
            "COE_ENDPOINTS": orjson.dumps({name: asdict(one) for name, one in device.endpoints.items()}).decode(),
            "COE_RESIDENCY_SOCKET": str(address),
        }
        folder = tmp_path / "gateway"
        folder.mkdir()
        declared: dict[str, Any] = {
            "experts": [expert("a"), expert("b", **more)],
            "assignment": {"general": "a", "code": "b"},
            "policy": {},
            "residency": {"devices": [{"name": "d", "memory_gb": 10}], "max_wait": 0.2, "wait_timeout": 20.0},
        }
        async with serving(folder, environ=environ, **declared) as served:
            yield residency, served


async def test_a_pinned_request_waits_until_its_expert_is_awake_and_a_stand_in_answers_a_routed_one(
    fakes: Fakes, tmp_path: Path
) -> None:
    async with turning(fakes, tmp_path, stand_in="a") as (residency, served):
        for name in ("b", "a", "b"):
            async with served.send_chat(name) as response:
                assert response.status == 200, await response.text()
                assert response.headers["x-coe-expert"] == name
        assert residency.tiers()["b"]["switches"] == 2
        assert await served.metric("coe_expert_switches") == 3
        assert await served.metric("coe_expert_tier") == 3
        assert await served.metric("coe_residency_wait_seconds_count") == 3
        async with served.client.get(f"{served.url}/v1/residency") as response:
            (device,) = (await response.json())["devices"]
        assert [one["tier"] for one in device["servers"]] == ["stopped", "awake"]
        assert [one["reason"] for one in device["servers"]] == ["", ""]
        async with served.send_chat("a") as response:
            assert response.status == 200
        body = chat("auto", text="code code code")
        async with served.client.post(f"{served.url}/v1/chat/completions", json=body) as response:
            assert response.headers["x-coe-expert"] == "a"
        async with asyncio.timeout(60):
            while residency.tiers()["b"]["tier"] != "awake":
                await asyncio.sleep(0.01)
