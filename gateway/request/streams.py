"""Keeps a silent stream alive: proxies and clients close connections that carry no bytes for a while.

`gateway.chat` wraps the `send` of every streamed request in a `KeepAlive`.

Adds what a request cost to the token counts at the end of a stream of the Chat Completions API, as OpenRouter does.

Adds citations of retrieved passages to answers of this API, as OpenAI writes them: annotations.

Each mention such as [1] gets an annotation; a source without a mention gets one at the end of the text. A stream
announces its sources in one chunk at the beginning, because the positions of mentions are not known yet. An answer in
an unexpected form passes through unchanged.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any, Self

import orjson
from starlette.types import Message, Send

from coe.core import Chunks
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.retrieval.insertion import Passage
from gateway.dialects import Headers
from gateway.request.trace import Trace

RECHECK_INTERVAL = 0.5
"""Largest pause in seconds between two checks whether the status of a silent stream is final."""


def stream_head(headers: Headers, *, media_type: str = EVENT_STREAM) -> Message:
    """The start of a response that is sent in pieces."""
    fields = [(b"content-type", media_type.encode("latin-1")), (b"cache-control", b"no-cache"), *headers]
    return {"type": "http.response.start", "status": 200, "headers": fields}


class KeepAlive:
    """The `send` of one streamed request, as a context manager.

    After `interval` seconds in which nothing was sent it sends `event`, which clients ignore. Before the first event of
    the answer it sends the response headers too, but only while no other expert can take over from the one that is
    being called: from then on the status is 200, and a failure is an event of the stream. Silence of a client that does
    not read is not counted.
    """

    def __init__(self, trace: Trace, send: Send, *, event: bytes, interval: float) -> None:
        self._trace = trace
        self._send = send
        self._message: Message = {"type": "http.response.body", "body": event, "more_body": True}
        self._interval = interval
        self._clock = asyncio.get_running_loop().time
        self._latest = self._clock() - trace.elapsed_ms() / 1000
        """Time of the latest byte, by the event loop's clock; at first that of the request's arrival."""
        self._sending = asyncio.Lock()
        self._head_sent = False
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None  # no cycle of references

    async def send(self, message: Message) -> None:
        """Send a message of the answer. The headers are left out if they are sent already."""
        async with self._sending:
            if message["type"] == "http.response.start":
                if self._head_sent:
                    return
                self._head_sent = True
            await self._send(message)
            self._latest = self._clock()

    async def _watch(self) -> None:
        """Sends an event whenever the stream was silent for the interval."""
        with suppress(OSError):  # the client has left, which ends the request
            while True:
                if (pause := self._latest + self._interval - self._clock()) > 0:
                    await asyncio.sleep(pause)
                elif not self._head_sent and not self._trace.attempts.sole_expert:
                    await asyncio.sleep(min(self._interval, RECHECK_INTERVAL))
                else:
                    async with self._sending:
                        if self._latest + self._interval <= self._clock():
                            await self._emit()

    async def _emit(self) -> None:
        if not self._head_sent:
            self._head_sent, self._trace.status = True, 200
            await self._send(stream_head(self._trace.early_headers()))
        await self._send(self._message)
        self._latest = self._clock()


_USAGE = re.compile(rb'"usage"\s*:\s*\{(\s*\})?')
"""The beginning of token counts. In text that a model wrote, the quotes are escaped."""


def with_cost(chunk: bytes, trace: Trace) -> bytes:
    """The chunk with `usage.cost` in US dollars, if it has token counts and all of them are known."""
    if trace.api != "chat" or b'"usage"' not in chunk or (found := _USAGE.search(chunk)) is None:
        return chunk
    if (cost := trace.cost) is None:
        return chunk
    key = b'"usage":{"cost":%b%b' % (orjson.dumps(round(cost, 10)), b"}" if found[1] else b",")
    return b"%b%b%b" % (chunk[: found.start()], key, chunk[found.end() :])


MAX_MENTIONS = 1_000
"""Mentions of one text that get an annotation, which is a hundred times as long."""
_MENTION = re.compile(r"\[(\d{1,2})\]")
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, LookupError)
"""Errors of reading an answer that does not have the API's form."""


async def cited(chunks: Chunks, passages: Sequence[Passage], *, media_type: str) -> AsyncGenerator[bytes, None]:
    """The chunks of an answer with citations of the passages, which are in the order of their numbers."""
    cite = _add_sources if media_type == sse.EVENT_STREAM else _add_annotations
    is_first = True
    async with aclosing(chunks):
        async for chunk in chunks:
            if is_first:  # an answer that is no stream has one chunk
                with suppress(*_MALFORMED):
                    chunk = cite(chunk, passages)
                is_first = False
            yield chunk


def _add_annotations(chunk: bytes, passages: Sequence[Passage]) -> bytes:
    answer = orjson.loads(chunk)
    for choice in answer["choices"]:
        message = choice["message"]
        own = message.get("annotations") or []
        message["annotations"] = [*own, *annotations_of(message.get("content") or "", passages)]
    return orjson.dumps(answer)


def _add_sources(chunk: bytes, passages: Sequence[Passage]) -> bytes:
    """The chunk after an event that names the sources, with the same id."""
    event = sse.first_event(chunk.lstrip(b"\r\n"))
    head = {name: event[name] for name in ("id", "created", "model") if name in event}
    delta = {"role": "assistant", "content": "", "annotations": annotations_of("", passages)}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    sources = orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})
    return b"data: %b\n\n%b" % (sources, chunk)


def annotations_of(text: str, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Citations of pages by their address, and of files by the passage's id and name."""
    mentions: dict[int, list[tuple[int, int]]] = {}
    for mention in islice(_MENTION.finditer(text), MAX_MENTIONS):
        mentions.setdefault(int(mention[1]), []).append(mention.span())
    annotations = []
    for number, passage in enumerate(passages, 1):
        title, kind = passage.title or passage.source, "file_citation"
        source = {"file_id": passage.id, "filename": title}
        if passage.source.startswith(("http://", "https://")):
            kind, source = "url_citation", {"url": passage.source, "title": title}
        for start, end in mentions.get(number, [(len(text), len(text))]):
            annotations.append({"type": kind, kind: source | {"start_index": start, "end_index": end}})
    return annotations
