"""Requests to the HTTP server of a worker process: parsing, pipelining, refusals, and bounds."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from gateway import server as servers
from gateway.server import MAX_HEAD_BYTES
from tests.gateway.raw_http import CLOSING, answers, echo, part, served, split, start, whole_body
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


# ------------------------------------------------------------------------------------------ requests


@settings(max_examples=12, deadline=None)
@given(
    pieces=st.integers(1, 400),
    chunks=st.lists(st.binary(min_size=1, max_size=100), max_size=4),
    trailer=st.sampled_from([b"", b"x-trailer: 1\r\n", b"x-trailer: 1\r\nhost: evil\r\n"]),
)
async def test_the_split_of_the_bytes_makes_no_difference(pieces: int, chunks: list[bytes], trailer: bytes) -> None:
    """The first request has a chunked body with trailers, which must not become headers of either request."""
    first = b"POST /first HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    first += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"
    second = b"POST /second HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"
    async with served(echo) as (_, port):
        answer = await answers(port, first + second, pieces=pieces)
    _, headers, rest = split(answer)
    length = int(headers[b"content-length"])
    one, two = orjson.loads(rest[:length]), orjson.loads(split(rest[length:])[2])
    assert (one["path"], one["body"].encode("latin-1")) == ("/first", b"".join(chunks))
    assert (two["path"], two["body"]) == ("/second", "hi")
    assert one["headers"] == [["host", "localhost"], ["transfer-encoding", "chunked"]]
    assert two["headers"] == [["host", "localhost"], ["connection", "close"], ["content-length", "2"]]


@pytest.mark.parametrize("pieces", [1, 1000])
@pytest.mark.parametrize(
    ("framing", "body", "seen"),
    [
        (b"content-length: 2\r\n", b"hi", "hi"),
        (b"transfer-encoding: chunked\r\n", b"2\r\nhi\r\n0\r\n\r\n", "hi"),
        (b"", b"", ""),
    ],
)
async def test_an_offer_to_upgrade_gets_an_ordinary_response(
    framing: bytes, body: bytes, seen: str, pieces: int
) -> None:
    """Java's HttpClient offers HTTP/2 (h2c) in requests over plain HTTP."""
    offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    request = b"POST /first HTTP/1.1\r\nhost: localhost\r\n%b%b\r\n%b" % (offer, framing, body)
    async with served(echo) as (_, port):
        answer = await answers(port, request + CLOSING % b"second", pieces=pieces)
    status, headers, rest = split(answer)
    first = orjson.loads(rest[: int(headers[b"content-length"])])
    assert status == b"HTTP/1.1 200 OK"
    assert (first["path"], first["body"]) == ("/first", seen)
    assert ["upgrade", "h2c"] in first["headers"]
    assert b'"path":"/second"' in rest


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\nhost: a\n\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n",
        b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT other:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-a: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
    ],
)
async def test_an_invalid_request_is_refused_with_the_reason(request_bytes: bytes) -> None:
    async with served(echo) as (_, port):
        status, headers, body = split(await answers(port, request_bytes))
    assert status == b"HTTP/1.1 400 Bad Request"
    assert headers[b"connection"] == b"close"
    error = orjson.loads(body)["error"]
    assert error["code"] == "invalid_http"
    assert "not a valid HTTP/1.1 request: " in error["message"]


# -------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx-long: "])
async def test_an_endless_head_is_refused(begin: bytes) -> None:
    async with served(echo) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            writer.write(begin)
            line = b"x: y\r\n" if begin.endswith(b"\r\n") else b"y" * 6
            for _ in range(2 * MAX_HEAD_BYTES // len(line)):
                writer.write(line)
                await asyncio.sleep(0)
            status, _, body = split(await reader.read())
    assert status == b"HTTP/1.1 431 Request Header Fields Too Large"
    assert orjson.loads(body)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("begin", [b"1;extension=", b"0\r\nx-trailer: "])
async def test_endless_chunk_extensions_and_trailers_are_refused(begin: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    async with served(echo) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            writer.write(head + begin)
            await wait_until(lambda: server.server_state.tasks)
            for _ in range(2 * MAX_HEAD_BYTES // 4096):
                writer.write(b"y" * 4096)
                await asyncio.sleep(0.001)
            answer = await reader.read()
            await wait_until(lambda: not server.server_state.tasks)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_body_that_the_application_does_not_read_is_not_read_from_the_socket() -> None:
    go_on, size = asyncio.Event(), 64 * 2**20

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        body = await whole_body(receive)
        await send(start(200, (b"content-length", b"0")))
        await send(part(b""))
        assert len(body) == size

    async with served(late) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
            writer.write(bytes(size))
            await wait_until(lambda: server.server_state.tasks)
            await asyncio.sleep(0.1)
            (connection,) = server.connections
            assert 0 < len(connection.cycle.body) <= HIGH_WATER_LIMIT + 2**18  # one read of the event loop
            go_on.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")


async def test_a_response_before_the_end_of_the_body_reaches_the_client_and_the_rest_is_discarded() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(413, (b"content-length", b"2")))
        await send(part(b"no"))

    size = 8 * 2**20
    async with served(refuse) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            for _ in range(2):  # on the same connection
                writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
                writer.write(bytes(size))
                await writer.drain()
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
                assert await reader.readexactly(2) == b"no"


@pytest.mark.parametrize("sent", [b"\r\n", b"GET / HTT"])
async def test_a_connection_without_a_whole_head_in_time_is_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "IDLE_SECONDS", 0.1)
    async with served(echo) as (_, port):
        assert await answers(port, sent) == b""


async def test_connections_above_the_limit_are_refused_until_others_close() -> None:
    async with served(echo, max_connections=1) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await wait_until(lambda: server.connections)
        status, headers, body = split(await answers(port, CLOSING % b"x"))
        assert status == b"HTTP/1.1 429 Too Many Requests"
        assert (headers[b"connection"], headers[b"retry-after"]) == (b"close", b"1")
        assert orjson.loads(body)["error"]["code"] == "overloaded"
        await wait_until(lambda: len(server.connections) == 1)
        refused = await asyncio.open_connection("127.0.0.1", port)
        await wait_until(lambda: len(server.connections) == 2)
        with suppress(ConnectionResetError):
            assert await answers(port, CLOSING % b"x") == b""
        writer.write(CLOSING % b"x")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        for client in (writer, refused[1]):
            client.close()
        await wait_until(lambda: not server.connections)
        assert (await answers(port, CLOSING % b"x")).startswith(b"HTTP/1.1 200 OK")
