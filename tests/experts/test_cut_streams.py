"""Streams in four APIs, cut into reads at random: the client gets the same bytes, however they arrive."""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict
from typing import Any

import pytest

from coe.core import Api
from coe.errors import ExpertError
from coe.experts.api_formats import API_FORMATS
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer
from coe.experts.http.client import Response, Target
from coe.experts.http.connection import Connection
from coe.experts.http.replies import ModelNameRewriter, StreamedReply
from coe.experts.replicas import TrackedReply
from coe.routing.conversation import Affinity, Conversation
from coe.usage import Usage

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = b'{"prompt_tokens":3,"completion_tokens":5}'
CHAT = [
    b'data: {"model":"served","choices":[{"index":0,"delta":{"content":"one"},"finish_reason":null}]}\n\n',
    b'data: {"model": "served","choices":[{"index":0,"delta":{"content":"[DO"},"finish_reason":""}],"usage":null}\n\n',
    b': comment\n\ndata: {"choices":[{"index":1,"delta":{"content":"\\"error\\""},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"[DONE]"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_1"}]}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"x"},"logprobs":NaN}],"usage":%b}\n\n' % USAGE,
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[{"index":1,"delta":{},"finish_reason": "length"}]}\n\n',
    b'data: {"choices":[],"usage": %b}\n\n' % USAGE,
    b'data: {"error":{"message":"out of memory"}}\n\n',
    b"data: [DONE]\n\n",
]
RESPONSES = [
    b'event: x\ndata: {"type":"response.output_text.delta","delta":"one"}\n\n',
    b'data: {"type":"response.output_text.delta","delta":"response.completed"}\n\n',
    b'data: {"type":"response.output_item.added","item":{"call_id":"call_1"}}\n\n',
    b'data: {"type":"response.completed","response":{"model":"served","output":[],"usage":%b}}\n\n' % USAGE,
    b'data: {"type":"response.incomplete","response":{"output":[]}}\n\n',
    b'data: {"type":"response.failed","response":{"error":{"message":"failed"}}}\n\n',
    b'data: {"type":"error","message":"failed"}\n\n',
]
MESSAGES = [
    b'data: {"type":"content_block_delta","delta":{"text":"one"}}\n\n',
    b'data: {"type":"content_block_start","content_block":{"type":"tool_use","id":"toolu_1"}}\n\n',
    b'data: {"type":"message_start","message":{"model":"served","usage":{"input_tokens":7}}}\n\n',
    b'data: {"type":"message_delta","usage":{"output_tokens":4}}\n\n',
    b'data: {"type":"ping"}\n\n',
    b'data: {"type":"error","error":{"message":"overloaded"}}\n\n',
    b'data: {"type":"message_stop"}\n\n',
]
EVENTS: dict[Api, list[bytes]] = {"chat": CHAT, "completions": CHAT, "responses": RESPONSES, "messages": MESSAGES}


class Silent(asyncio.Transport):
    def write(self, data: Any) -> None: ...

    def abort(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Relay:
    """A stream of an expert, from the bytes of its server to those of the client."""

    def __init__(self, api: Api) -> None:
        self.sent: list[bytes] = []
        self.usage = Usage()
        self.noted: set[bytes] = set()
        self.connection = Connection(asyncio.get_running_loop(), set())
        self.connection.connection_made(Silent())
        self._api = api

    async def run(self, **options: Any) -> None:
        await self.connection.send(b"head", b"")
        reply = StreamedReply(
            Response(self.connection, Target("http://server/v1", {})),
            api_format=API_FORMATS[self._api],
            errors=ErrorMapping("writer", key=""),
            rewriter=ModelNameRewriter(server_name="served", client_name="writer"),
            stream_idle_timeout=60.0,
            usage=Usage(),
            held=HeldAnswer(None),
            **options,
        )
        self.usage, affinity = reply.usage, Affinity()
        try:
            await reply.begin()
            conversation = Conversation((b"key",), (), b"", b"scope")
            noting = affinity.noting_calls(TrackedReply(reply, lambda *_: None), self._api, conversation, "writer")
            async for chunk in noting.chunks():
                self.sent.append(chunk)
        finally:
            self.noted = set(affinity._experts)
            await reply.aclose()


async def outcome(relay: Relay, reads: list[bytes], **options: Any) -> tuple[Any, ...]:
    """Relay a stream of these reads, after which the server closes. Return bytes, error, usage and noted calls."""
    task = asyncio.ensure_future(relay.run(**options))
    await settled()
    for read in reads:
        relay.connection.data_received(read)
        await settled()
    relay.connection.connection_lost(None)
    try:
        await task
        error = ""
    except (ExpertError, OSError) as failed:
        error = str(failed)
    return b"".join(relay.sent), error, asdict(relay.usage), relay.noted


async def settled() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def reads_of(events: list[bytes], chance: random.Random) -> list[bytes]:
    """The events as the reads of a socket, one chunk each, with one of the line ends."""
    style = chance.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r"))
    pieces = [event.replace(b"\n", style) for event in events]
    return [HEAD, *map(chunked, pieces), *([b"0\r\n\r\n"] if chance.random() < 0.8 else [])]


def cut_reads(reads: list[bytes], chance: random.Random) -> list[bytes]:
    pieces = []
    for read in reads:
        cuts = sorted(chance.randrange(len(read)) for _ in range(chance.randrange(4)))
        pieces += [read[start:end] for start, end in zip([0, *cuts], [*cuts, len(read)], strict=True)]
    return [piece for piece in pieces if piece]


async def compare(seed: int) -> None:
    """Compares one random stream with the same stream in smaller reads."""
    chance = random.Random(seed)
    api = chance.choice(list(EVENTS))
    ordinary = EVENTS[api][:3]
    events = [chance.choice(ordinary if chance.random() < 0.7 else EVENTS[api]) for _ in range(chance.randint(1, 9))]
    if chance.random() < 0.6:
        events.append(EVENTS[api][-1])
    reads = reads_of(events, chance)
    hides_usage = api in ("chat", "completions") and chance.random() < 0.5
    cut = await outcome(Relay(api), cut_reads(reads, chance), hides_usage=hides_usage)
    assert cut == await outcome(Relay(api), reads, hides_usage=hides_usage), reads


async def test_random_streams_are_the_same_however_they_are_cut() -> None:
    for seed in range(400):
        await compare(seed)
