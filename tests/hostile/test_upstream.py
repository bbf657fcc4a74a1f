"""Servers of experts that frame their answers ambiguously, or send data after the end."""

from __future__ import annotations

import asyncio

import pytest

from coe.core import Api
from coe.experts.http.client import Client, ProtocolError, Target
from tests.experts.faulty_server import CHUNK, DONE, LAST
from tests.experts.reading import Reading
from tests.experts.test_client import request_of, serving, whole
from tests.experts.test_odd_streams import relayed, streamed

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
EVENT = CHUNK % b"clever"
BYE = b'data: {"type":"message_stop"}\n\n'
HELLO = b'data: {"type":"message_start","message":{"usage":{"input_tokens":1,"output_tokens":0}}}\n\n'


@pytest.mark.parametrize("at_once", [True, False])
def test_informational_answers_without_end_are_refused(at_once: bool) -> None:
    many = EARLY * 100_000
    size = len(many) if at_once else len(EARLY)
    answer = Reading()

    def feed() -> None:
        for at in range(0, len(many), size):
            answer.feed(many[at : at + size])

    with pytest.raises(ProtocolError, match="a head that is too long"):
        feed()


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        HEAD + b"Transfer-Encoding: \r\nContent-Length: 5\r\n\r\n",
        HEAD + b"transfer-encoding: identity\r\ncontent-length: 5\r\n\r\n",
        HEAD + b"transfer-encoding: \r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\n",
        HEAD + b"content-length: 5, 6\r\n\r\n",
        b"HTTP/1.1 000 OK\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 099 OK\r\ncontent-length: 5\r\n\r\n",
    ],
)
async def test_an_ambiguous_length_is_refused_and_its_connection_closed(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reading().feed(head + b"hello")
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(head + b"5\r\nhello\r\n0\r\n\r\n")
        await reader.read()
        closed.set()

    async with serving(serve) as url, Client() as client:
        target = Target(url, {})
        with pytest.raises(ConnectionError):
            await whole(client, target)
        assert not target.idle
        await closed.wait()


async def relayed_by(*chunks: bytes, api: Api = "chat") -> bytes:
    return await relayed(streamed(*chunks, api=api))


@pytest.mark.parametrize(
    "chunks",
    [
        [EVENT + LAST + DONE + EVENT],
        [EVENT, LAST + DONE + EVENT + DONE],
        [EVENT, LAST, DONE, EVENT],
        [EVENT, LAST, DONE + b"data: {"],
        [EVENT, LAST, DONE + b"data: {", b'"choices": []}\n\n'],
        [EVENT, LAST + DONE + b'data: {"error":{"message":"late"}}\n\n'],
        [EVENT, LAST + DONE + b": comment\n\n"],
    ],
)
async def test_nothing_is_relayed_after_done(chunks: list[bytes]) -> None:
    assert await relayed_by(*chunks) == EVENT + LAST + DONE


async def test_nothing_is_relayed_after_the_end_of_messages() -> None:
    text = b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}\n\n'
    assert await relayed_by(HELLO, text, BYE + text, api="messages") == HELLO + text + BYE
