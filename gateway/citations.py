"""Where an expert was given passages, its answer says which, as OpenAI's APIs do: annotations."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from coe.core import Api, Reply
from coe.experts import sse
from coe.retrieval.passages import Passage
from gateway.relay import EVENT_STREAM
from gateway.trace import Trace

_CITED = re.compile(r"\[(\d{1,2})\]")
Answer = dict[str, Any]
Passages = Sequence[Passage]


def cited(reply: Reply, trace: Trace) -> Reply:
    """The reply with the passages that it was given, where there are any and the API has a place for them."""
    passages = trace.consultation.passages
    if not passages:
        return reply
    if reply.media_type != EVENT_STREAM:
        annotate = _PLAIN.get(trace.api)
        return reply if annotate is None else _Cited(reply, passages, annotate)
    return _Announced(reply, passages) if trace.api == "chat" else reply


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
        delta = {"role": "assistant", "content": "", "annotations": _annotations("", self._passages)}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return b"data: %b\n\n" % orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})

    async def aclose(self) -> None:
        await self._reply.aclose()


def _chat(answer: Answer, passages: Passages) -> None:
    for choice in answer["choices"]:
        message = choice["message"]
        message["annotations"] = [
            *(message.get("annotations") or []),
            *_annotations(message.get("content") or "", passages),
        ]


def _responses(answer: Answer, passages: Passages) -> None:
    for item in answer["output"]:
        for part in item.get("content") or []:
            if part.get("type") == "output_text":
                found = [_flat(one) for one in _annotations(part["text"], passages)]
                part["annotations"] = [*(part.get("annotations") or []), *found]


_PLAIN: dict[Api, Callable[[Answer, Passages], None]] = {"chat": _chat, "responses": _responses}


def _annotations(text: str, passages: Passages) -> list[dict[str, Any]]:
    mentions: dict[int, list[tuple[int, int]]] = {}
    for found in _CITED.finditer(text):
        mentions.setdefault(int(found[1]), []).append(found.span())
    return [
        _annotation(passage, span)
        for number, passage in enumerate(passages, 1)
        for span in mentions.get(number, [(len(text), len(text))])
    ]


def _annotation(passage: Passage, span: tuple[int, int]) -> dict[str, Any]:
    """A page is cited by its address, a file by the passage's id and its name."""
    title, source = passage.title or passage.source, passage.source
    place = {"start_index": span[0], "end_index": span[1]}
    if source.startswith(("http://", "https://")):
        return {"type": "url_citation", "url_citation": {"url": source, "title": title, **place}}
    return {"type": "file_citation", "file_citation": {"file_id": passage.id, "filename": title, **place}}


def _flat(annotation: dict[str, Any]) -> dict[str, Any]:
    """As the Responses API writes it, without the inner object; a file is cited at one place."""
    kind = annotation["type"]
    inner = dict(annotation[kind])
    if kind == "file_citation":
        inner = {"file_id": inner["file_id"], "filename": inner["filename"], "index": inner["end_index"]}
    return {"type": kind, **inner}
