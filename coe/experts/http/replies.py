"""Replies of experts: one JSON document (`WholeReply`), server-sent events (`StreamedReply`) or other bytes
(`RelayedReply`).

`HttpExpert` creates them for a response with status 200. They detect errors under status 200, count tokens, replace the
model name, and pass only complete events on.

An answer without a stream is held from its first byte until the client has it, a long event until it is complete and
sent. The holder of such bytes has a `HeldAnswer`, which reports to the memory of its call, so that all answers of a
process have bounded memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol, Self

import orjson

from coe import json_text
from coe.core import AnswerMemory, Call
from coe.experts.api_formats import ApiFormat, record_usage
from coe.experts.error_mapping import ErrorMapping
from coe.experts.http import sse
from coe.experts.http.client import Response
from coe.usage import Usage

MAX_ANSWER_BYTES = 64 * 2**20
"""Bytes of a non-streaming response."""
MAX_PREAMBLE_BYTES = 2**20
"""Bytes of an event stream until the first event with content."""
DRAIN_TIMEOUT = 0.05
"""Seconds to wait for the end of the HTTP body after the last event; otherwise the connection cannot be reused."""


SMALL_ANSWER = 2**16
"""Bytes of an answer that are not counted; the permits bound them."""


class HeldAnswer:
    """The bytes that one holder has."""

    def __init__(self, memory: AnswerMemory | None) -> None:
        self._memory = memory
        self._counted = 0

    def resize(self, size: int) -> None:
        """Hold `size` bytes in all, of which up to SMALL_ANSWER are not counted. Raises AnswerMemoryFull."""
        counted = size if size > SMALL_ANSWER else 0
        if counted != self._counted and self._memory is not None:
            self._memory(counted - self._counted)
            self._counted = counted


class WholeReply:
    """A reply with one JSON document, which `held` counts until the reply is closed."""

    media_type = "application/json"

    def __init__(self, body: bytes, usage: Usage, held: HeldAnswer) -> None:
        held.resize(len(body))
        self.usage = usage
        self._body, self._held = body, held

    def chunks(self) -> OneChunk:
        return OneChunk(self._body)

    async def aclose(self) -> None:
        self._held.resize(0)


class OneChunk:
    """The chunks of a whole answer. A generator would take longer, as the event loop keeps a set of those that run."""

    def __init__(self, body: bytes) -> None:
        self._rest = [body]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._rest:
            return self._rest.pop()
        raise StopAsyncIteration

    async def aclose(self) -> None: ...


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


async def read_json(
    response: Response,
    *,
    api_format: ApiFormat,
    errors: ErrorMapping,
    rewriter: ModelNameRewriter,
    usage: Usage,
    held: HeldAnswer,
) -> WholeReply:
    """Returns the reply to a request without a stream. Raises an ExpertError, AnswerMemoryFull or OSError."""
    body = await response.read(MAX_ANSWER_BYTES, report=held.resize)
    response.release()
    if len(body) > MAX_ANSWER_BYTES:
        raise errors.invalid_response("an answer longer than the limit of 64 MiB")
    try:
        answer = json_text.loads(body)
    except ValueError:
        raise errors.invalid_response("something that is not JSON") from None
    fields = answer if isinstance(answer, dict) else {}
    if fields.get("error"):
        raise errors.server_error("answered with an error", fields)
    if api_format.answer_field and api_format.answer_field not in fields:
        raise errors.invalid_response(f"JSON without {api_format.answer_field}")
    record_usage(usage, fields.get("usage"))
    return WholeReply(rewriter.in_answer(body, fields), usage, held)


def shows_usage(call: Call) -> bool:
    """True if the client requested the token counts of the stream."""
    options = call.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


async def _next_chunk(response: Events, errors: ErrorMapping, idle_timeout: float) -> bytes:
    """The next bytes of an answer that has begun, empty at its end. Raises an ExpertError."""
    try:
        return await response.chunk(idle_timeout)
    except TimeoutError:
        raise errors.timed_out(f"sent nothing for {idle_timeout:g} s") from None
    except OSError as error:
        raise errors.connection_lost("closed the connection in the middle of the stream") from error


class RelayedReply:
    """Other bytes, such as audio or images, which go to the client as they arrive. Nothing in them is read."""

    def __init__(self, response: Response, first: bytes, *, errors: ErrorMapping, stream_idle_timeout: float) -> None:
        self.media_type = response.headers.get("content-type", "application/octet-stream")
        self.usage = Usage()
        self._response, self._first = response, first
        self._errors, self._stream_idle_timeout = errors, stream_idle_timeout

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        chunk, self._first = self._first, b""
        while chunk:
            yield chunk
            chunk = await _next_chunk(self._response, self._errors, self._stream_idle_timeout)

    async def aclose(self) -> None:
        self._response.release()


class Events(Protocol):
    """A body of server-sent events that is arriving; implemented by `Response`, and for litellm."""

    @property
    def complete(self) -> bool: ...

    async def chunk(self, within: float | None = None) -> bytes: ...

    def release(self) -> None: ...


@dataclass(eq=False)
class StreamedReply:
    """A response that arrives as server-sent events. `begin` reads up to the first event with content, `chunks` the
    rest. Adds the event that ends the stream if the server omits it.

    With `hides_usage`, the event with token counts and no choice is removed, as the client did not request it. Of
    several choices, only the event that ends the stream tells that all have ended.
    """

    response: Events
    _: KW_ONLY
    api_format: ApiFormat
    errors: ErrorMapping
    rewriter: ModelNameRewriter
    stream_idle_timeout: float
    usage: Usage
    held: HeldAnswer
    hides_usage: bool
    has_one_choice: bool = True
    media_type = sse.EVENT_STREAM

    def __post_init__(self) -> None:
        self._finish = self.api_format.finished if self.has_one_choice else sse.never
        self._buffer = sse.EventBuffer()
        self._first_events = b""
        self._finished = self._done = False

    async def begin(self) -> None:
        first, event = b"", None
        while event is None and not self._done:  # comments keep a connection alive and are not an answer
            chunk = await self.response.chunk()
            if not chunk:
                break
            events = self._complete_events(chunk)
            try:
                event = sse.first_event(events, preamble=self.api_format.preamble)
            except ValueError as error:
                raise self.errors.invalid_response(f"a broken event stream ({error})") from None
            first += events
            if event is None and len(first) > MAX_PREAMBLE_BYTES:
                raise self.errors.invalid_response("comments without end")
        if failure := self.api_format.failure(first):
            raise self.errors.server_error("answered with an error", failure)
        self._first_events = self._process(first)
        # without content it is still an answer if it ended and its output was counted, not its input alone
        is_counted = bool(self.usage.input_tokens) and self.usage.output_tokens is not None
        if event is None and not (is_counted and (self._done or self._finished)):
            raise self.errors.connection_lost("ended the stream before the first event")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self._first_events:
            yield self._first_events
            self._first_events = b""
        while not self._done:
            if not (chunk := await _next_chunk(self.response, self.errors, self.stream_idle_timeout)):
                break
            if events := self._complete_events(chunk):
                failure = self.api_format.failure(events)
                good = sse.before(self.api_format.failure, events) if failure else events
                if good := self._process(good):
                    yield good
                if failure:
                    self._done = False  # a failed answer is never complete
                    raise self.errors.server_error("failed in the middle of the answer", failure)
        if not self._done:
            if not self._finished:
                raise self.errors.connection_lost("ended the stream before the answer was complete")
            yield self.api_format.end  # which the server omitted

    async def aclose(self) -> None:
        self.held.resize(0)
        try:
            if self._done and not self.response.complete:
                with contextlib.suppress(OSError):  # the end of the body follows a moment after the last event
                    await self.response.chunk(DRAIN_TIMEOUT)
        finally:
            self.response.release()  # closes an incomplete one, which tells the server to stop

    def _complete_events(self, chunk: bytes) -> bytes:
        """The events that a chunk completes, up to the one that ends the stream; later ones are dropped."""
        try:
            events = self._buffer.feed(chunk)
        except ValueError as error:
            raise self.errors.invalid_response(f"a broken event stream ({error})") from None
        self.held.resize(len(self._buffer.rest) + len(events))
        if self.api_format.done(events):
            self._done = True
            events = sse.up_to(self.api_format.done, events)
        return events

    def _process(self, events: bytes) -> bytes:
        """Records token counts and the end of a choice, and returns the events that the client should see."""
        self.usage.events += events.count(b"\n\n")
        self._finished |= self._finish(events)
        counted = False
        for counts in self.api_format.usages(events):
            record_usage(self.usage, counts)
            counted = True
        if counted and self.hides_usage:
            events = sse.remove_usage(events)
        return self.rewriter.in_events(events)
