"""The endpoints beside chat."""

from dataclasses import replace

import orjson
import pytest

from gateway.dialects.chat import CHAT
from tests.fakes import Response, gateway_of

pytestmark = pytest.mark.anyio


async def test_models_are_auto_and_the_experts() -> None:
    async with gateway_of() as gateway:
        models = (await gateway.post("/v1/models", method="GET")).json
        one = await gateway.post("/v1/models/coder", method="GET")
        none = await gateway.post("/v1/models/nope", method="GET")
    assert [model["id"] for model in models["data"]] == ["auto", "coder", "painter", "generalist"]
    assert one.json["id"] == "coder"
    assert none.status == 404
    assert none.error["code"] == "model_not_found"


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
    monkeypatch.setattr("gateway.endpoints.route.CHAT", replace(CHAT, parse=lambda _: 1 / 0))
    async with gateway_of() as gateway:
        response = Response()
        with pytest.raises(ZeroDivisionError):  # the server logs it; the client has its answer by then
            await gateway.post("/v1/route", body, into=response)
    assert response.status == 500
    assert response.error["code"] == "internal_error"
    assert "division" not in response.error["message"]


async def test_health_is_ready_while_serving_and_not_after() -> None:
    async with gateway_of() as gateway:
        assert (await gateway.post("/health/live", method="GET")).json == {"status": "live"}
        assert (await gateway.post("/health/ready", method="GET")).status == 200
    assert (await gateway.post("/health/ready", method="GET")).status == 503


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


async def test_an_unknown_path_or_method_is_an_openai_error() -> None:
    async with gateway_of() as gateway:
        unknown = await gateway.post("/v1/nothing")
        method = await gateway.post("/v1/chat/completions", method="GET")
    assert unknown.status == 404
    assert unknown.error["code"] == "not_found"
    assert method.status == 405
    assert method.error["type"] == "invalid_request_error"
