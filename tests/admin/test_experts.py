"""`/v1/experts` and `/v1/recipes`."""

from __future__ import annotations

from typing import Any

import pytest

from coe.errors import ExpertUnavailable
from tests.fakes import Gateway, gateway_of, registry_of

pytestmark = pytest.mark.anyio


async def listed(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.post("/v1/experts", method="GET")
    return {expert["id"]: expert for expert in answer.json["data"]}


async def test_recipes_are_listed_with_their_members() -> None:
    recipes: list[dict[str, Any]] = [
        {"name": "careful", "cascade": [["coder", "painter"], "generalist"]},
        {"name": "panel", "vote": ["coder", "painter"]},
    ]
    async with gateway_of(registry_of(recipes=recipes)) as gateway:
        careful, panel = (await gateway.post("/v1/recipes", method="GET")).json["data"]
    assert (careful["id"], careful["steps"]) == ("careful", [["coder", "painter"], ["generalist"]])
    assert panel["steps"] == [["coder", "painter"]]
    async with gateway_of() as gateway:
        assert (await gateway.post("/v1/recipes", method="GET")).json["data"] == []


async def test_each_expert_has_its_numbers_and_assigned_categories() -> None:
    async with gateway_of(painter=ExpertUnavailable("gone", expert="painter")) as gateway:
        await gateway.chat("code")
        await gateway.chat("art")
        await gateway.chat("art", model="painter")
        found = await listed(gateway)
    assert list(found) == ["coder", "painter", "generalist"]
    assert (found["coder"]["requests"], found["coder"]["failed"]) == (1, 0)
    assert (found["painter"]["requests"], found["painter"]["failed"], found["painter"]["fallbacks"]) == (1, 1, 1)
    assert [row["category"] for row in found["coder"]["assigned_categories"]] == ["code"]
    assert found["coder"]["system_prompt"] is False
    assert "api_key" not in found["coder"]
