"""`/v1/stats`: sums over all workers."""

from __future__ import annotations

from typing import Any

import pytest

from coe.errors import ExpertUnavailable
from tests.fakes import Gateway, gateway_of

pytestmark = pytest.mark.anyio


async def stats_of(gateway: Gateway) -> Any:
    response = await gateway.post("/v1/stats", method="GET")
    assert response.status == 200
    return response.json


async def test_requests_are_counted_by_category_expert_outcome_and_reason() -> None:
    failing = ExpertUnavailable("gone", expert="painter")
    async with gateway_of(painter=failing) as gateway:
        for text in ("some code", "some code", "some art", "general words"):
            await gateway.chat(text)
        await gateway.chat("art", model="painter")
        await gateway.chat("art", model="nobody")
        found = await stats_of(gateway)
    requests, experts = found["requests"], {expert["id"]: expert for expert in found["experts"]}
    assert found["categories"] == ["code", "art", "general"]
    assert requests["total"] == 6
    assert requests["flows"]["code"] == {"coder": 2}
    assert sum(count for row in requests["flows"].values() for count in row.values()) == 5
    assert (requests["reasons"]["fallback"], requests["reasons"]["pinned"]) == (1, 1)
    assert requests["outcomes"] == {"ok": 4, "expert_unavailable": 1, "model_not_found": 1}
    assert experts["painter"]["fallbacks"] == 1
    assert experts["painter"]["outcomes"] == {"expert_unavailable": 1}
    assert experts["coder"]["tokens"] == {"input": 6, "output": 10}
    assert sum(experts["coder"]["first_byte"]) == 2
    assert sum(found["routing"]["counts"]) == 5
    assert len(found["routing"]["counts"]) == len(found["routing"]["bounds"]) + 1
    assert [worker["worker"] for worker in found["workers"]] == [0]
