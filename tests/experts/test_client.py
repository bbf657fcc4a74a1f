"""The HTTP client against servers that write exactly what a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coe.experts.http.client import MAX_UNREAD_BYTES, Client, Target, Unreachable
from tests.experts.fault_servers import self_signed

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The event loops of the gateway and of commands."""
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def serving(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that leaves each connection to `serve`; its address."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    async with server:
        scheme = "https" if context else "http"
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def whole(client: Client, target: Target, body: bytes = b"{}") -> bytes:
    response = await client.send(target, body)
    chunks = [response.status.to_bytes(2, "big")]
    while chunk := await response.chunk():
        chunks.append(chunk)
    response.release()
    return b"".join(chunks)[2:]


async def test_a_request_has_the_expected_head_and_body() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(OK)

    async with serving(serve) as url, Client() as client:
        target = Target(f"{url.replace('//', '//me:p%40ss@')}?a=b c", {"x-own": "1"})
        response = await client.send(target, b"body", {"traceparent": "t"})
        assert await response.chunk() == b"ok"
        response.close()
    (head, body), *_ = seen
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/x?a=b%20c HTTP/1.1"
    assert {"authorization: Basic bWU6cEBzcw==", "x-own: 1", "traceparent: t", "accept-encoding: identity"} <= {*lines}
    assert "me:" not in lines[1]
    assert body == b"body"


async def test_a_connection_is_reused_after_a_response_was_read_to_its_end() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await request_of(reader)
            writer.write(OK)

    async with serving(serve) as url, Client() as client:
        target = Target(url, {})
        assert [await whole(client, target) for _ in range(3)] == [b"ok"] * 3
        assert connections == 1
        response = await client.send(target, b"{}")
        response.close()
        await whole(client, target)
        assert connections == 2


async def test_a_kept_connection_that_the_server_closed_is_replaced_transparently() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await request_of(reader)
        writer.write(OK)
        if connections == 1:
            await request_of(reader)  # and leaves it without an answer

    async with serving(serve) as url, Client() as client:
        target = Target(url, {})
        assert await whole(client, target) == b"ok"
        assert await whole(client, target) == b"ok"
        assert connections == 2


async def test_backpressure_pauses_a_server_whose_response_is_not_read() -> None:
    written, size = 0, 64 * 2**20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while written < size:
            writer.write(b"x" * 2**16)
            written += 2**16
            await writer.drain()

    async with serving(serve) as url, Client() as client:
        response = await client.send(Target(url, {}), b"{}")
        before = -1
        while before != written:  # until the sockets between are full
            before = written
            for _ in range(50):
                await asyncio.sleep(0)
        assert written < size
        assert len(await response.chunk()) < MAX_UNREAD_BYTES + 2**20
        got = 0
        while chunk := await response.chunk():
            got += len(chunk)
        assert got > size // 2
        response.release()


async def test_a_self_signed_certificate_is_not_trusted(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK)

    async with serving(serve, context) as url, Client() as client:
        with pytest.raises(Unreachable, match="certificate"):
            await client.send(Target(url, {}), b"{}")
        client.ssl_context = ssl.create_default_context(cafile=certificate[0])
        assert await whole(client, Target(url, {})) == b"ok"


@pytest.mark.parametrize("url", ["ftp://x/", "http:///x", "127.0.0.1:8000", "http://x:port/", "http://a..b/"])
def test_an_invalid_address_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of several kinds)
        Target(url, {})


def test_a_header_value_cannot_inject_another_header() -> None:
    with pytest.raises(ValueError, match="line break"):
        Target("http://x/", {}).head(0, {"traceparent": "a\r\nx-evil: b"})
