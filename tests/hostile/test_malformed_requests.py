"""Requests that are not valid HTTP/1.1, as bytes on a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.gateway.served import Served, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served")) as served:
        yield served


async def answer_to(served: Served, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost:\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nHost: evil.example\r\n",
        b"GET /health/live HTTP/1.1\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 0\r\n",
    ],
)
async def test_no_host_or_several_are_refused_with_the_reason(served: Served, head: bytes) -> None:
    answer = await answer_to(served, head + b"connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_host"' in answer
    assert b"one Host header" in answer


@pytest.mark.parametrize(
    "lines",
    [
        b"host : localhost\r\n",
        b"host: localhost\r\nx-a: 1\r\n folded\r\n",
        b"host: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n",
        b"host: localhost\r\ncontent-length: +1\r\n",
        b"host: localhost\r\nx-a: \x00\r\n",
        b"host: localhost\r\nx-a: 1\n",
        b"host: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"host: localhost\r\ntransfer-encoding: chunked, identity\r\n",
    ],
)
async def test_what_proxies_read_in_two_ways_is_refused_by_the_server(served: Served, lines: bytes) -> None:
    answer = await answer_to(served, b"GET /v1/models HTTP/1.1\r\n" + lines + b"connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
