"""Where an expert was given passages, its answer says which, as OpenAI's APIs do: annotations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import orjson

from coe.core import Api, Reply
from coe.experts.http import sse
from gateway.annotations import Passages, annotations_of, flat
from gateway.request.relay import EVENT_STREAM
from gateway.request.trace import Trace
from gateway.streamed_citations import Annotated

Answer = dict[str, Any]


def cited(reply: Reply, trace: Trace) -> Reply:
    """The reply with the passages that it was given, where there are any and the API has a place for them."""
    passages = trace.consultation.passages
    if not passages:
        return reply
    if reply.media_type != EVENT_STREAM:
        annotate = _PLAIN.get(trace.api)
        return reply if annotate is None else _Cited(reply, passages, annotate)
    streamed = _STREAMED.get(trace.api)
    return reply if streamed is None else streamed(reply, passages)


class _Cited:
    """A plain answer: each mention of a source like [1] gets an annotation; a source without any, one at the end."""

    def __init__(self, reply: Reply, passages: Passages, annotate: Callable[[Answer, Passages], None]) -> None:
        self.media_type, self.usage = reply.media_type, reply.usage
        self._reply = reply
        self._passages = passages
        self._annotate = annotate

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        body = b"".join([piece async for piece in self._reply.pieces()])
        try:
            answer = orjson.loads(body)
            self._annotate(answer, self._passages)
            body = orjson.dumps(answer)
        except (ValueError, TypeError, KeyError, AttributeError, LookupError):
            pass  # an answer of another form goes as it came
        yield body

    async def aclose(self) -> None:
        await self._reply.aclose()


class _Announced:
    """A stream of chat chunks: one chunk more at its beginning names the sources, since where the answer will mention
    them is not known."""

    media_type = EVENT_STREAM

    def __init__(self, reply: Reply, passages: Passages) -> None:
        self.usage = reply.usage
        self._reply = reply
        self._passages = passages

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        first = True
        async with aclosing(self._reply.pieces()) as pieces:
            async for piece in pieces:
                yield (self._chunk(piece) if first else b"") + piece
                first = False

    def _chunk(self, piece: bytes) -> bytes:
        """With the id of the chunk that it stands before."""
        try:
            event = sse.first_event(piece.lstrip(b"\r\n"))
        except ValueError:
            event = None
        if not isinstance(event, dict):
            return b""
        head = {name: event[name] for name in ("id", "created", "model") if name in event}
        delta = {"role": "assistant", "content": "", "annotations": annotations_of("", self._passages)}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return b"data: %b\n\n" % orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})

    async def aclose(self) -> None:
        await self._reply.aclose()


def _chat(answer: Answer, passages: Passages) -> None:
    for choice in answer["choices"]:
        message = choice["message"]
        message["annotations"] = [
            *(message.get("annotations") or []),
            *annotations_of(message.get("content") or "", passages),
        ]


def _responses(answer: Answer, passages: Passages) -> None:
    for item in answer["output"]:
        for part in item.get("content") or []:
            if part.get("type") == "output_text":
                found = [flat(one) for one in annotations_of(part["text"], passages)]
                part["annotations"] = [*(part.get("annotations") or []), *found]


_PLAIN: dict[Api, Callable[[Answer, Passages], None]] = {"chat": _chat, "responses": _responses}
_STREAMED: dict[Api, Callable[[Reply, Passages], Reply]] = {"chat": _Announced, "responses": Annotated}
