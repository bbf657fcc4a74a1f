"""`/v1/experts` and `/v1/recipes`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio


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


async def test_each_expert_has_its_state_and_assigned_categories() -> None:
    async with gateway_of() as gateway:
        answer = await gateway.post("/v1/experts", method="GET")
        found = {expert["id"]: expert for expert in answer.json["data"]}
    assert list(found) == ["coder", "painter", "generalist"]
    assert [row["category"] for row in found["coder"]["assigned_categories"]] == ["code"]
    assert (found["coder"]["up"], found["coder"]["system_prompt"]) == (True, False)
    assert "api_key" not in found["coder"]
