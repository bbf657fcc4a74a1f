"""Every reply that holds more than the next part of its answer counts it, until the client has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.core import Api, Call, Expert, Reply
from coe.errors import AnswerMemoryFull
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.http.replies import SMALL_ANSWER
from coe.experts.litellm import LitellmExpert
from coe.experts.translation.expert import TranslatedExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.experts.answer_memory import Memory

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore"),  # litellm works in a thread: a warning must not be an exception amid it
]
SIZE, PIECE = 8 * SMALL_ANSWER, SMALL_ANSWER
DONE = b"data: [DONE]\n\n"


class Server:
    """Answers with SIZE bytes of text in pieces: plain, as one long event, or as many small ones. After half of them it
    waits for `go_on`."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.half = asyncio.Event()
        self.small_events = False
        self.size = SIZE

    async def answer(self, request: web.Request) -> web.StreamResponse:
        stream = (await request.json()).get("stream", False)
        response = web.StreamResponse()
        response.content_type = "text/event-stream" if stream else "application/json"
        await response.prepare(request)
        body = self.events() if stream else chat_answer(self.size)
        middle = len(body) // 2
        for part in (body[:middle], body[middle:]):
            for at in range(0, len(part), PIECE):
                await response.write(part[at : at + PIECE])
            self.half.set()
            await self.go_on.wait()
        return response

    def events(self) -> bytes:
        length = 64 if self.small_events else self.size
        return event(length) * (self.size // length) + event(0, "stop") + DONE


def chat_answer(size: int) -> bytes:
    message = {"role": "assistant", "content": "x" * size}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "data": []}
    return orjson.dumps(answer)


def event(size: int, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": "x" * size}, "finish_reason": finish}
    return b"data: %b\n\n" % orjson.dumps({"object": "chat.completion.chunk", "choices": [choice]})


def http(endpoint: Endpoint, session: Client) -> Expert:
    spec = {"name": "clever", "model": "m", "runtime": "external", "base_url": endpoint.base_url}
    return HttpExpert(ExpertSpec.model_validate(spec), endpoint, session=session)


def translated(endpoint: Endpoint, session: Client) -> Expert:
    expert = http(endpoint, session)
    return TranslatedExpert(
        expert, ExpertSpec(name="clever", model="m", runtime="external", base_url=endpoint.base_url)
    )


def litellm(endpoint: Endpoint, _: Client) -> Expert:
    spec = {"name": "clever", "model": "custom_openai/m", "runtime": "litellm", "api_key": "none"}
    return LitellmExpert(ExpertSpec.model_validate(spec | {"base_url": endpoint.base_url}), endpoint)


Maker = Callable[[Endpoint, Client], Expert]
PLAIN: dict[str, tuple[Maker, Api]] = {
    "plain": (http, "chat"),
    "passed through": (http, "rerank"),
    "translated": (translated, "responses"),
    "litellm": (litellm, "chat"),
}
STREAMS: dict[str, tuple[Maker, Api]] = {
    "long event": (http, "chat"),
    "translated stream": (translated, "responses"),
    "translated messages": (translated, "messages"),
}
KINDS = PLAIN | STREAMS


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[tuple[Server, Expert]]:
    server = Server()
    server.small_events = kind in ("translated stream", "translated messages")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with Client() as session:
            yield server, KINDS[kind][0](Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m"), session)
    finally:
        await runner.cleanup()


def call_of(kind: str, memory: Memory) -> Call:
    api, stream = KINDS[kind][1], kind in STREAMS
    prompt: dict[str, Any] = {"input": "hi"} if api == "responses" else {"messages": [{"role": "user", "content": "x"}]}
    return Call({"model": "auto", "stream": stream, **prompt}, stream, 60, 60, api, memory=memory)


async def read(reply: Reply) -> int:
    size = 0
    try:
        async for chunk in reply.chunks():
            size += len(chunk)
    finally:
        await reply.aclose()
    return size


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_is_counted_until_its_reply_is_closed(kind: str) -> None:
    memory = Memory()
    async with serving(kind) as (server, expert):
        server.go_on.set()
        reply = await expert.stream(call_of(kind, memory))
        if kind in PLAIN:
            assert memory.held >= SIZE
        size = 0
        async for chunk in reply.chunks():
            size += len(chunk)
            assert memory.held >= 0.9 * len(chunk) or len(chunk) <= SMALL_ANSWER or kind.startswith("translated ")
        assert size > SIZE
        assert memory.peak >= SIZE / 2
        await reply.aclose()
    assert memory.held == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_finds_no_memory_fails_and_leaves_none_in_use(kind: str) -> None:
    memory = Memory(limit=2 * SMALL_ANSWER)
    async with serving(kind) as (server, expert):
        server.go_on.set()
        with pytest.raises(AnswerMemoryFull):
            await read(await expert.stream(call_of(kind, memory)))
    assert memory.held == 0
