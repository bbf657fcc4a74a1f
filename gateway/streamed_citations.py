"""Annotations in a stream of the Responses API: added where a text is done, and held by all that repeats the text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import orjson

from coe.core import Reply
from gateway.annotations import Passages, annotations_of, flat
from gateway.request.relay import EVENT_STREAM

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

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        reading = False
        async with aclosing(self._reply.pieces()) as pieces:
            async for piece in pieces:
                reading = reading or any(word in piece for word in _WORDS)
                yield b"".join(self._read(piece)) if reading else piece

    async def aclose(self) -> None:
        await self._reply.aclose()

    def _read(self, piece: bytes) -> Iterator[bytes]:
        end = 0
        for found in _EVENT.finditer(piece):
            end = found.end()
            yield from self._told(found[0])
        yield piece[end:]

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
