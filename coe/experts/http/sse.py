"""Server-sent events as whole events: cut a byte stream at blank lines, and read the few facts the log needs.

JSON as servers write it: Python's own writer lets NaN, Infinity and lone surrogates pass, and clients read them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Raises ValueError. What is JSON costs no more than orjson takes."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise error from None


def dumps(value: Any) -> bytes:
    """As it was read: orjson makes null of NaN, and refuses lone surrogates."""
    return json.dumps(value, separators=(",", ":")).encode()


EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
MAX_EVENT = 16 * 2**20
"""Bytes of one event."""
_DONE = re.compile(rb"^data: *\[DONE\]", re.MULTILINE)
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"[^"]')  # some write `"finish_reason":""` all along
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_BLANK = re.compile(rb"\r?\n\r?\n")
_FOLDED = re.compile(rb"^data:.*(?:\ndata:.*)+", re.MULTILINE)
_FIELD = re.compile(rb"\A(?:data|event|id|retry)?:")


class EventBuffer:
    """Feeds on chunks as they arrive and gives back complete events only, so that an error can be told between two.

    Lines may end in CR LF, LF or CR, as the standard has it; what is given back has LF. Raises ValueError when an event
    is longer than `limit` bytes.
    """

    __slots__ = ("_limit", "_returned", "rest")

    def __init__(self, *, limit: int = MAX_EVENT) -> None:
        self.rest: bytes | bytearray = b""
        """What came after the last complete event."""
        self._limit = limit
        self._returned = False

    def feed(self, chunk: bytes) -> bytes:
        """All events completed by this chunk, one string; empty when none is."""
        if self._returned or b"\r" in chunk:
            chunk = self._with_newlines(chunk)
        if not self.rest and chunk.endswith(b"\n\n"):  # nearly always
            return chunk
        end = chunk.rfind(b"\n\n") + 2
        if end == 1:  # rfind found nothing
            end = int(chunk.startswith(b"\n") and self.rest.endswith(b"\n"))
        if not end:
            self._keep(chunk)
            return b""
        events, self.rest = b"".join((self.rest, chunk[:end])), chunk[end:]
        return events

    def _keep(self, chunk: bytes) -> None:
        """A large event comes in thousands of chunks: neither copied nor searched again for each of them."""
        if not self.rest:
            self.rest = chunk
        elif isinstance(self.rest, bytes):
            self.rest = bytearray(self.rest) + chunk
        else:
            self.rest += chunk
        if len(self.rest) > self._limit:
            raise ValueError(f"an event is longer than {self._limit} bytes")

    def _with_newlines(self, chunk: bytes) -> bytes:
        """A CR ends its line at once, since the next byte may be long in coming; an LF that follows is part of it."""
        if chunk:
            chunk = chunk.removeprefix(b"\n") if self._returned else chunk
            self._returned = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class Types:
    """Some values of the `type` that every event of an API carries, to be looked for."""

    __slots__ = ("_names", "_words")

    def __init__(self, *names: str) -> None:
        self._names = names
        self._words = tuple(b'"%b"' % name.encode() for name in names)

    def fits(self, event: Any) -> bool:
        """Whether the JSON of an event is of one of these types."""
        return isinstance(event, dict) and event.get("type") in self._names

    def among(self, events: bytes) -> Iterator[dict[str, Any]]:
        """The JSON of the events of these types; cheap where none of the words occurs."""
        if any(word in events for word in self._words):
            yield from filter(self.fits, _parsed(b'"type"', events.splitlines()))


def never(_: Any) -> bool:
    """Of an API where no event is of the kind."""
    return False


def choiceless(event: Any) -> bool:
    """Whether a chunk brings no choice, or `null`: Azure tells first what it thinks of the prompt, others the tokens
    last."""
    return isinstance(event, dict) and not event.get("choices", True) and not event.get("error")


def first_event(events: bytes, *, preamble: Callable[[Any], bool] = never) -> Any:
    """The JSON of the first data line, None for comments, [DONE] and events that are `preamble`. Raises ValueError when
    this is no event stream."""
    if not _FIELD.match(events):
        raise ValueError("it does not begin with an event")
    for line in events.splitlines():
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            event = loads(data)
            if not preamble(event):
                return event
    return None


def unfolded(events: bytes) -> bytes:
    """The events with their data in one line each: JSON can be broken only where a space may stand."""
    return _FOLDED.sub(lambda lines: lines[0].replace(b"\ndata:", b" "), events)


def done(events: bytes) -> bool:
    """Whether the stream says that it is at its end."""
    return b"[DONE]" in events and _DONE.search(events) is not None


def error(events: bytes) -> Any:
    """What the first error event among them carries, None without one."""
    return _holding("error", events)


def before(failed: Callable[[bytes], Any], events: bytes) -> bytes:
    """The events before the first one that has `failed`."""
    good = 0
    for blank in _BLANK.finditer(events):
        if failed(events[good : blank.end()]):
            break
        good = blank.end()
    return events[:good]


def cut_after(ended: Callable[[bytes], bool], events: bytes) -> tuple[bytes, bytes]:
    """The events up to the first one that has `ended` the stream, that one included; and what follows it."""
    good = before(ended, events)
    end = _BLANK.search(events, len(good) + 1)
    at = end.end() if end else len(events)
    return events[:at], events[at:]


def finished(events: bytes) -> bool:
    """Whether one of the events ends a choice."""
    return _FINISHED.search(events) is not None


def ends(events: bytes) -> Iterator[Any]:
    """The index of each choice that one of the events ends."""
    for event in _parsed(b'"finish_reason"', events.splitlines()):
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("finish_reason"):
                yield choice.get("index")


def usage(events: bytes) -> dict[str, Any] | None:
    """The last token counts among the events, where there are some: with each chunk some servers count anew."""
    if _USAGE.search(events) is None:  # many send `"usage":null` all along
        return None
    for event in _parsed(b'"usage"', reversed(events.splitlines())):
        if isinstance(tokens := event.get("usage"), dict):
            return tokens
    return None


def without_usage(events: bytes) -> bytes:
    """The events without the one that holds token counts and no choice, which a server sends last on request."""
    kept, at = [], 0
    for blank in _BLANK.finditer(events):
        event = events[at : blank.end()]
        if not _only_usage(event):
            kept.append(event)
        at = blank.end()
    return b"".join((*kept, events[at:]))


def _only_usage(event: bytes) -> bool:
    found = next(_parsed(b'"usage"', event.splitlines()), None) if _USAGE.search(event) else None
    return found is not None and found.get("choices") == [] and isinstance(found.get("usage"), dict)


def _holding(key: str, events: bytes) -> dict[str, Any] | None:
    """The first JSON object among the events that has something under `key`; cheap where the word does not occur."""
    word = b'"%b"' % key.encode()
    if word not in events:
        return None
    return next((event for event in _parsed(word, events.splitlines()) if event.get(key)), None)


def _parsed(word: bytes, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of the data lines that hold a word."""
    for line in lines:
        if line.startswith(b"data:") and word in line:
            try:
                found = loads(line[5:])
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found


def error_event(body: bytes) -> bytes:
    """An event that carries an OpenAI error body."""
    return b"data: " + body + b"\n\n"
