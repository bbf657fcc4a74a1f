"""HttpExpert against a real server that misbehaves in every way."""

import asyncio
import contextlib
import re

import orjson
import pytest

from coe.core import Call
from coe.errors import (
    ExpertInvalidResponse,
    ExpertRejected,
    ExpertUnavailable,
    InvalidRequest,
)
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.http.replies import ModelNameRewriter
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from gateway.errors import body_of
from tests.experts.faulty_server import CHUNK, DONE, LAST, FaultyServer

pytestmark = pytest.mark.anyio


def spec_of(**fields: object) -> ExpertSpec:
    declared = {"name": "clever", "model": "m", "runtime": "external", "base_url": "http://h/v1"}
    return ExpertSpec.model_validate(declared | fields)


async def answer(
    url: str, model: str, *, stream: bool = False, first: float = 5.0, chunk: float = 5.0, **spec: object
) -> list[bytes]:
    """All pieces of one answer."""
    fields = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **({"stream": True} if stream else {})}
    async with Client() as session:
        expert = HttpExpert(spec_of(**spec), Endpoint(url, model), session=session)
        reply = await expert.stream(Call(fields, stream, first, chunk))
        try:
            chunks = [chunk async for chunk in reply.chunks()]
        finally:
            await reply.aclose()
        assert (reply.usage.input_tokens, reply.usage.output_tokens) == (2, 4)
        return chunks


async def test_done_is_added_if_the_server_omits_it(server: FaultyServer) -> None:
    chunks = await answer(server.url, "no-done", stream=True)
    assert b"".join(chunks).endswith(LAST + DONE)


async def test_declared_parameters_fill_gaps_and_the_system_prompt_comes_first(server: FaultyServer) -> None:
    parameters = {"temperature": 0.1, "messages_seen": 1}
    await answer(server.url, "good", parameters=parameters, system_prompt="Be kind.", api_key="k3y")
    (body,) = server.seen
    assert body["temperature"] == 0.1
    assert [message["content"] for message in body["messages"]] == ["Be kind.", "hi"]
    assert server.headers[0]["Authorization"] == "Bearer k3y"


@pytest.mark.parametrize(
    ("model", "stream", "error", "says"),
    [
        ("half", False, ExpertUnavailable, "broke off the connection"),
        ('text:{"error":{"message":"no memory"}}', False, ExpertUnavailable, "no memory"),
        ("status:401", False, ExpertUnavailable, "refused its api_key"),
        ("status:400", False, ExpertRejected, "rejected the request: because I say so"),
        ("detail:422", True, ExpertRejected, "rejected the request: unexpected field"),
        ("text:<html>", False, ExpertInvalidResponse, "not JSON"),
        ("text:[]", False, ExpertInvalidResponse, "without choices"),
        ("text:{}", True, ExpertInvalidResponse, "where an event stream was requested"),
        ("stream-text:noise\n\n", True, ExpertInvalidResponse, "broken event stream"),
        ("stream-text:data: {\n\n", True, ExpertInvalidResponse, "broken event stream"),
        ('stream-text:data: {"error":{"message":"no memory"}}\n\n', True, ExpertUnavailable, "no memory"),
        ("stream-text:: ping\n\n", True, ExpertUnavailable, "before the first event"),
        ("fails-late", True, ExpertUnavailable, "cuda died"),
        ("nested-reason", False, ExpertUnavailable, r"HTTP 500: \[\[\["),
        ("truncated", True, ExpertUnavailable, "before the answer was complete"),
        ("torn", True, ExpertUnavailable, "in the middle of the stream"),
    ],
)
async def test_each_fault_has_its_error(
    server: FaultyServer, model: str, stream: bool, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await answer(server.url, model, stream=stream)


def test_only_the_model_field_of_the_response_is_renamed() -> None:
    rewriter = ModelNameRewriter(server_name="m", client_name="clever")
    answer = {"model": "m", "content": [{"type": "tool_use", "input": {"model": "m"}}]}
    assert orjson.loads(rewriter.in_answer(orjson.dumps(answer), answer)) == {**answer, "model": "clever"}
    foreign = answer | {"model": "another"}
    assert orjson.loads(rewriter.in_answer(orjson.dumps(foreign), foreign)) == foreign
    assert rewriter.in_answer(b'{"model": "m", "n": 1.0}', {}) == b'{"model": "clever", "n": 1.0}'


async def test_a_refusal_keeps_the_servers_message_code_and_param(server: FaultyServer) -> None:
    with pytest.raises(ExpertRejected, match=r"rejected the request: too long$") as raised:
        await answer(server.url, "refuses:slowly400")
    assert (raised.value.upstream_code, raised.value.param) == ("context_length_exceeded", "messages[0]")
    assert orjson.loads(body_of(raised.value))["error"]["code"] == "context_length_exceeded"
    with pytest.raises(ExpertRejected) as raised:
        await answer(server.url, "refuses:slowly400", api_key="context_length_exceeded")
    assert raised.value.upstream_code is None


async def test_a_refusal_does_not_wait_for_a_missing_body(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.experts.http.expert.REFUSAL_TIMEOUT", 0.05)
    with pytest.raises(ExpertUnavailable, match="HTTP 500"):
        await answer(server.url, "refuses:never500")
    await asyncio.wait_for(server.dropped.wait(), 60)


async def test_the_key_is_redacted_even_if_the_server_repeats_it(server: FaultyServer) -> None:
    with pytest.raises(ExpertUnavailable, match=r"no: Bearer \*\*\*") as raised:
        await answer(server.url, "repeats", api_key="k3y")
    assert "k3y" not in str(raised.value)


async def test_a_connection_is_reused_although_the_body_ends_after_the_last_event() -> None:
    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    connections = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
                kind = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                writer.write(kind + chunk(CHUNK % b"m" + LAST + DONE))
                await ended.wait()
                writer.write(b"0\r\n\r\n")

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    async with Client() as session:
        expert = HttpExpert(spec_of(), Endpoint(url, "m"), session=session)
        for _ in range(2):
            ended.clear()
            reply = await expert.stream(Call({"messages": [{"role": "user", "content": "hi"}]}, True, 5, 5))
            assert [chunk async for chunk in reply.chunks()]
            asyncio.get_running_loop().call_soon(ended.set)
            await reply.aclose()
    for writer in connections:
        writer.close()
        await writer.wait_closed()
    listening.close()
    assert len(connections) == 1


async def test_an_endless_preamble_is_refused(server: FaultyServer) -> None:
    with pytest.raises(ExpertInvalidResponse):
        await answer(server.url, "stream-text:" + ": noise\n\n" * 2**17, stream=True)


async def test_a_body_nested_too_deeply_is_an_invalid_request(server: FaultyServer) -> None:
    deep: object = 1
    for _ in range(600):
        deep = [deep]
    async with Client() as session:
        expert = HttpExpert(spec_of(), Endpoint(server.url, "good"), session=session)
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            await expert.stream(Call({"messages": [], "deep": deep}, False, 5, 5))
