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
