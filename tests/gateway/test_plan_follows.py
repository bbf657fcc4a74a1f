"""A running gateway, and its next start, go on with the plan when experts.yaml is edited."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coe.registry import load
from coe.settings import Settings
from tests.admin.samples import measured_registry, planned
from tests.gateway.served import Served, serving

pytestmark = pytest.mark.anyio

SOON = 60.0
"""Time limit of waiting for a reload, in seconds."""


def declared(upstream: str, *names: str, **changes: Any) -> dict[str, Any]:
    found = measured_registry().model_dump(mode="json", exclude_none=True)
    experts = [{**one, "base_url": upstream, "model": "good"} for one in found["experts"]]
    experts += [{**experts[0], "name": name} for name in names]
    return {"experts": experts, "assignment": {"general": "generalist"}} | changes


async def mapped(served: Served, *experts: str) -> dict[str, Any]:
    """Wait until the gateway serves with these experts, and return the map."""
    async with asyncio.timeout(SOON):
        while True:
            async with served.client.get(f"{served.url}/v1/map") as answer:
                found: dict[str, Any] = await answer.json()
            if tuple(found["experts"]) == experts and found["version"]:
                return found
            await asyncio.sleep(0.05)


async def test_experts_come_and_go_under_a_plan_without_a_failed_reload_or_start(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.declare(**declared(served.upstream.url))
        settings = Settings.read({}, config=tmp_path / "experts.yaml")
        version, _ = planned(settings, load(settings.config, environ={}))
        first = await mapped(served, "coder", "painter", "generalist")
        assert first["consequences"] == []
        served.declare(**declared(served.upstream.url, "newcomer"))
        second = await mapped(served, "coder", "painter", "generalist", "newcomer")
        assert second["version"] == version
        assert [one["kind"] for one in second["consequences"]] == ["expert_added"]
        assert [row[3] for row in second["measured"]["estimate"]] == [None, None, None]
        async with served.send_chat("newcomer") as response:
            assert (response.status, response.headers["x-coe-expert"]) == (200, "newcomer")
        fewer = declared(served.upstream.url)
        gone = [one for one in fewer["experts"] if one["name"] != "painter"]
        served.declare(**fewer | {"experts": gone})
        third = await mapped(served, "coder", "generalist")
        assert {row["category"]: row["expert"] for row in third["assignment"]}["art"] == "generalist"
        assert (await served.ready())["reload_error"] is False
        await served.kill()
        await served.start()
        again = await mapped(served, "coder", "generalist")
        assert (again["version"], again["assignment"]) == (version, third["assignment"])
