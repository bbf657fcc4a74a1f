"""Token counts of streams: always requested, shown to clients that requested them, omitted if a server rejects the
option."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.core import Api, Call, Reply
from coe.errors import ExpertRejected
from coe.experts.api_formats import API_FORMATS
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.http.replies import ModelNameRewriter, StreamedReply
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from coe.usage import Usage
from tests.experts.test_odd_streams import Chunks

pytestmark = pytest.mark.anyio

WORD = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"usage"},"finish_reason":null}],"usage":null}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
COUNTS = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
BOTH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
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


async def test_token_counts_beside_a_choice_are_relayed() -> None:
    async with requesting(Server(last=BOTH, counts=b"")) as send_chat:
        reply = await send_chat()
        assert await whole(reply) == WORD + BOTH + DONE
    assert reply.usage.output_tokens == 5


EMPTY = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'


@pytest.mark.parametrize("end", [DONE, b""], ids=["done", "omitted"])
async def test_a_client_that_requested_counts_gets_their_event_if_the_server_sends_them_beside_a_choice(
    end: bytes,
) -> None:
    async with requesting(Server(last=BOTH, counts=b"", end=end)) as send_chat:
        reply = await send_chat(stream_options=ASKED)
        assert await whole(reply) == WORD + BOTH + EMPTY + DONE
    assert reply.usage.output_tokens == 5


async def test_running_counts_add_no_second_event() -> None:
    async with requesting(Server(last=BOTH)) as send_chat:
        assert await whole(await send_chat(stream_options=ASKED)) == WORD + BOTH + COUNTS + DONE


async def test_counts_without_a_list_of_choices_are_hidden_too() -> None:
    async with requesting(Server(counts=COUNTS.replace(b"[]", b"null"))) as send_chat:
        assert await whole(await send_chat()) == WORD + LAST + DONE


async def test_a_stream_of_token_counts_alone_ends_properly() -> None:
    async with requesting(Server(last=b"")) as send_chat:
        assert await whole(await send_chat()) == WORD + DONE


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
    assert ["stream_options" in body for body in server.bodies] == [True, False, False, True, False]


async def test_a_client_that_requested_counts_gets_the_servers_refusal() -> None:
    server = Server(knows_no_options(400))
    async with requesting(server) as send_chat:
        with pytest.raises(ExpertRejected, match="stream_options"):
            await send_chat(stream_options=ASKED)
    assert len(server.bodies) == 1


async def test_concurrent_requests_are_each_retried_without_the_option() -> None:
    async with requesting(Server(knows_no_options(400))) as send_chat:
        replies = await asyncio.gather(*(send_chat() for _ in range(5)))
        assert [await whole(reply) for reply in replies] == [WORD + LAST + DONE] * 5


async def test_a_refusal_for_another_reason_reaches_the_client() -> None:
    server = Server(lambda _: (400, "temperature is too high"))
    async with requesting(server) as send_chat:
        with pytest.raises(ExpertRejected, match="temperature"):
            await send_chat()
    assert len(server.bodies) == 1


async def test_a_client_cannot_disable_the_token_counts_of_a_server() -> None:
    server = Server(lambda body: (400, "no field my_stream_options") if "my_stream_options" in body else None)
    async with requesting(server) as send_chat:
        with pytest.raises(ExpertRejected, match="my_stream_options"):
            await send_chat(my_stream_options=1)
        reply = await send_chat()
        await whole(reply)
    assert reply.usage.output_tokens == 5


async def test_declared_stream_options_are_kept_and_token_counts_hidden() -> None:
    server = Server()
    async with requesting(server, parameters={"stream_options": {"continuous_usage_stats": False}}) as send_chat:
        assert await whole(await send_chat()) == WORD + LAST + DONE
    assert server.bodies[0]["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}


async def test_token_counts_split_into_single_bytes_are_hidden_too() -> None:
    stream = WORD + LAST + COUNTS + DONE
    answer: Any = Chunks(*(stream[at : at + 1] for at in range(len(stream))))
    rewriter, errors = ModelNameRewriter(server_name="m", client_name="e"), ErrorMapping("e", key="")
    reply = StreamedReply(
        answer,
        api_format=API_FORMATS["chat"],
        errors=errors,
        rewriter=rewriter,
        stream_idle_timeout=5.0,
        usage=Usage(),
        held=HeldAnswer(None),
        with_usage=False,
    )
    await reply.begin()
    assert await whole(reply) == WORD + LAST + DONE
    assert orjson.loads(COUNTS[6:])["usage"]["completion_tokens"] == reply.usage.output_tokens
