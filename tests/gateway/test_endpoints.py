"""The endpoints beside chat."""

from dataclasses import replace

import orjson
import pytest

from gateway.dialects.chat import CHAT
from tests.fakes import Response, gateway_of

pytestmark = pytest.mark.anyio


async def test_route_returns_the_decision_and_calls_no_expert() -> None:
    async with gateway_of() as gateway:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        decision = (await gateway.post("/v1/route", body)).json
        wrong = await gateway.post("/v1/route", b"{")
        assert not gateway.experts["coder"].calls
    assert decision["expert"] == "coder"
    assert decision["reason"] == "routed"
    assert sum(decision["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert wrong.status == 400
    assert not gateway.records


async def test_a_bug_in_any_endpoint_is_an_openai_error(monkeypatch: pytest.MonkeyPatch) -> None:
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
    monkeypatch.setattr("gateway.endpoints.route.CHAT", replace(CHAT, parse=lambda *_: 1 / 0))
    async with gateway_of() as gateway:
        response = Response()
        with pytest.raises(ZeroDivisionError):  # the server logs it; the client has its answer by then
            await gateway.post("/v1/route", body, into=response)
    assert response.status == 500
    assert response.error["code"] == "internal_error"
    assert "division" not in response.error["message"]


async def test_metrics_count_requests_by_category_expert_and_outcome() -> None:
    async with gateway_of() as gateway:
        await gateway.chat("code")
        text = (await gateway.post("/metrics", method="GET")).body.decode()
    counted = (
        'coe_requests_total{api="chat",category="code",expert="coder",outcome="ok",reason="routed",status="200"} 1.0'
    )
    assert counted in text
    assert "coe_routing_seconds_count 1.0" in text
    assert "coe_requests_in_flight 0.0" in text
