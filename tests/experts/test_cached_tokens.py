"""Input tokens that a server reads from its prompt cache: counted in every dialect, never twice, at their own price."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError

from coe.core import Api
from coe.experts import build_experts
from coe.experts.api_formats import record_usage
from coe.experts.http.client import Client
from coe.registry import Prices
from coe.usage import Usage
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio

OPENAI = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 80}}
RESPONSES = {"input_tokens": 100, "output_tokens": 10, "input_tokens_details": {"cached_tokens": 80}}
ANTHROPIC = {
    "input_tokens": 15,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 80,
    "output_tokens": 10,
}


@pytest.mark.parametrize(
    ("reported", "cached"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 1}, None),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, None),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1}}, None),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, 5),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}, "cache_read_input_tokens": 4}, 4),
        ({"input_tokens": 5, "cache_read_input_tokens": True}, None),
    ],
)
def test_odd_counts_of_cached_tokens_never_exceed_the_input(reported: dict[str, Any], cached: int | None) -> None:
    usage = Usage()
    record_usage(usage, reported)
    assert (usage.input_tokens, usage.cached_tokens) == (5, cached)


def test_cached_tokens_cost_the_price_of_input_unless_they_have_their_own() -> None:
    assert Prices(input=2, output=4).cost(1e6, 1e6, 5e5) == pytest.approx(6.0)
    assert Prices(input=2, output=4, cached_input=0).cost(1e6, 1e6, 5e5) == pytest.approx(5.0)
    with pytest.raises(ValidationError, match="cached_input is above input"):
        Prices(input=2, cached_input=3)


# ------------------------------------------------------------------------------------------------- through the gateway

PATHS: dict[Api, str] = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
ANSWERS: dict[Api, dict[str, Any]] = {
    "chat": {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}], "usage": OPENAI},
    "responses": {"output": [], "usage": RESPONSES},
    "messages": {"content": [{"type": "text", "text": "hi"}], "usage": ANTHROPIC},
}


@asynccontextmanager
async def caching_server() -> AsyncIterator[str]:
    """A server that reports 100 input tokens in every API, 80 of them from its cache. Yields its base URL."""

    async def respond(request: web.Request) -> web.StreamResponse:
        api = next(api for api, path in PATHS.items() if request.path == path)
        if (await request.json()).get("stream"):
            events = [{"choices": [{"index": 0, "delta": {"content": 'Not "usage": {}'}, "finish_reason": "stop"}]}]
            events.append({"choices": [], "usage": OPENAI})
            text = "".join(f"data: {orjson.dumps(event).decode()}\n\n" for event in events)
            return web.Response(text=f"{text}data: [DONE]\n\n", content_type="text/event-stream")
        return web.json_response(ANSWERS[api])

    app = web.Application()
    for path in PATHS.values():
        app.router.add_post(path, respond)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


async def send_chat(gateway: Gateway, api: Api, **fields: Any) -> Response:
    body: dict[str, Any] = {"model": "auto", "max_tokens": 16, **fields}
    name = "input" if api == "responses" else "messages"
    body[name] = [{"role": "user", "content": "hello"}]
    headers = {"content-type": "application/json", "authorization": "Bearer alice"}
    response = await gateway.post(PATHS[api], orjson.dumps(body), headers=headers)
    assert response.status == 200, response.body
    return response


@pytest.mark.parametrize("api", PATHS)
async def test_records_metrics_and_limits_use_the_price_of_cached_tokens(api: Api) -> None:
    prices = {"input": 10.0, "cached_input": 1.0, "output": 100.0}
    dollars = (20 * 10 + 80 * 1 + 10 * 100) / 1e6
    key = key_of(limits={"dollars_per_day": 1.0}, scopes=("chat", "admin"))
    spec = {"name": "only", "model": "m", "runtime": "external", "apis": list(PATHS), "prices": prices}
    async with caching_server() as url, Client() as session:
        registry = registry_of(
            experts=[spec | {"base_url": url}],
            assignment={"general": "only"},
            access={"keys": [key.model_dump()]},
        )
        async with gateway_of(registry, real_experts=build_experts(registry, {}, session=session)) as gateway:
            response = await send_chat(gateway, api)
            (record,) = gateway.records
            assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (100, 80, 10)
            assert record.cost == pytest.approx(dollars)
            page = (await gateway.post("/metrics", method="GET", headers={"authorization": "Bearer alice"})).body
            assert b'coe_cached_tokens_total{expert="only"} 80' in page
            assert b'coe_tokens_total{expert="only",kind="input"} 100' in page
            assert float(response.headers["x-coe-cost"]) == pytest.approx(dollars)
            if api == "chat":
                stream = await send_chat(gateway, api, stream=True, stream_options={"include_usage": True})
                events = [orjson.loads(line[6:]) for line in stream.body.splitlines() if line.startswith(b"data: {")]
                assert events[-1]["usage"]["cost"] == pytest.approx(dollars)
                assert events[0]["choices"][0]["delta"]["content"] == 'Not "usage": {}'
