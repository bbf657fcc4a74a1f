"""Responses through litellm have the same limits as others, and redirects are not followed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

import pytest
from aiohttp import web

from coe.core import Call
from coe.errors import ExpertError, ExpertInvalidResponse, ExpertRejected, ExpertUnavailable
from coe.experts.http.replies import MAX_ANSWER_BYTES
from coe.experts.http.sse import MAX_EVENT_BYTES
from coe.experts.litellm import response_limits
from coe.experts.litellm.expert import LitellmExpert
from coe.experts.litellm.response_limits import ResponseLimitExceeded, ResponseLimits
from coe.registry import ExpertSpec
from coe.settings import Endpoint

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore"),  # litellm works in a thread: a warning must not be an exception amid it
]
ON_ITS_WAY = 24 * 2**20
"""Bytes that may lie in buffers between the two."""
PIECE = 2**16
EVENT_STREAM, JSON = "text/event-stream", "application/json"
TINY = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
NOVA = "bedrock/converse/amazon.nova-lite-v1:0"
ASKED = [  # one for each way in which litellm comes by a client
    ("openai/m", "chat"),
    ("custom_openai/m", "chat"),
    ("azure/m", "chat"),
    ("anthropic/m", "chat"),
    ("ollama_chat/m", "chat"),
    ("gemini/m", "chat"),
    (NOVA, "chat"),
]
EMBEDDED = [("openai/m", "embeddings"), ("ollama/m", "embeddings"), ("cohere/m", "embeddings")]


class Spring:
    """Answers every request alike: with `body`, or with `drop` without end where there is one; `sent` counts."""

    def __init__(self) -> None:
        self.status = 200
        self.headers = {"content-type": JSON}
        self.body = b""
        self.drop = b""
        self.sent = 0
        self.seen: list[web.Request] = []
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.seen.append(request)
        response = web.StreamResponse(status=self.status, headers=self.headers)
        await response.prepare(request)
        await response.write(self.body)
        chunk = self.drop * (PIECE // len(self.drop)) if self.drop else b""
        while chunk and self.sent < 4 * MAX_ANSWER_BYTES:
            await response.write(chunk)
            self.sent += len(chunk)
        await response.write_eof()
        return response


@pytest.fixture
async def spring(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spring]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_REGION_NAME", "us-east-1")
    monkeypatch.setenv("AZURE_API_VERSION", "2024-06-01")
    spring = Spring()
    runner = await spring.start()
    yield spring
    await runner.cleanup()


async def send_chat(spring: Spring, model: str, api: Any, *, stream: bool = False) -> None:
    base = f"{spring.url}/v1" if model.startswith("custom_openai/") else spring.url
    declared = {"name": "clever", "model": model, "runtime": "litellm", "base_url": base, "api_key": "sk-secret"}
    fields = {"messages": [{"role": "user", "content": "hi"}]} if api == "chat" else {"input": "hi"}
    expert = LitellmExpert(ExpertSpec.model_validate(declared), Endpoint(base, model))
    reply = await expert.stream(Call({"model": "auto", "stream": stream, **fields}, stream, 60, 60, api))
    try:
        async for _ in reply.chunks():
            pass
    finally:
        await reply.aclose()


@cache
def bomb() -> bytes:
    """128 MiB in a few kB; packing them takes half a second."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(128)) + packer.flush()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "api"), ASKED)
async def test_a_compressed_response_is_refused_unread(spring: Spring, model: str, api: str, stream: bool) -> None:
    spring.headers = {"content-type": EVENT_STREAM if stream else JSON, "content-encoding": "gzip"}
    spring.body = bomb()
    with pytest.raises(ExpertInvalidResponse, match="a compressed answer, which was not requested") as caught:
        await send_chat(spring, model, api, stream=stream)
    assert caught.value.unhealthy
    assert [request.headers["accept-encoding"] for request in spring.seen] == ["identity"]


@pytest.mark.parametrize(("kind", "drop"), [(JSON, b" "), (EVENT_STREAM, TINY)], ids=["body", "tiny events"])
@pytest.mark.parametrize(("model", "api"), ASKED + EMBEDDED)
async def test_a_plain_response_is_read_up_to_its_limit(
    spring: Spring, model: str, api: str, kind: str, drop: bytes
) -> None:
    spring.headers, spring.drop = {"content-type": kind}, drop
    with pytest.raises(ExpertInvalidResponse, match="an answer longer than the limit of 64 MiB"):
        await send_chat(spring, model, api)
    assert spring.sent < MAX_ANSWER_BYTES + ON_ITS_WAY


@pytest.mark.parametrize(("model", "api"), [pair for pair in ASKED if pair[0] != NOVA])  # which has no such events
async def test_an_event_is_read_up_to_its_limit(spring: Spring, model: str, api: str) -> None:
    spring.headers, spring.body, spring.drop = {"content-type": EVENT_STREAM}, b"data: ", b"x"
    with pytest.raises(ExpertInvalidResponse, match=f"an event is longer than {MAX_EVENT_BYTES} bytes"):
        await send_chat(spring, model, api, stream=True)
    assert spring.sent < MAX_EVENT_BYTES + ON_ITS_WAY


@pytest.mark.parametrize(("model", "api"), [("custom_openai/m", "chat"), ("ollama_chat/m", "chat")])
async def test_a_stream_of_another_type_has_the_limit_of_a_plain_response(spring: Spring, model: str, api: str) -> None:
    spring.drop = b" "
    with pytest.raises(ExpertInvalidResponse, match="an answer longer than the limit of 64 MiB"):
        await send_chat(spring, model, api, stream=True)
    assert spring.sent < MAX_ANSWER_BYTES + ON_ITS_WAY


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "error"), [(400, ExpertRejected), (500, ExpertUnavailable)])
@pytest.mark.parametrize(("model", "api"), ASKED)
async def test_an_endless_error_body_is_mapped_by_its_status(
    spring: Spring, model: str, api: str, status: int, error: type[ExpertError], stream: bool
) -> None:
    spring.status, spring.drop = status, b"no "
    with pytest.raises(error) as refused:
        await send_chat(spring, model, api, stream=stream)
    assert type(refused.value) is error
    assert spring.sent < ON_ITS_WAY


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "api"), ASKED)
async def test_a_compressed_error_body_is_mapped_by_its_status_alone(
    spring: Spring, model: str, api: str, stream: bool
) -> None:
    """A caller whose requests are refused must not make the expert unhealthy for others."""
    spring.status, spring.headers, spring.body = 400, {"content-type": JSON, "content-encoding": "gzip"}, bomb()
    with pytest.raises(ExpertRejected) as refused:
        await send_chat(spring, model, api, stream=stream)
    assert not refused.value.unhealthy


@pytest.mark.parametrize("coding", ["", "Identity", "identity, identity"])
def test_an_identity_encoding_is_accepted(coding: str) -> None:
    assert ResponseLimits(stream=False).for_response(200, {"content-encoding": coding})(b"x") == b"x"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "api"), ASKED)
async def test_a_redirect_is_not_followed(spring: Spring, model: str, api: str, stream: bool) -> None:
    spring.status, spring.headers = 307, {"location": f"{spring.url}/elsewhere"}
    with pytest.raises(ExpertUnavailable):
        await send_chat(spring, model, api, stream=stream)
    assert len(spring.seen) == 1


async def test_requests_that_litellm_makes_in_a_thread_are_bounded_too(spring: Spring) -> None:
    import litellm

    spring.status = 500
    with pytest.raises(ExpertUnavailable):
        await send_chat(spring, "openai/m", "chat")  # so that litellm is imported
    spring.status, spring.drop = 200, b" "
    with pytest.raises(ResponseLimitExceeded):
        await asyncio.to_thread(litellm.module_level_client.get, spring.url)
    assert spring.sent < MAX_ANSWER_BYTES + ON_ITS_WAY


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_any_number_of_events_passes_however_they_are_cut(
    newline: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_limits, "MAX_ANSWER_BYTES", 10)
    monkeypatch.setattr(response_limits, "MAX_EVENT_BYTES", 20)
    read = ResponseLimits(stream=True).for_response(200, {"content-type": "Text/Event-Stream; charset=utf-8"})
    events = 9 * (b"data: x" + newline + b"id: 1" + 2 * newline)
    assert b"".join(read(chunk) or b"" for chunk in cut(events, size)) == events
    with pytest.raises(ResponseLimitExceeded):
        list(map(read, cut(9 * (b"data: x" + newline), size)))


def cut(whole: bytes, size: int) -> Iterator[bytes]:
    return (whole[at : at + size] for at in range(0, len(whole), size))
