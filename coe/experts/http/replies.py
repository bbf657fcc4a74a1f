"""Replies of HTTP experts: one JSON document (`JsonReply`), or server-sent events (`StreamedReply`).

`HttpExpert` creates them for a response with status 200. They detect errors under status 200, count tokens, replace the
model name, and pass only complete events on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, NoReturn, Self

import orjson

from coe import json_text
from coe.core import Chunks
from coe.experts.api_formats import ApiFormat, is_empty_answer, record_usage
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer
from coe.experts.http import sse
from coe.experts.http.client import Response
from coe.usage import Usage

MAX_ANSWER_BYTES = 64 * 2**20
"""Bytes of a non-streaming response."""
MAX_PREAMBLE_BYTES = 2**20
"""Bytes of an event stream until the first event with content."""
MAX_ERROR_BYTES = 2**16
"""Bytes of a JSON error in place of an event stream."""
MAX_FIELD_NAME_BYTES = 64
DRAIN_TIMEOUT = 0.05
"""Seconds to wait for the end of the HTTP body after the last event; otherwise the connection cannot be reused."""
_BOM = b"\xef\xbb\xbf"
_EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


class ModelNameRewriter:
    """Replaces the server's model name (often a folder) with the expert's name, by which the client knows it."""

    def __init__(self, *, server_name: str, client_name: str) -> None:
        self._server_name, self._client_name = server_name, client_name
        pair = orjson.dumps(server_name), orjson.dumps(client_name)
        self._pairs = [(key + pair[0], key + pair[1]) for key in (b'"model":', b'"model": ')]

    def in_events(self, events: bytes) -> bytes:
        """Replaces it in events. Text written by the model is escaped there, so nothing else matches."""
        for server_field, client_field in self._pairs:
            events = events.replace(server_field, client_field)
        return events

    def in_answer(self, body: bytes, answer: dict[str, Any]) -> bytes:
        """Replaces it at the top of a non-streaming response only: a tool's arguments may contain a `model` too."""
        if body.count(b'"model"') < 2:
            return self.in_events(body)
        if answer.get("model") != self._server_name:
            return body
        return json_text.dumps_with_nan({**answer, "model": self._client_name})


class JsonReply:
    """A response that arrives as one JSON document."""

    media_type = "application/json"

    def __init__(
        self,
        response: Response,
        *,
        api_format: ApiFormat,
        errors: ErrorMapping,
        rewriter: ModelNameRewriter,
        held: HeldAnswer,
    ) -> None:
        self._response = response
        self._api_format = api_format
        self._errors = errors
        self._rewriter = rewriter
        self._held = held
        self._body = b""
        self.usage = Usage()

    async def begin(self) -> None:
        body = await _read_body(self._response, max_bytes=MAX_ANSWER_BYTES, held=self._held)
        if body is None:
            raise self._errors.invalid_response("an answer longer than the limit of 64 MiB")
        try:
            answer = json_text.loads(body)
        except ValueError:
            raise self._errors.invalid_response("something that is not JSON") from None
        if isinstance(answer, dict) and answer.get("error"):
            raise self._errors.server_error("answered with an error", answer)
        if not isinstance(answer, dict) or self._api_format.answer_field not in answer:
            raise self._errors.invalid_response(f"JSON without {self._api_format.answer_field}")
        record_usage(self.usage, answer.get("usage"))
        self._body = self._rewriter.in_answer(body, answer)

    def chunks(self) -> Chunks:
        body, self._body = self._body, b""
        return SingleChunk(body)

    async def aclose(self) -> None:
        self._held.resize(0)
        self._response.release()


class SingleChunk:
    """The chunks of a non-streaming reply. A plain iterator: the event loop would track an asynchronous generator."""

    __slots__ = ("_chunk",)

    def __init__(self, chunk: bytes) -> None:
        self._chunk: bytes | None = chunk

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._chunk = None


class StreamedReply:
    """A response that arrives as server-sent events. `begin` reads up to the first event with content, `chunks` the
    rest. Adds the event that ends the stream if the server omits it.

    `with_usage` is whether the client requested the event with token counts and no choice, None for an API without that
    option. It is removed if it was not requested, and added if the server sent the counts in another event only.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        response: Response,
        *,
        api_format: ApiFormat,
        errors: ErrorMapping,
        rewriter: ModelNameRewriter,
        stream_idle_timeout: float,
        held: HeldAnswer,
        choices: int = 1,
        with_usage: bool | None = None,
    ) -> None:
        self._response = response
        self._api_format = api_format
        self._errors = errors
        self._rewriter = rewriter
        self._stream_idle_timeout = stream_idle_timeout
        self._buffer = sse.EventBuffer()
        self._held = held
        self._first_events = b""
        self._multiline = False
        self._finished = False
        self._choices = choices
        self._with_usage = with_usage
        self._usage_event = b""
        self._ended_choices: set[str] = set()
        self._done = False
        self._trailing_data = False
        """True if bytes followed the end of the stream."""
        self.usage = Usage()

    async def begin(self) -> None:
        if self._response.media_type != self.media_type:
            await self._raise_no_stream()
        first, event = bytearray(), None
        while event is None and not self._done:  # comments keep a connection alive and are not an answer
            chunk = await self._response.chunk()
            if not chunk:
                raise self._errors.connection_lost("ended the stream before the first event")
            events = self._complete_events(chunk)
            if not first:
                events = events.removeprefix(_BOM).lstrip(b"\n")
            if not first and not events:
                self._check_is_event_stream()
            event, events = self._first_event(events)
            events = self._up_to_end(events)
            if self._done:
                event, _ = self._first_event(events)  # events after the end do not count
            first += events
            if event is None and len(first) > MAX_PREAMBLE_BYTES:
                raise self._errors.invalid_response("comments without end")
        self._first_events = bytes(first)
        if failure := self._api_format.failure(self._first_events):
            raise self._errors.server_error("answered with an error", failure)
        self._first_events = self._process(self._first_events)
        if event is None and not is_empty_answer(self.usage):
            raise self._errors.connection_lost("ended the stream before the first event")

    async def _raise_no_stream(self) -> NoReturn:
        """Raises the error of a response that is no event stream. Servers may send it as JSON with status 200."""
        kind, answer = self._response.media_type, None
        if kind == JsonReply.media_type:
            with contextlib.suppress(ValueError):
                body = await _read_body(self._response, max_bytes=MAX_ERROR_BYTES, held=self._held)
                answer = json_text.loads(body or b"")
        if isinstance(answer, dict) and answer.get("error"):
            raise self._errors.server_error("answered with an error", answer)
        raise self._errors.invalid_response(f"{kind} where an event stream was requested")

    def _check_is_event_stream(self) -> None:
        """Checks that the incomplete first event begins like one."""
        rest = bytes(self._buffer.rest[: 2 * MAX_FIELD_NAME_BYTES]).removeprefix(_BOM).lstrip()
        if len(rest) > MAX_FIELD_NAME_BYTES and not rest.startswith(_EVENT_STARTS):
            raise self._errors.invalid_response("something that is not an event stream")

    def _first_event(self, events: bytes) -> tuple[Any, bytes]:
        """Returns the first event with content, None without one; and the events, with multi-line data joined if they
        could not be parsed otherwise."""
        try:
            stripped = events.lstrip(b"\n")
            return sse.first_event(stripped, preamble=self._api_format.preamble) if stripped else None, events
        except ValueError as error:
            joined = sse.join_data_lines(events)
            if not self._multiline and joined != events:
                self._multiline = True
                return self._first_event(joined)
            raise self._errors.invalid_response(f"a broken event stream ({error})") from None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self._first_events:
            yield self._rewriter.in_events(self._first_events)
            self._first_events = b""
        try:
            while not self._done:
                chunk = await self._response.chunk(self._stream_idle_timeout)
                if not chunk:
                    break
                if events := self._up_to_end(self._complete_events(chunk)):
                    failure = self._api_format.failure(events)
                    good = sse.before(self._api_format.failure, events) if failure else events
                    if good := self._process(good):
                        yield self._rewriter.in_events(good)
                    if failure:
                        self._done = False  # a failed answer is never complete
                        raise self._errors.server_error("failed in the middle of the answer", failure)
        except TimeoutError:
            raise self._errors.timed_out(f"sent nothing for {self._stream_idle_timeout:g} s") from None
        except OSError as error:
            raise self._errors.connection_lost("closed the connection in the middle of the stream") from error
        if not self._done:
            yield self._end_event()

    def _end_event(self) -> bytes:
        """The events that the server omitted."""
        if not self._finished:
            raise self._errors.connection_lost("ended the stream before the answer was complete")
        return self._usage_event + self._api_format.end

    async def aclose(self) -> None:
        self._held.resize(0)
        if not self._done:
            self._response.close()  # the answer is incomplete: closing tells the server to stop
            return
        try:
            await self._drain()
        finally:
            self._response.close() if self._trailing_data else self._response.release()

    async def _drain(self) -> None:
        """Reads on to the end of the body, which follows a moment after the last event."""
        with contextlib.suppress(OSError):
            if not self._trailing_data and not self._response.complete:
                async with asyncio.timeout(DRAIN_TIMEOUT):
                    self._trailing_data = bool((await self._response.chunk()).strip())

    def _up_to_end(self, events: bytes) -> bytes:
        """The events up to the one that ends the stream, if it is among them; later ones are dropped."""
        if not self._api_format.done(events):
            return events
        self._done = True
        events, rest = sse.cut_after(self._api_format.done, events)
        self._trailing_data = bool(rest.strip() or self._buffer.rest.strip())
        return events

    def _complete_events(self, chunk: bytes) -> bytes:
        try:
            events = self._buffer.feed(chunk)
        except ValueError as error:
            raise self._errors.invalid_response(f"a broken event stream ({error})") from None
        self._held.resize(len(self._buffer.rest) + len(events))
        return sse.join_data_lines(events) if self._multiline else events

    def _process(self, events: bytes) -> bytes:
        """Records what the events report, and returns those that the client should see."""
        counted = self._record(events)
        if self._with_usage is False:
            return sse.remove_usage(events) if counted else events
        if self._with_usage:
            if counted:
                self._usage_event = sse.usage_event(events)
            if self._done and self._usage_event:
                return sse.insert_before_end(events, self._usage_event)
        return events

    def _record(self, events: bytes) -> bool:
        """Records token counts and finished choices. Returns whether token counts are among the events."""
        counted = False
        self.usage.events += events.count(b"\n\n")
        self._finished = self._finished or (self._api_format.finished(events) and self._all_choices_ended(events))
        for counts in self._api_format.usages(events):
            record_usage(self.usage, counts)
            counted = True
        return counted

    def _all_choices_ended(self, events: bytes) -> bool:
        """True if every requested choice has ended with these events; one of them ends a choice."""
        if self._choices > 1:
            self._ended_choices.update(map(str, sse.ends(events)))
        return self._choices == 1 or len(self._ended_choices) >= self._choices


async def _read_body(response: Response, *, max_bytes: int, held: HeldAnswer) -> bytes | None:
    """The body, None if it is longer than `max_bytes`."""
    if (response.length or 0) > max_bytes:
        return None
    body = await response.read(max_bytes, report=held.resize)
    return body if len(body) <= max_bytes else None
