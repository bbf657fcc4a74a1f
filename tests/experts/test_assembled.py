"""Non-streaming requests to `transformers serve` are streamed from it, and closed when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.core import Api, Call
from coe.errors import ExpertInvalidResponse, ExpertTimeout, ExpertUnavailable
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.translation.expert import TranslatedExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, **({"finish_reason": finish} if finish else {})}
    shared = {"id": "r1", "object": "chat.completion.chunk", "created": 7, "model": "m", "system_fingerprint": ""}
    return b"data: %b\n\n" % orjson.dumps({**shared, "choices": [choice], **more})


def piece(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, **({"finish_reason": finish} if finish else {})}
    shared = {"id": "r1", "object": "text_completion", "created": 7, "model": "m"}
    return b"data: %b\n\n" % orjson.dumps({**shared, "choices": [choice], **more})


ROLE = chunk({"role": "assistant"})
WORDS = (ROLE, chunk({"content": "Hi "}), chunk({"content": "there"}), chunk({}, "stop", usage=USAGE))


class Server:
    """Streams `parts`; waits at an event, and notes when its client leaves."""

    def __init__(self, *parts: bytes | asyncio.Event) -> None:
        self.parts = parts
        self.bodies: list[dict[str, Any]] = []
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            await response.prepare(request)
            for part in self.parts:
                if isinstance(part, asyncio.Event):
                    await part.wait()
                else:
                    await response.write(part)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response


@asynccontextmanager
async def expert_at(server: Server, **spec: Any) -> AsyncIterator[HttpExpert]:
    app = web.Application()
    for path in ("/v1/chat/completions", "/v1/completions"):
        app.router.add_post(path, server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m")
    async with Client() as session:
        yield HttpExpert(ExpertSpec(name="small", model="m", runtime="transformers", **spec), endpoint, session=session)
    await runner.cleanup()


def call(api: Api = "chat", *, stream: bool = False, first: float = 10.0, **fields: Any) -> Call:
    said = {"prompt": "hi"} if api == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    return Call({**said, **fields}, stream, first, 10.0, api=api)


async def plain(expert: HttpExpert, one: Call) -> Any:
    reply = await expert.stream(one)
    assert reply.media_type == "application/json"
    body = b"".join([part async for part in reply.chunks()])
    await reply.aclose()
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 5)
    return orjson.loads(body)


async def test_a_plain_answer_has_the_shape_and_usage_of_the_servers_own() -> None:
    server = Server(*WORDS)
    async with expert_at(server) as expert:
        answer = await plain(expert, call(stream=False, temperature=0))
    message = {"role": "assistant", "content": "Hi there"}
    assert answer == {
        "id": "r1",
        "object": "chat.completion",
        "created": 7,
        "model": "small",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": USAGE,
    }
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["temperature"] == 0


async def test_reasoning_and_tool_calls_are_joined() -> None:
    def tool(index: int, **function: str) -> bytes:
        return chunk({"tool_calls": [{"index": index, "id": f"t{index}", "type": "function", "function": function}]})

    parts = (
        *(ROLE, chunk({"reasoning_content": "a"}), chunk({"reasoning_content": "b"})),
        *(tool(0, name="f", arguments='{"x":'), tool(0, arguments="1}"), tool(1, name="g", arguments="{}")),
        chunk({}, "tool_calls", usage=USAGE),
    )
    async with expert_at(Server(*parts)) as expert:
        answer = await plain(expert, call())
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "ab"
    assert choice["message"]["tool_calls"] == [
        {"id": "t0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "t1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


async def test_legacy_completions_are_joined_too() -> None:
    async with expert_at(Server(piece("Hi "), piece("there"), piece("", "length", usage=USAGE))) as expert:
        answer = await plain(expert, call("completions"))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hi there", "finish_reason": "length"}]


async def test_an_abandoned_plain_request_closes_its_stream() -> None:
    server = Server(ROLE, asyncio.Event())
    async with expert_at(server) as expert, asyncio.timeout(60):
        task = asyncio.create_task(expert.stream(call()))
        while not server.bodies:
            await asyncio.sleep(0.001)
        task.cancel()
        await server.left.wait()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["messages", "responses"])
async def test_an_abandoned_translated_request_closes_its_stream(api: Api, stream: bool) -> None:
    server = Server(ROLE, asyncio.Event())
    async with expert_at(server) as chat_expert, asyncio.timeout(60):
        spec = ExpertSpec(name="small", model="m", runtime="transformers")
        fields = {"input": "hi"} if api == "responses" else {"messages": [{"role": "user", "content": "hi"}]}
        translated = TranslatedExpert(chat_expert, spec)
        one = Call({**fields, "stream": stream, "max_tokens": 9}, stream, 10.0, 10.0, api=api)
        task = asyncio.create_task(translated.stream(one))
        while not server.bodies:
            await asyncio.sleep(0.001)
        task.cancel()
        await server.left.wait()


async def test_an_answer_that_is_late_closes_its_stream() -> None:
    server = Server(ROLE, asyncio.Event())
    async with expert_at(server) as expert, asyncio.timeout(60):
        while not server.bodies:  # on a busy machine the time may be over before the request arrives
            with pytest.raises(ExpertTimeout, match=r"gave no answer within 0\.05 s"):
                await expert.stream(call(first=0.05))
        await server.left.wait()


async def test_an_answer_that_breaks_off_is_no_answer() -> None:
    async with expert_at(Server(ROLE, chunk({"content": "Hi"}))) as expert:
        with pytest.raises(ExpertUnavailable, match="before the answer was complete"):
            await expert.stream(call())


async def test_an_error_among_the_events_is_the_servers_error() -> None:
    async with expert_at(Server(ROLE, chunk({"content": "Hi"}), b'data: {"error": "out of memory"}\n\n')) as expert:
        with pytest.raises(ExpertUnavailable, match="out of memory"):
            await expert.stream(call())


@pytest.mark.parametrize("part", [b'data: {"choices": [7]}\n\n', chunk({"tool_calls": [{"index": 4}]})])
async def test_events_of_another_shape_are_an_invalid_response(part: bytes) -> None:
    async with expert_at(Server(part, chunk({}, "stop"))) as expert:
        with pytest.raises(ExpertInvalidResponse):
            await expert.stream(call())


async def test_the_role_of_a_waiting_request_is_not_its_first_token() -> None:
    server = Server(ROLE, asyncio.Event())
    async with expert_at(server) as expert:
        with pytest.raises(ExpertTimeout, match=r"gave no first chunk within 0\.05 s"):
            await expert.stream(call(stream=True, first=0.05))
