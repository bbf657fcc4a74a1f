"""Where an expert was given passages, its answer says which, as OpenAI's APIs do: annotations.

What an answer cites, as OpenAI's APIs write it.

Annotations in a stream of the Responses API: added where a text is done, and held by all that repeats the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from coe.core import Api, Reply
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.retrieval.passages import Passage

_DONE, _ADDED = "response.output_text.done", "response.output_text.annotation.added"
_PART, _ITEM = "response.content_part.done", "response.output_item.done"
_ENDS = ("response.completed", "response.incomplete")
_WORDS = (_DONE.encode(), _ADDED.encode())
_EVENT = re.compile(rb".*?(?:\r?\n){2}", re.DOTALL)
_DATA = re.compile(rb"^data:(.*?)\r?$", re.MULTILINE)
Event = dict[str, Any]
Place = tuple[Any, Any]
"""An index among the outputs, and one among the parts of that."""


class Annotated:
    """Pieces go as they come until a text is done; from there on each event is read, and counted anew."""

    media_type = EVENT_STREAM

    def __init__(self, reply: Reply, passages: Passages) -> None:
        self.usage = reply.usage
        self._reply = reply
        self._passages = passages
        self._more = 0
        self._own: Counter[Place] = Counter()
        self._found: dict[Place, list[Event]] = {}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        reading = False
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                reading = reading or any(word in chunk for word in _WORDS)
                yield b"".join(self._read(chunk)) if reading else chunk

    async def aclose(self) -> None:
        await self._reply.aclose()

    def _read(self, chunk: bytes) -> Iterator[bytes]:
        end = 0
        for found in _EVENT.finditer(chunk):
            end = found.end()
            yield from self._told(found[0])
        yield chunk[end:]

    def _told(self, raw: bytes) -> Iterator[bytes]:
        """The event, after those that it brings. One of another form goes as it came."""
        data = _DATA.search(raw)
        try:
            event = orjson.loads(data[1]) if data else None
            new = list(self._amended(event)) if isinstance(event, dict) else []
        except (ValueError, TypeError, KeyError, AttributeError, LookupError):
            data, new = None, []
        if data is None or not isinstance(event, dict):
            yield raw
            return
        for one in new:
            yield b"event: %b\ndata: %b\n\n" % (_ADDED.encode(), orjson.dumps(one))
        yield raw[: data.start(1)] + b" " + orjson.dumps(event) + raw[data.end(1) :]

    def _amended(self, event: Event) -> Iterator[Event]:
        """Put annotations where they belong in the event; what is to be told before it."""
        kind, place = event["type"], (event.get("output_index"), event.get("content_index"))
        if kind == _ADDED:
            self._own[place] += 1
        elif kind == _DONE:
            self._found[place] = [flat(one) for one in annotations_of(event["text"], self._passages)]
            for at, one in enumerate(self._found[place], self._own[place]):
                head = {name: event[name] for name in ("item_id", "output_index", "content_index")}
                yield {"type": _ADDED, **head, "annotation_index": at, "annotation": one} | self._counted(event)
                self._more += 1
        elif kind == _PART:
            self._annotate(event["part"], place)
        elif kind == _ITEM:
            self._annotate_all(event["item"], place[0])
        elif kind in _ENDS:
            for output, item in enumerate(event["response"]["output"]):
                self._annotate_all(item, output)
        event |= self._counted(event)

    def _counted(self, event: Event) -> Event:
        number = event.get("sequence_number")
        return {"sequence_number": number + self._more} if isinstance(number, int) else {}

    def _annotate_all(self, item: Event, output: Any) -> None:
        for content, part in enumerate(item.get("content") or []):
            self._annotate(part, (output, content))

    def _annotate(self, part: Event, place: Place) -> None:
        if found := self._found.get(place):
            part["annotations"] = [*(part.get("annotations") or []), *found]


Passages = Sequence[Passage]
"""Those that the expert was given, in the order of their numbers."""
_CITED = re.compile(r"\[(\d{1,2})\]")


def annotations_of(text: str, passages: Passages) -> list[dict[str, Any]]:
    """As Chat Completions writes them: one for each mention like [1], and one at the end for a source without any."""
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


def flat(annotation: dict[str, Any]) -> dict[str, Any]:
    """As the Responses API writes it, without the inner object; a file is cited at one place."""
    kind = annotation["type"]
    inner = dict(annotation[kind])
    if kind == "file_citation":
        inner = {"file_id": inner["file_id"], "filename": inner["filename"], "index": inner["end_index"]}
    return {"type": kind, **inner}


Answer = dict[str, Any]


def cited(reply: Reply, passages: Passages, api: Api) -> Reply:
    """The reply with the passages that it was given, where there are any and the API has a place for them."""
    if reply.media_type != EVENT_STREAM:
        annotate = _PLAIN.get(api)
        return reply if annotate is None else _Cited(reply, passages, annotate)
    streamed = _STREAMED.get(api)
    return reply if streamed is None else streamed(reply, passages)


class _Cited:
    """A plain answer: each mention of a source like [1] gets an annotation; a source without any, one at the end."""

    def __init__(self, reply: Reply, passages: Passages, annotate: Callable[[Answer, Passages], None]) -> None:
        self.media_type, self.usage = reply.media_type, reply.usage
        self._reply = reply
        self._passages = passages
        self._annotate = annotate

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        body = b"".join([chunk async for chunk in self._reply.chunks()])
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

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        first = True
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                yield (self._chunk(chunk) if first else b"") + chunk
                first = False

    def _chunk(self, chunk: bytes) -> bytes:
        """With the id of the chunk that it stands before."""
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
