"""Streams whose expert is silent carry comments or pings, and their status waits while another expert can take over."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from coe.core import Api
from coe.errors import ExpertUnavailable
from coe.experts.http.sse import EVENT_STREAM
from coe.registry import Registry
from gateway.dialects.messages import PING
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

EVENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
COMMENT = b": keep-alive\n\n"
OFTEN = {"keep_alive_interval": 0.01}
PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def body(api: Api = "chat", *, model: str = "coder", stream: bool = True) -> bytes:
    content = {"completions": {"prompt": "code"}, "responses": {"input": "code"}}.get(
        api, {"messages": [{"role": "user", "content": "code"}]}
    )
    return orjson.dumps({"model": model, "stream": stream, "max_tokens": 9, **content})


def declared(**policy: Any) -> Registry:
    every = ["chat", "completions", "responses", "messages"]
    experts = [{"name": name, "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", "apis": every}
               for name in ("coder", "generalist")]  # fmt: skip
    assignment = {"code": "coder", "general": "generalist"}
    return registry_of(experts=experts, assignment=assignment, policy=OFTEN | policy)


def asked(gateway: Gateway, api: Api = "chat", **fields: Any) -> tuple[asyncio.Task[Response], Response]:
    response = Response()
    return asyncio.create_task(gateway.post(PATHS[api], body(api, **fields), into=response)), response


@pytest.mark.parametrize("api", PATHS)
async def test_a_silent_stream_begins_with_headers_and_an_event_that_clients_ignore(api: Api) -> None:
    async with gateway_of(declared(), coder=(begin := asyncio.Event())) as gateway:
        task, response = asked(gateway, api)
        await wait_until(lambda: len(response.chunks) > 1)
        assert response.headers["content-type"] == EVENT_STREAM
        assert (response.status, response.headers["x-coe-expert"]) == (200, "coder")
        gateway.experts["coder"].script = [EVENT]
        begin.set()
        await task
    expected = PING if api == "messages" else COMMENT
    assert response.chunks[-1] == EVENT
    assert set(response.chunks[:-1]) == {expected}
    assert gateway.records[0].outcome == "ok"


@pytest.mark.parametrize("api", PATHS)
async def test_silence_between_two_events_is_filled_and_the_events_stay_verbatim(api: Api) -> None:
    goes_on = asyncio.Event()
    async with gateway_of(declared(), coder=[EVENT, goes_on, EVENT]) as gateway:
        task, response = asked(gateway, api)
        await wait_until(lambda: len(response.chunks) > 2)
        goes_on.set()
        await task
    alive = PING if api == "messages" else COMMENT
    assert response.chunks[0] == response.chunks[-1] == EVENT
    assert set(response.chunks[1:-1]) == {alive}


async def test_the_status_waits_while_another_expert_can_take_over() -> None:
    async with gateway_of(declared(), coder=(begin := asyncio.Event())) as gateway:
        task, response = asked(gateway, model="auto")
        await asyncio.sleep(0.05)
        assert (response.status, response.chunks) == (0, [])
        begin.set()
        await task
    assert response.headers["x-coe-expert"] == "coder"


async def test_the_last_expert_that_can_answer_is_named_in_the_early_headers() -> None:
    down = ExpertUnavailable("down", expert="coder")
    down.request_sent = False
    async with gateway_of(declared(), coder=down, generalist=(begin := asyncio.Event())) as gateway:
        task, response = asked(gateway, model="auto")
        await wait_until(lambda: response.chunks)
        begin.set()
        await task
    assert response.headers["x-coe-expert"] == "generalist"
    assert response.headers["x-coe-fallback-from"] == "coder"
    assert (gateway.records[0].expert, gateway.records[0].fallback_from) == ("generalist", "coder")


@pytest.mark.parametrize("api", PATHS)
async def test_a_failure_behind_early_headers_is_an_event_of_the_stream(api: Api) -> None:
    async with gateway_of(declared(timeout=0.5), coder=asyncio.Event()) as gateway:
        response = await gateway.post(PATHS[api], body(api))
    assert response.status == 200
    assert b"within the request's timeout of 0.5 s" in response.chunks[-1]
    record = gateway.records[0]
    assert (record.outcome, record.expert) == ("deadline_exceeded", "coder")
