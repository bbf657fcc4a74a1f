"""Adds citations of retrieved passages to an answer, as OpenAI's APIs write them: annotations.

`cited` wraps a reply of the Chat Completions or Responses API. Each mention such as [1] gets an annotation; a source
without a mention gets one at the end of the text. A chat stream announces its sources in one chunk at the beginning,
because the positions of mentions are not known yet. A Responses stream gets them where a text is complete, and in every
later event that repeats the text. An answer in an unexpected form passes through unchanged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any

import orjson

from coe.core import Api, Reply
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.retrieval.passages import Passage

JsonObject = dict[str, Any]
Passages = Sequence[Passage]
"""The passages that the expert was given, in the order of their numbers."""
TextPosition = tuple[Any, Any]
"""Index of an output item, and index of a part of its content."""
MAX_MENTIONS = 1_000
"""Mentions of one text that get an annotation, which is a hundred times as long."""
_MENTION = re.compile(r"\[(\d{1,2})\]")
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, LookupError)
"""Errors of reading an answer that does not have its API's form."""


def cited(reply: Reply, passages: Passages, api: Api) -> Reply:
    """The reply with citations of the passages, if the API has a place for them."""
    if reply.media_type != EVENT_STREAM:
        annotate = _ANNOTATE.get(api)
        return reply if annotate is None else _CitedAnswer(reply, passages, annotate)
    streamed = _STREAMS.get(api)
    return reply if streamed is None else streamed(reply, passages)


def annotations_of(text: str, passages: Passages) -> list[JsonObject]:
    """The annotations of a text in the form of Chat Completions."""
    mentions: dict[int, list[tuple[int, int]]] = {}
    for mention in islice(_MENTION.finditer(text), MAX_MENTIONS):
        mentions.setdefault(int(mention[1]), []).append(mention.span())
    return [
        _annotation(passage, span)
        for number, passage in enumerate(passages, 1)
        for span in mentions.get(number, [(len(text), len(text))])
    ]


def _annotation(passage: Passage, span: tuple[int, int]) -> JsonObject:
    """A citation of a page by its address, or of a file by the passage's id and name."""
    title, source = passage.title or passage.source, passage.source
    place = {"start_index": span[0], "end_index": span[1]}
    if source.startswith(("http://", "https://")):
        return {"type": "url_citation", "url_citation": {"url": source, "title": title, **place}}
    return {"type": "file_citation", "file_citation": {"file_id": passage.id, "filename": title, **place}}


def flat(annotation: JsonObject) -> JsonObject:
    """An annotation in the form of the Responses API: without the inner object; a file has one index."""
    kind = annotation["type"]
    inner = dict(annotation[kind])
    if kind == "file_citation":
        inner = {"file_id": inner["file_id"], "filename": inner["filename"], "index": inner["end_index"]}
    return {"type": kind, **inner}


class _Cited:
    """A reply whose chunks a subclass rewrites."""

    def __init__(self, reply: Reply, passages: Passages) -> None:
        self.media_type, self.usage = reply.media_type, reply.usage
        self._reply = reply
        self._passages = passages

    async def aclose(self) -> None:
        await self._reply.aclose()


class _CitedAnswer(_Cited):
    """A JSON answer with annotations."""

    def __init__(self, reply: Reply, passages: Passages, annotate: Callable[[JsonObject, Passages], None]) -> None:
        super().__init__(reply, passages)
        self._annotate = annotate

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        body = b"".join([chunk async for chunk in self._reply.chunks()])
        try:
            answer = orjson.loads(body)
            self._annotate(answer, self._passages)
            body = orjson.dumps(answer)
        except _MALFORMED:
            pass
        yield body


class _CitedChatStream(_Cited):
    """A stream of chat chunks with one more chunk at its beginning, which names the sources."""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        first = True
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                yield (self._sources_chunk(chunk) if first else b"") + chunk
                first = False

    def _sources_chunk(self, chunk: bytes) -> bytes:
        """The event that names the sources, with the id of the `chunk` that follows it."""
        try:
            event = sse.first_event(chunk.lstrip(b"\r\n"))
        except ValueError:
            event = None
        if not isinstance(event, dict):
            return b""
        head = {name: event[name] for name in ("id", "created", "model") if name in event}
        delta = {"role": "assistant", "content": "", "annotations": annotations_of("", self._passages)}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return b"data: %b\n\n" % orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})


_TEXT_DONE, _ANNOTATION_ADDED = "response.output_text.done", "response.output_text.annotation.added"
_PART_DONE, _ITEM_DONE = "response.content_part.done", "response.output_item.done"
_RESPONSE_ENDS = ("response.completed", "response.incomplete")
_FIRST_EVENTS_READ = (_TEXT_DONE.encode(), _ANNOTATION_ADDED.encode())
_EVENT = re.compile(rb".*?(?:\r?\n){2}", re.DOTALL)
_DATA = re.compile(rb"^data:(.*?)\r?$", re.MULTILINE)


class _CitedResponsesStream(_Cited):
    """A stream of the Responses API with annotations. Chunks pass through until the first text is complete; every
    later event is parsed and renumbered."""

    def __init__(self, reply: Reply, passages: Passages) -> None:
        super().__init__(reply, passages)
        self._inserted = 0
        self._own_annotations: Counter[TextPosition] = Counter()
        self._annotations: dict[TextPosition, list[JsonObject]] = {}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        reading = False
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                reading = reading or any(name in chunk for name in _FIRST_EVENTS_READ)
                yield b"".join(self._rewritten(chunk)) if reading else chunk

    def _rewritten(self, chunk: bytes) -> Iterator[bytes]:
        end = 0
        for event in _EVENT.finditer(chunk):
            end = event.end()
            yield from self._rewritten_event(event[0])
        yield chunk[end:]

    def _rewritten_event(self, raw: bytes) -> Iterator[bytes]:
        """The event with its annotations, after the events that it causes."""
        data = _DATA.search(raw)
        try:
            event = orjson.loads(data[1]) if data else None
            inserted = list(self._annotate_event(event)) if isinstance(event, dict) else []
        except _MALFORMED:
            data, inserted = None, []
        if data is None or not isinstance(event, dict):
            yield raw
            return
        for one in inserted:
            yield b"event: %b\ndata: %b\n\n" % (_ANNOTATION_ADDED.encode(), orjson.dumps(one))
        yield raw[: data.start(1)] + b" " + orjson.dumps(event) + raw[data.end(1) :]

    def _annotate_event(self, event: JsonObject) -> Iterator[JsonObject]:
        """Add annotations to the event and renumber it. Yields the events to insert before it."""
        kind, position = event["type"], (event.get("output_index"), event.get("content_index"))
        if kind == _ANNOTATION_ADDED:
            self._own_annotations[position] += 1
        elif kind == _TEXT_DONE:
            self._annotations[position] = [flat(one) for one in annotations_of(event["text"], self._passages)]
            for index, one in enumerate(self._annotations[position], self._own_annotations[position]):
                head = {name: event[name] for name in ("item_id", "output_index", "content_index")}
                added = {"type": _ANNOTATION_ADDED, **head, "annotation_index": index, "annotation": one}
                yield added | self._renumbered(event)
                self._inserted += 1
        elif kind == _PART_DONE:
            self._annotate_part(event["part"], position)
        elif kind == _ITEM_DONE:
            self._annotate_item(event["item"], position[0])
        elif kind in _RESPONSE_ENDS:
            for output, item in enumerate(event["response"]["output"]):
                self._annotate_item(item, output)
        event |= self._renumbered(event)

    def _renumbered(self, event: JsonObject) -> JsonObject:
        """The event's sequence number, increased by the number of inserted events."""
        number = event.get("sequence_number")
        return {"sequence_number": number + self._inserted} if isinstance(number, int) else {}

    def _annotate_item(self, item: JsonObject, output: Any) -> None:
        for content, part in enumerate(item.get("content") or []):
            self._annotate_part(part, (output, content))

    def _annotate_part(self, part: JsonObject, position: TextPosition) -> None:
        if found := self._annotations.get(position):
            _append(part, found)


def _append(part: JsonObject, annotations: list[JsonObject]) -> None:
    part["annotations"] = [*(part.get("annotations") or []), *annotations]


def _annotate_chat(answer: JsonObject, passages: Passages) -> None:
    for choice in answer["choices"]:
        message = choice["message"]
        _append(message, annotations_of(message.get("content") or "", passages))


def _annotate_response(answer: JsonObject, passages: Passages) -> None:
    for item in answer["output"]:
        for part in item.get("content") or []:
            if part.get("type") == "output_text":
                _append(part, [flat(one) for one in annotations_of(part["text"], passages)])


_ANNOTATE: dict[Api, Callable[[JsonObject, Passages], None]] = {"chat": _annotate_chat, "responses": _annotate_response}
_STREAMS: dict[Api, Callable[[Reply, Passages], Reply]] = {"chat": _CitedChatStream, "responses": _CitedResponsesStream}
