"""Token counts of streams: always requested, shown to clients that requested them, omitted if a server rejects the
option."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from coe.core import Api, Call, Reply
from coe.errors import ExpertRejected
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint

pytestmark = pytest.mark.anyio

WORD = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"usage"},"finish_reason":null}],"usage":null}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
COUNTS = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
ASKED = {"include_usage": True}

Refuse = Callable[[dict[str, Any]], tuple[int, str] | None]


class Server:
    """Streams `chunks`, with counts where they are requested; `refuse` may give a status and a reason instead."""

    def __init__(
        self, refuse: Refuse = lambda _: None, *, last: bytes = LAST, counts: bytes = COUNTS, end: bytes = DONE
    ) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._raise_no_stream = refuse
        self._last, self._counts, self._end = last, counts, end

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if (refusal := self._raise_no_stream(body)) is not None:
            return web.json_response({"error": {"message": refusal[1]}}, status=refusal[0])
        if not body.get("stream"):
            return web.json_response({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        counts = self._counts if (body.get("stream_options") or {}).get("include_usage") else b""
        for chunk in (WORD, self._last, counts, self._end):
            await response.write(chunk)
        return response


@asynccontextmanager
async def requesting(server: Server, **declared: Any) -> AsyncIterator[Callable[..., Awaitable[Reply]]]:
    app = web.Application()
    for path in ("/v1/chat/completions", "/v1/completions"):
        app.router.add_post(path, server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    spec = ExpertSpec(name="e", model="m", runtime="external", base_url=url, **declared)
    async with Client() as session:
        expert = HttpExpert(spec, Endpoint(url, "m"), session=session)

        async def send_chat(*, api: Api = "chat", stream: bool = True, **fields: Any) -> Reply:
            said = {"prompt": "hi"} if api == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
            call = Call({**said, "stream": stream, **fields}, stream, 5.0, 5.0, api=api)
            return await expert.stream(call)

        yield send_chat
    await runner.cleanup()


async def whole(reply: Reply) -> bytes:
    body = b"".join([chunk async for chunk in reply.chunks()])
    await reply.aclose()
    return body


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"continuous_usage_stats": True}])
async def test_token_counts_are_requested_and_hidden_from_a_client_that_did_not_request_them(
    api: Api, options: Any
) -> None:
    server = Server()
    async with requesting(server) as send_chat:
        reply = await send_chat(api=api, stream_options=options)
        assert await whole(reply) == WORD + LAST + DONE
    assert server.bodies[0]["stream_options"] == {**(options or {}), "include_usage": True}
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 5)


async def test_token_counts_are_shown_to_a_client_that_requested_them() -> None:
    async with requesting(Server()) as send_chat:
        reply = await send_chat(stream_options=ASKED)
        assert await whole(reply) == WORD + LAST + COUNTS + DONE
    assert reply.usage.output_tokens == 5


async def test_a_plain_request_is_sent_without_stream_options() -> None:
    server = Server()
    async with requesting(server) as send_chat:
        reply = await send_chat(stream=False)
        await reply.aclose()
    assert "stream_options" not in server.bodies[0]
    assert reply.usage.output_tokens == 5


async def test_comments_and_event_names_around_hidden_counts_stay() -> None:
    async with requesting(Server(counts=b": keep\n\n" + b"event: x\n" + COUNTS + b": alive\n\n")) as send_chat:
        assert await whole(await send_chat()) == WORD + LAST + b": keep\n\n: alive\n\n" + DONE


def knows_no_options(status: int) -> Refuse:
    return lambda body: (status, "Unexpected keys: {'stream_options'}") if "stream_options" in body else None


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_rejects_the_option_is_called_without_it_from_then_on(status: int) -> None:
    server = Server(knows_no_options(status))
    async with requesting(server) as send_chat:
        for _ in range(2):
            assert await whole(await send_chat()) == WORD + LAST + DONE
        assert await whole(await send_chat(api="completions")) == WORD + LAST + DONE
    assert ["stream_options" in body for body in server.bodies] == [True, False, False, False]


async def test_a_client_that_requested_counts_gets_the_servers_refusal() -> None:
    server = Server(knows_no_options(400))
    async with requesting(server) as send_chat:
        with pytest.raises(ExpertRejected, match="stream_options"):
            await send_chat(stream_options=ASKED)
    assert len(server.bodies) == 1
