"""Fields of a request that select another model, or another server, behind an expert's server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, get_args

import orjson
import pytest
from aiohttp import web

from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.registry import SelectingField
from tests.fakes import Gateway, gateway_of, registry_of

pytestmark = pytest.mark.anyio

ANSWER = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}], "usage": {}}
CHAT = {"model": "cheap", "messages": [{"role": "user", "content": "hi"}]}
FORM = {"content-type": "multipart/form-data; boundary=b"}
SELECTING: Mapping[str, Any] = dict.fromkeys(get_args(SelectingField), "expensive")


@asynccontextmanager
async def gateway_with(**declared: Any) -> AsyncIterator[tuple[Gateway, list[bytes]]]:
    """A gateway whose expert `cheap` is the model `small` of a gateway behind it, and the bodies that this one gets."""
    bodies: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.json_response(ANSWER)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        apis = ["chat", "embeddings", "audio/transcriptions"]
        expert = {"name": "cheap", "model": "small", "runtime": "external", "base_url": url, "apis": apis, **declared}
        registry = registry_of(experts=[expert], assignment={})
        async with (
            Client() as session,
            gateway_of(registry, real_experts=build_experts(registry, {}, session=session)) as gateway,
        ):
            yield gateway, bodies
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("changed", [str, str.upper, lambda name: name.replace("s", "ſ").replace("k", "K")])
async def test_fields_that_select_a_model_are_left_out_and_reported(changed: Any) -> None:
    """Servers in Go take `Models` and `modelſ` for `models`."""
    fields = {changed(name): value for name, value in SELECTING.items()}
    async with gateway_with() as (gateway, bodies):
        response = await gateway.post("/v1/chat/completions", orjson.dumps({**CHAT, **fields, "top_k": 1}))
        assert response.status == 200
        embeddings = {"model": "cheap", "input": "hi", **fields}
        await gateway.post("/v1/embeddings", orjson.dumps(embeddings))
    assert [orjson.loads(body) for body in bodies] == [
        {**CHAT, "top_k": 1, "model": "small"},
        {"model": "small", "input": "hi"},
    ]
    assert sorted(response.headers["x-coe-dropped"].split(", ")) == sorted(map(str.casefold, SELECTING))
    assert sorted(gateway.records[0].dropped) == sorted(map(str.casefold, SELECTING))


async def test_of_two_fields_of_one_name_the_server_gets_the_one_that_was_checked() -> None:
    body = orjson.dumps(CHAT)
    async with gateway_with() as (gateway, bodies):
        first = await gateway.post("/v1/chat/completions", b'{"model": "expensive", ' + body[1:])
        last = await gateway.post("/v1/chat/completions", body[:-1] + b', "model": "expensive"}')
    assert (first.status, last.status) == (200, 404)
    assert bodies == [orjson.dumps({**CHAT, "model": "small"})]


async def test_a_declared_field_passes_and_the_operators_own_parameters_are_never_left_out() -> None:
    async with gateway_with(allowed_fields=["models"], parameters={"provider": {"only": ["a"]}}) as (gateway, bodies):
        body = {**CHAT, "models": ["b"], "provider": {"only": ["expensive"]}, "route": "fallback"}
        response = await gateway.post("/v1/chat/completions", orjson.dumps(body))
    sent = orjson.loads(bodies[0])
    assert (sent["models"], sent["provider"]) == (["b"], {"only": ["a"]})
    assert response.headers["x-coe-dropped"] == "provider, route"


async def test_a_field_of_a_form_that_selects_a_model_is_left_out_too() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    fields = {"model": "cheap", "Fallbacks": "expensive", "models[]": "expensive", "models[0]": "x", "language": "de"}
    form = b"".join(part % (name.encode(), value.encode()) for name, value in fields.items()) + b"--b--\r\n"
    async with gateway_with() as (gateway, bodies):
        response = await gateway.post("/v1/audio/transcriptions", form, headers=FORM)
        assert response.status == 200
    assert response.headers["x-coe-dropped"] == "fallbacks, models"
    assert b"expensive" not in bodies[0]
    assert b'name="language"\r\n\r\nde\r\n' in bodies[0]
    async with gateway_with(allowed_fields=["models"]) as (gateway, bodies):
        response = await gateway.post("/v1/audio/transcriptions", form, headers=FORM)
    assert response.headers["x-coe-dropped"] == "fallbacks"
    assert bodies[0].count(b'name="models[') == 2
