"""The conformance suite of Expert implementations, against a real server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import orjson
import pytest

from coe.core import Call, Expert
from coe.errors import ExpertBusy, ExpertError, ExpertRejected, ExpertTimeout, ExpertUnavailable
from coe.experts.http.client import Client
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.experts.conformance import MAKERS
from tests.experts.fault_servers import closed_port
from tests.experts.faulty_server import FaultyServer

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "hi"}]
Serving = Callable[..., Expert]


def call(*, stream: bool = False, first: float = 5.0, chunk: float = 5.0) -> Call:
    fields = {"model": "auto", "messages": MESSAGES, **({"stream": True} if stream else {})}
    return Call(fields, stream, first, chunk)


async def whole(expert: Expert, asked: Call) -> bytes:
    reply = await expert.stream(asked)
    try:
        return b"".join([chunk async for chunk in reply.chunks()])
    finally:
        await reply.aclose()


QUIET = {"litellm": pytest.mark.filterwarnings("ignore")}  # its own warnings, in its own thread, must not be exceptions


@pytest.fixture(params=[pytest.param(name, marks=QUIET.get(name, ())) for name in MAKERS])
async def serving(request: pytest.FixtureRequest, server: FaultyServer) -> AsyncIterator[Serving]:
    """An expert named `clever` whose server behaves as the model's name says."""
    async with Client() as session:

        def made(model: str, url: str = "") -> Expert:
            endpoint = Endpoint(url or server.url, model)
            declared = {"name": "clever", "model": model, "runtime": "external", "base_url": endpoint.base_url}
            return MAKERS[request.param](ExpertSpec.model_validate(declared), endpoint, session)

        yield made


async def test_a_plain_response_is_one_json_document_with_the_experts_name_and_token_counts(serving: Serving) -> None:
    reply = await serving("good").stream(call())
    (body,) = [chunk async for chunk in reply.chunks()]
    await reply.aclose()
    assert reply.media_type == "application/json"
    assert orjson.loads(body)["model"] == "clever"
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (2, 4)


async def test_a_stream_yields_complete_events_to_the_end_with_token_counts(serving: Serving) -> None:
    reply = await serving("good").stream(call(stream=True))
    chunks = [chunk async for chunk in reply.chunks()]
    await reply.aclose()
    assert reply.media_type == "text/event-stream"
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)
    assert chunks[-1].endswith(b"data: [DONE]\n\n")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (2, 4)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_maps_to_the_right_error(serving: Serving, stream: bool) -> None:
    with pytest.raises(ExpertRejected, match="because I say so") as rejected:
        await whole(serving("status:400"), call(stream=stream))
    assert (rejected.value.status, rejected.value.retryable, rejected.value.expert) == (400, False, "clever")
    with pytest.raises(ExpertBusy) as busy:
        await whole(serving("retry:429:7"), call(stream=stream))
    assert (busy.value.retry_after, busy.value.unhealthy) == (7, False)
    with pytest.raises(ExpertUnavailable) as unavailable:
        await whole(serving("status:500"), call(stream=stream))
    assert unavailable.value.unhealthy


@pytest.mark.parametrize("stream", [True, False])
async def test_without_a_first_chunk_in_time_the_connection_is_closed(
    serving: Serving, server: FaultyServer, stream: bool
) -> None:
    while not server.seen:  # on a busy machine the time may be over before the request arrives
        with pytest.raises(ExpertTimeout, match="no first chunk within" if stream else "no answer within"):
            await whole(serving("silent"), call(stream=stream, first=0.2))
    await asyncio.wait_for(server.dropped.wait(), 60)


async def test_cancelling_before_the_first_chunk_stops_the_server(serving: Serving, server: FaultyServer) -> None:
    requesting = asyncio.create_task(whole(serving("silent"), call(stream=True)))
    while not server.seen:
        await asyncio.sleep(0)
    requesting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await requesting
    await asyncio.wait_for(server.dropped.wait(), 60)


async def test_closing_a_reply_midway_stops_the_server(serving: Serving, server: FaultyServer) -> None:
    reply = await serving("stalls").stream(call(stream=True))
    chunks = reply.chunks()
    assert await anext(chunks)
    await chunks.aclose()
    await reply.aclose()
    await reply.aclose()
    await asyncio.wait_for(server.dropped.wait(), 60)


@pytest.mark.parametrize("model", ["truncated", "torn", "fails-late"])
async def test_a_response_that_breaks_off_raises(serving: Serving, model: str) -> None:
    with pytest.raises(ExpertError):
        await whole(serving(model), call(stream=True))


async def test_a_silent_stream_times_out(serving: Serving) -> None:
    with pytest.raises(ExpertTimeout, match="sent nothing for"):
        await whole(serving("stalls"), call(stream=True, chunk=0.1))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["text:<html>", "text:[]", 'text:{"error":{"message":"no quota"}}', "half"])
async def test_an_invalid_response_raises(serving: Serving, model: str, stream: bool) -> None:
    with pytest.raises(ExpertError):
        await whole(serving(model), call(stream=stream))


@pytest.mark.parametrize(
    ("model", "stream", "billed"),
    [
        ("good", False, 1),
        ("good", True, 1),
        ("truncated", True, 1),
        ("half", False, 1),
        ("text:<html>", False, 1),
        ("silent", True, 1),
        ("status:500", False, 1),
        ("status:400", False, 0),
        ("retry:429:7", False, 0),
        ("status:503", True, 0),
    ],
)
async def test_a_call_that_reached_a_server_which_did_not_refuse_it_is_among_those_that_may_be_billed(
    serving: Serving, server: FaultyServer, model: str, stream: bool, billed: int
) -> None:
    asked = call(stream=stream, first=5.0 if model != "silent" else 0.5)
    while not server.seen:  # on a busy machine the time may be over before the request arrives
        asked.sent.clear()
        with suppress(ExpertError):
            await whole(serving(model), asked)
    assert [sent.expert for sent in asked.sent] == ["clever"] * billed
    if model == "good":
        assert (asked.sent[0].usage.input_tokens, asked.sent[0].usage.output_tokens) == (2, 4)


async def test_a_call_to_a_missing_server_is_not_billed(serving: Serving) -> None:
    asked = call()
    with pytest.raises(ExpertUnavailable):
        await whole(serving("good", f"{closed_port()}/v1"), asked)
    assert not asked.sent
