"""An accepted answer of an HTTP server: in one piece, or as a stream of whole events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

import orjson

from coe.core import Usage
from coe.experts.api_formats import ApiFormat, count, empty_answer
from coe.experts.error_mapping import ErrorMapping
from coe.experts.http import sse
from coe.experts.http.client import Response

MAX_ANSWER = 64 * 2**20
"""Bytes of a plain (not streamed) answer."""
MAX_PREAMBLE = 2**20
"""Bytes of an event stream until the first event that says something."""
MAX_ERROR = 2**16
"""Bytes of an error that comes where an event stream was asked for."""
LONGEST_FIELD_NAME = 64
DRAIN = 0.05
"""Seconds to wait for the formal end of a stream, without which its connection cannot be used again."""
_BOM = b"\xef\xbb\xbf"
_EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


class ModelNameRewriter:
    """The client knows an expert by its name, not by what the server calls the model (often a folder)."""

    def __init__(self, *, theirs: str, ours: str) -> None:
        self._theirs, self._ours = theirs, ours
        pair = orjson.dumps(theirs), orjson.dumps(ours)
        self._pairs = [(key + pair[0], key + pair[1]) for key in (b'"model":', b'"model": ')]

    def in_events(self, events: bytes) -> bytes:
        """Events with the name; what models write comes in them as text, so that nothing else reads like it."""
        for theirs, ours in self._pairs:
            events = events.replace(theirs, ours)
        return events

    def in_answer(self, body: bytes, answer: dict[str, Any]) -> bytes:
        """A whole answer with the name at its top: a tool's arguments may have a `model` of their own."""
        if body.count(b'"model"') < 2:
            return self.in_events(body)
        return sse.dumps({**answer, "model": self._ours}) if answer.get("model") == self._theirs else body


class Plain:
    """An answer that comes in one piece."""

    media_type = "application/json"

    def __init__(self, response: Response, *, wire: ApiFormat, faults: ErrorMapping, echo: ModelNameRewriter) -> None:
        self._response = response
        self._wire = wire
        self._faults = faults
        self._echo = echo
        self._body = b""
        self.usage = Usage()

    async def begin(self) -> None:
        body = await _whole(self._response, most=MAX_ANSWER)
        if body is None:
            raise self._faults.garbage("an answer longer than it may be")
        try:
            answer = sse.loads(body)
        except ValueError:
            raise self._faults.garbage("something that is not JSON") from None
        if isinstance(answer, dict) and answer.get("error"):
            raise self._faults.failed("answered with an error", answer)
        if not isinstance(answer, dict) or self._wire.answer not in answer:
            raise self._faults.garbage(f"JSON without {self._wire.answer}")
        count(self.usage, answer.get("usage"))
        self._body = self._echo.in_answer(body, answer)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    async def aclose(self) -> None:
        self._response.release()


class Streamed:
    """An answer that comes as server-sent events. Has its end even where the server forgets it."""

    media_type = "text/event-stream"

    def __init__(
        self,
        response: Response,
        *,
        wire: ApiFormat,
        faults: ErrorMapping,
        echo: ModelNameRewriter,
        stream_idle_timeout: float,
        choices: int = 1,
        hide_usage: bool = False,
    ) -> None:
        self._response = response
        self._wire = wire
        self._faults = faults
        self._echo = echo
        self._stream_idle_timeout = stream_idle_timeout
        self._buffer = sse.EventBuffer()
        self._first = b""
        self._folded = False
        self._finished = False
        self._choices = choices
        self._hide_usage = hide_usage
        self._ended: set[str] = set()
        self._done = False
        self._followed = False
        """Something came after the end of the stream."""
        self.usage = Usage()

    async def begin(self) -> None:
        if self._response.media_type != self.media_type:
            await self._refuse()
        first, event = bytearray(), None
        while event is None and not self._done:  # comments keep a connection alive; they are no answer
            chunk = await self._response.chunk()
            if not chunk:
                raise self._faults.broken("ended the stream before the first event")
            events = self._complete(chunk)
            if not first:
                events = events.removeprefix(_BOM).lstrip(b"\n")
            if not first and not events:
                self._check_start()
            event, events = self._event(events)
            events = self._until_done(events)
            if self._done:
                event, _ = self._event(events)  # what followed the end says nothing
            first += events
            if event is None and len(first) > MAX_PREAMBLE:
                raise self._faults.garbage("comments without end")
        self._first = bytes(first)
        if told := self._wire.failure(self._first):
            raise self._faults.failed("answered with an error", told)
        self._first = self._shown(self._first)
        if event is None and not empty_answer(self.usage):
            raise self._faults.broken("ended the stream before the first event")

    async def _refuse(self) -> NoReturn:
        """Servers send an error as JSON, with status 200, also where a stream was asked for."""
        kind, answer = self._response.media_type, None
        if kind == Plain.media_type:
            with contextlib.suppress(ValueError):
                answer = sse.loads(await _whole(self._response, most=MAX_ERROR) or b"")
        if isinstance(answer, dict) and answer.get("error"):
            raise self._faults.failed("answered with an error", answer)
        raise self._faults.garbage(f"{kind} where an event stream was asked for")

    def _check_start(self) -> None:
        """Whether what there is of the first event is the beginning of one."""
        rest = bytes(self._buffer.rest[: 2 * LONGEST_FIELD_NAME]).removeprefix(_BOM).lstrip()
        if len(rest) > LONGEST_FIELD_NAME and not rest.startswith(_EVENT_STARTS):
            raise self._faults.garbage("something that is not an event stream")

    def _event(self, events: bytes) -> tuple[Any, bytes]:
        """The first event that says something, None while there is none; and the events, which may have to be unfolded
        to be read."""
        try:
            said = events.lstrip(b"\n")
            return sse.first_event(said, preamble=self._wire.preamble) if said else None, events
        except ValueError as error:
            unfolded = sse.unfolded(events)
            if not self._folded and unfolded != events:
                self._folded = True
                return self._event(unfolded)
            raise self._faults.garbage(f"a broken event stream ({error})") from None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self._first:
            yield self._echo.in_events(self._first)
        try:
            while not self._done:
                async with asyncio.timeout(self._stream_idle_timeout):
                    chunk = await self._response.chunk()
                if not chunk:
                    break
                if events := self._until_done(self._complete(chunk)):
                    told = self._wire.failure(events)
                    good = sse.before(self._wire.failure, events) if told else events
                    if good := self._shown(good):
                        yield self._echo.in_events(good)
                    if told:
                        self._done = False  # a failed answer is never whole
                        raise self._faults.failed("failed in mid-answer", told)
        except TimeoutError:
            raise self._faults.late(f"fell silent for {self._stream_idle_timeout:g} s") from None
        except OSError as error:
            raise self._faults.broken("broke off the stream") from error
        if not self._done:
            yield self._missing_end()

    def _missing_end(self) -> bytes:
        """The end that the server left out."""
        if not self._finished:
            raise self._faults.broken("ended the stream before the answer was complete")
        return self._wire.end

    async def aclose(self) -> None:
        if not self._done:
            self._response.close()  # the connection is in mid-answer: dropping it tells the server to stop
            return
        try:
            await self._drained()
        finally:
            self._response.close() if self._followed else self._response.release()

    async def _drained(self) -> None:
        """Read past the last event to the end of the body, which comes a moment later."""
        with contextlib.suppress(OSError):
            if not self._followed and not self._response.at_end:
                async with asyncio.timeout(DRAIN):
                    self._followed = bool((await self._response.chunk()).strip())

    def _until_done(self, events: bytes) -> bytes:
        """The events up to the one that ends the stream, where it is among them; nothing is relayed after it."""
        if not self._wire.done(events):
            return events
        self._done = True
        events, rest = sse.cut_after(self._wire.done, events)
        self._followed = bool(rest.strip() or self._buffer.rest.strip())
        return events

    def _complete(self, chunk: bytes) -> bytes:
        try:
            events = self._buffer.feed(chunk)
        except ValueError as error:
            raise self._faults.garbage(f"a broken event stream ({error})") from None
        return sse.unfolded(events) if self._folded else events

    def _shown(self, events: bytes) -> bytes:
        """Note what the events say, and return those that the client is to see."""
        counted = self._note(events)
        return sse.without_usage(events) if counted and self._hide_usage else events

    def _note(self, events: bytes) -> bool:
        """Whether token counts are among them."""
        counted = False
        self.usage.events += events.count(b"\n\n")
        self._finished = self._finished or (self._wire.finished(events) and self._all_end(events))
        for told in self._wire.usages(events):
            count(self.usage, told)
            counted = True
        return counted

    def _all_end(self, events: bytes) -> bool:
        """Whether with these events, one of which ends a choice, all those that were asked for have ended."""
        if self._choices > 1:
            self._ended.update(map(str, sse.ends(events)))
        return self._choices == 1 or len(self._ended) >= self._choices


async def _whole(response: Response, *, most: int) -> bytes | None:
    """The body, None where it is longer than it may be."""
    if (response.length or 0) > most:
        return None
    chunks, size = [], 0
    while chunk := await response.chunk():
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            return None
    return b"".join(chunks)
