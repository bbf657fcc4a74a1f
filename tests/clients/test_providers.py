"""LitellmExpert over HTTP: other providers' APIs, translation, and what must never be forwarded."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web

from coe.core import Call, Expert
from coe.errors import (
    ConfigError,
    ExpertError,
    ExpertRejected,
)
from coe.experts import litellm as litellm
from coe.experts.litellm import LitellmExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.clients.model_server import REPLY, ModelServer
from tests.experts.fault_servers import server as serve

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore"),  # litellm works in a thread: a warning must not be an exception amid it
]

KEY = "sk-of-the-provider"
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[ModelServer]:
    server = ModelServer()
    runner = await server.start()
    yield server
    await runner.cleanup()


def provider(server: ModelServer, model: str = "anthropic/claude-x", **declared: Any) -> LitellmExpert:
    base = server.url.removesuffix("/v1")
    spec = {"name": "clever", "model": model, "runtime": "litellm", "base_url": base, "api_key": KEY, **declared}
    return LitellmExpert(ExpertSpec.model_validate(spec), Endpoint(base, model))


def call(*, api: Any = "chat", stream: bool = False, first: float = 60.0, chunk: float = 60.0, **fields: Any) -> Call:
    given = fields or {"messages": HI}
    return Call(
        {"model": "auto", "stream": stream, **given}, stream, first, chunk, api=api, headers={"traceparent": "t"}
    )


async def answer(expert: Expert, asked: Call) -> str:
    reply = await expert.stream(asked)
    try:
        chunks = [chunk async for chunk in reply.chunks()]
    finally:
        await reply.aclose()
    if asked.stream:
        assert all(chunk.endswith(b"\n\n") for chunk in chunks)
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (7, 5)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "path"), [("anthropic/claude-x", "/v1/messages"), ("ollama_chat/tiny", "/api/chat")])
async def test_a_provider_is_called_in_its_own_api(server: ModelServer, model: str, path: str, stream: bool) -> None:
    expert = provider(server, model, system_prompt="Be kind.", parameters={"temperature": 0.5})
    text = await answer(expert, call(stream=stream))
    asked_path, body = server.seen[-1]
    assert asked_path == path
    assert "Be kind." in str(body)
    assert "0.5" in str(body)
    assert server.headers[-1]["traceparent"] == "t"
    assert '"model":"clever"' in text
    assert all(word in text for word in ("capital", "Paris."))
    assert text.endswith("data: [DONE]\n\n") == stream


async def test_a_client_cannot_steer_litellm(server: ModelServer) -> None:
    steering = {
        "api_base": "http://127.0.0.1:9",
        "base_url": "http://127.0.0.1:9",
        "api_key": "other",
        "mock_response": "mocked",
        "custom_llm_provider": "openai",
        "fallbacks": ["openai/x"],
        "extra_headers": {"x-evil": "1"},
        "metadata": {"evil": 1},
        "timeout": 0.001,
        "max_retries": 5,
    }
    text = await answer(provider(server), call(messages=HI, **steering))
    assert REPLY in text
    assert server.headers[-1]["x-api-key"] == KEY
    assert "x-evil" not in server.headers[-1]
    assert "evil" not in str(server.seen[-1][1])


async def test_without_litellm_the_error_names_the_remedy(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'composition-of-experts\[providers\]'"):
        provider(server)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_redirect_is_not_followed(server: ModelServer, stream: bool) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect(f"{server.url}/messages")

    async with serve(redirect) as root:
        spec = {"name": "clever", "model": "anthropic/x", "runtime": "litellm", "base_url": root, "api_key": KEY}
        expert = LitellmExpert(ExpertSpec.model_validate(spec), Endpoint(root, "anthropic/x"))
        with pytest.raises(ExpertError):
            await expert.stream(call(stream=stream))
    assert not server.seen


async def test_images_are_not_fetched_from_private_addresses(server: ModelServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": server.url.replace("/v1", "/api/chat")}}
    with pytest.raises(ExpertRejected):
        await provider(server).stream(call(messages=[{"role": "user", "content": [picture]}]))
    assert not server.seen


@pytest.mark.parametrize("model", ["anthropic/x", "openai/x"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_endless_and_a_compressed_answer_are_refused(
    model: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litellm, "MAX_ANSWER_BYTES", 2**20)
    unbounded: list[bool] = []

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream" if stream else "application/json"})
        await response.prepare(request)
        with suppress(ConnectionError):
            for _ in range(512):
                await response.write(b" " * 2**17)
            unbounded.append(True)
        return response

    async def compressed(request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b"{}"), headers={"content-encoding": "gzip"})

    for answer in (endless, compressed):
        async with serve(answer) as root:
            spec = {"name": "clever", "model": model, "runtime": "litellm", "base_url": root, "api_key": KEY}
            expert = LitellmExpert(ExpertSpec.model_validate(spec), Endpoint(root, model))
            with pytest.raises(ExpertError):
                await expert.stream(call(stream=stream))
    assert not unbounded  # read to the end
