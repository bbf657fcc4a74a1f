"""Server-sent events: splits a byte stream into complete events, and finds the end, errors and token counts.

Most functions search for a substring before they parse JSON, so events without it cost little. The API formats, the
drafts of recipes and the gateway's dialects use this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from coe import json_text

EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
"""A comment, which every client of server-sent events ignores."""
MAX_EVENT_BYTES = 16 * 2**20
"""Bytes of one event."""
_DONE = re.compile(rb"^data: *\[DONE\]", re.MULTILINE)
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"[^"]')  # some servers send `"finish_reason":""` in every chunk
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_BLANK = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"\A(?:data|event|id|retry)?:")


class EventBuffer:
    """Accepts chunks as they arrive and returns complete events only, so that an error can be inserted between two.

    Lines may end in CR LF, LF or CR, as the standard allows; returned events use LF. Raises ValueError if an event is
    longer than `limit` bytes.
    """

    def __init__(self, *, limit: int = MAX_EVENT_BYTES) -> None:
        self.rest = bytearray()
        """The bytes after the last complete event."""
        self._limit = limit
        self._returned = False

    def feed(self, chunk: bytes) -> bytes:
        """Returns all events that this chunk completes, as one string; empty if none."""
        if self._returned or b"\r" in chunk:
            chunk = self._with_newlines(chunk)
        if not self.rest and chunk.endswith(b"\n\n"):  # the usual case
            return chunk
        searched = max(len(self.rest) - 1, 0)  # a large event arrives in thousands of chunks
        self.rest += chunk
        end = self.rest.rfind(b"\n\n", searched) + 2
        if end == 1:  # rfind found nothing
            if len(self.rest) > self._limit:
                raise ValueError(f"an event is longer than {self._limit} bytes")
            return b""
        events = bytes(self.rest[:end])
        del self.rest[:end]
        return events

    def _with_newlines(self, chunk: bytes) -> bytes:
        """A CR ends its line at once, since the next byte may arrive much later; a following LF belongs to it."""
        if chunk:
            chunk = chunk.removeprefix(b"\n") if self._returned else chunk
            self._returned = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class EventTypes:
    """A set of values of the `type` field that every event of an API carries."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._any = re.compile(b'"(?:%b)"' % b"|".join(re.escape(name.encode()) for name in names)).search

    def matches(self, event: Any) -> bool:
        """True if a parsed event has one of these types."""
        return isinstance(event, dict) and event.get("type") in self._names

    def find(self, events: bytes) -> Iterator[dict[str, Any]]:
        """Yields the parsed events of these types."""
        if self._any(events):
            yield from filter(self.matches, _parsed(b'"type"', events.splitlines()))


def never(_: Any) -> bool:
    """Matches nothing, for APIs that have no such event."""
    return False


def has_no_choice(event: Any) -> bool:
    """True if a chunk has no choice, or `null` choices: Azure sends content filter results first, others token counts
    last."""
    return isinstance(event, dict) and not event.get("choices", True) and not event.get("error")


def first_event(events: bytes, *, preamble: Callable[[Any], bool] = never) -> Any:
    """The first data line as JSON that is not [DONE] and not `preamble`; None without one. Raises ValueError if this is
    not an event stream."""
    events = events.lstrip(b"\n")
    if events and not _FIELD.match(events):
        raise ValueError("it does not begin with an event")
    for line in events.splitlines():
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            event = json_text.loads(data)
            if not preamble(event):
                return event
    return None


def done(events: bytes) -> bool:
    """True if one of the events is [DONE]."""
    return b"[DONE]" in events and _DONE.search(events) is not None


def error(events: bytes) -> Any:
    """The first error event, None without one."""
    if b'"error"' not in events:
        return None
    return next((event for event in _parsed(b'"error"', events.splitlines()) if event.get("error")), None)


def before(failed: Callable[[bytes], Any], events: bytes) -> bytes:
    """The events before the first one for which `failed` is true."""
    good = 0
    for blank in _BLANK.finditer(events):
        if failed(events[good : blank.end()]):
            break
        good = blank.end()
    return events[:good]


def up_to(ended: Callable[[bytes], bool], events: bytes) -> bytes:
    """The events up to the first one for which `ended` is true, that one included."""
    end = _BLANK.search(events, len(before(ended, events)) + 1)
    return events[: end.end()] if end else events


def finished(events: bytes) -> bool:
    """True if one of the events ends a choice."""
    return _FINISHED.search(events) is not None


def finish_reasons(events: bytes) -> Iterator[tuple[Any, Any]]:
    """Yields the index and the finish reason of each choice that one of the events ends."""
    for event in _parsed(b'"finish_reason"', filter(_FINISHED.search, events.splitlines())):
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("finish_reason"):
                yield choice.get("index"), choice["finish_reason"]


def usage(events: bytes) -> dict[str, Any] | None:
    """The last token counts among the events, None without any: some servers send running counts with each chunk."""
    if _USAGE.search(events) is None:  # many servers send `"usage":null` in every chunk
        return None
    for event in _parsed(b'"usage"', reversed(events.splitlines())):
        if isinstance(tokens := event.get("usage"), dict):
            return tokens
    return None


def remove_usage(events: bytes) -> bytes:
    """Removes the event that holds token counts and no choice, which a server sends last on request."""
    kept, at = [], 0
    for blank in _BLANK.finditer(events):
        event, at = events[at : blank.end()], blank.end()
        found = next(_parsed(b'"usage"', event.splitlines()), {})
        if found.get("choices", True) or not isinstance(found.get("usage"), dict):
            kept.append(event)
    return b"".join((*kept, events[at:]))


def _parsed(word: bytes, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of the data lines that contain `word`."""
    for line in lines:
        if line.startswith(b"data:") and word in line:
            try:
                found = json_text.loads(line[5:])
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found


def error_event(body: bytes) -> bytes:
    """An event with an OpenAI error body."""
    return b"data: " + body + b"\n\n"
