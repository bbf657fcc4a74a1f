"""Requests that use the cache, their keys, and the answers that are stored."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.errors import ExpertError
from gateway.cache import MAX_BODY_BYTES
from gateway.request.cached_answer import MAX_ANSWER_BYTES
from tests.cache.requests import LONG, cached, uses
from tests.fakes import gateway_of
from tests.recipes.members import DONE, answer, event, stream

pytestmark = pytest.mark.anyio


async def test_what_the_answer_does_not_depend_on_is_not_in_the_key() -> None:
    async with gateway_of(cached(), generalist=answer("fine")) as gateway:
        body = orjson.dumps({"temperature": 0, "messages": [{"content": LONG, "role": "user"}], "model": "auto"})
        assert await uses(gateway, {}, {"user": "u1"}, {"metadata": {"a": "b"}}, {"store": False}) == [
            *("miss", "hit", "hit", "hit")
        ]
        headers = {"content-type": "application/json", "traceparent": f"00-{1:032x}-{1:016x}-01"}
        assert (await gateway.post("/v1/chat/completions", body, headers=headers)).headers["x-coe-cache"] == "hit"


@pytest.mark.parametrize(
    "other",
    [
        {"text": LONG + " "},
        {"temperature": 0.0, "top_p": 0.5},
        {"seed": 1},
        {"max_tokens": 5},
        {"model": "generalist"},
        {"headers": {"x-coe-cost-weight": "0.5"}},
        {"headers": {"x-coe-recipe": "off"}},
        {"headers": {"x-coe-retrieval": "off"}},
        {"response_format": {"type": "text"}},
        {"vendor_field": 1},
        {"messages": [{"role": "system", "content": LONG}]},
    ],
)
async def test_what_the_answer_depends_on_is_in_the_key(other: dict[str, Any]) -> None:
    async with gateway_of(cached(), generalist=answer("fine")) as gateway:
        assert await uses(gateway, {}, other, {}, other) == ["miss", "miss", "hit", "hit"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7},
        {"temperature": None},
        {"temperature": False},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "model": "coder"},
        {"functions": [{"name": "f"}], "model": "coder"},
        {"web_search_options": {"search_context_size": "low"}},
        {"store": True},
        {"n": 2},
        {"audio": {"voice": "a"}},
        {"modalities": ["text", "image"]},
        {"headers": {"x-session-id": "s"}},
        {"headers": {"x-coe-cache": "off"}},
        {"headers": {"x-coe-purpose": "score"}},
        {"messages": [{"role": "user", "content": "go"}, {"role": "tool", "content": "x", "tool_call_id": "1"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {
            "model": "painter",
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
        },
    ],
)
async def test_requests_that_never_use_the_cache(fields: dict[str, Any]) -> None:
    fine = answer("fine")
    async with gateway_of(cached(), coder=fine, painter=fine, generalist=fine) as gateway:
        assert await uses(gateway, fields, fields) == [None, None]
        assert sum(len(expert.calls) for expert in gateway.experts.values()) == 2
        assert [record.cache for record in gateway.records] == ["", ""]


async def test_always_caches_whatever_the_parameters_and_a_seed_is_deterministic() -> None:
    async with gateway_of(cached(), generalist=answer("fine")) as gateway:
        assert await uses(gateway, *[{"temperature": 0.7, "seed": 7}] * 2) == ["miss", "hit"]
    async with gateway_of(cached(cache={"when": "always"}), generalist=answer("fine")) as gateway:
        assert await uses(gateway, *[{"temperature": 0.7}] * 2) == ["miss", "hit"]
        assert await uses(gateway, *[{"temperature": 0.7, "headers": {"x-session-id": "s"}}] * 2) == [None, None]


@pytest.mark.parametrize(
    ("script", "fields"),
    [
        (answer("cut", finish="length"), {}),
        (answer("cut", finish="content_filter"), {}),
        (answer(None, finish="tool_calls"), {}),
        ((b'{"choices":[]}',), {}),
        ((b'{"choices":[{"index":0}]}',), {}),
        ((b'{"choices":"none"}',), {}),
        (answer("x" * MAX_ANSWER_BYTES), {}),
        (stream("cut", finish="length"), {"stream": True}),
        ((event("no end"), DONE), {"stream": True}),
        ((event('it says "finish_reason": "stop"'), DONE), {"stream": True}),
        (stream("no end")[:-1], {"stream": True}),
        ((b"[]",), {}),
        (stream(*["x" * 2**18] * 5), {"stream": True}),
    ],
)
async def test_an_answer_that_is_not_complete_or_too_long_is_not_stored(script: Any, fields: dict[str, Any]) -> None:
    async with gateway_of(cached(), generalist=script) as gateway:
        assert await uses(gateway, fields, fields) == ["miss", "miss"]
        assert len(gateway.experts["generalist"].calls) == 2


async def test_a_stream_that_breaks_off_or_whose_client_leaves_is_not_stored() -> None:
    broken = (event("fi"), ExpertError("it broke off", expert="generalist"))
    async with gateway_of(cached(), generalist=broken) as gateway:
        assert await uses(gateway, {"stream": True}) == ["miss"]
        gateway.experts["generalist"].script = stream("fi", "ne")
        assert await uses(gateway, {"stream": True}, {"stream": True}) == ["miss", "hit"]


async def test_a_large_or_deeply_nested_body_goes_past_the_cache() -> None:
    async with gateway_of(cached(), generalist=answer("fine")) as gateway:
        assert await uses(gateway, *[{"vendor": "x" * MAX_BODY_BYTES}] * 2) == [None, None]
        headers = {"content-type": "application/json"}
        text = '{"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": "hi"}], "x": %s}'
        body = (text % ("[" * 300 + "1" + "]" * 300)).encode()
        response = await gateway.post("/v1/chat/completions", body, headers=headers)
        assert response.status == 200
        assert "x-coe-cache" not in response.headers


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": LONG}),
        ("/v1/responses", {"input": LONG, "store": False}),
        ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 9}),
    ],
)
async def test_the_other_apis_do_not_use_the_cache(path: str, fields: dict[str, Any]) -> None:
    one = {"name": "generalist", "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    apis = ["chat", "completions", "responses", "messages"]
    declared = cached(experts=[one | {"apis": apis}], assignment={"general": "generalist"}, cache={"when": "always"})
    async with gateway_of(declared, generalist=answer("fine")) as gateway:
        body = orjson.dumps({"model": "generalist", **fields})
        responses = [await gateway.post(path, body) for _ in range(2)]
        assert [response.status for response in responses] == [200, 200]
        assert all("x-coe-cache" not in response.headers for response in responses)
