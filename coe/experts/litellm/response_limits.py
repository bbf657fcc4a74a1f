"""How much litellm may take in of an answer: the bounds of those that come without it, counted on the bytes.

litellm's HTTP clients, made to take in no more than they may, and from nowhere else than declared.

Hooks of httpx see the head of each response before its body is read or unpacked. They are set where litellm makes its
clients: it has no setting that reaches all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import httpx
import litellm
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

from coe.experts.http.expert import LONGEST_REFUSAL
from coe.experts.http.replies import MAX_ANSWER
from coe.experts.http.sse import MAX_EVENT

Take = Callable[[bytes], bytes | None]
"""Gives back the next piece of a body, None where enough has come. Raises Excess."""
_BLANKS = (b"\n\n", b"\n\r\n", b"\r\r")


class Excess(Exception):
    """A server sent more than it may."""


class Intake:
    """What the responses to one call may bring. Once one brought more, `excess` says how."""

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self.excess = ""

    def begin(self) -> None:
        """For whatever is asked from now on in this task, and in the threads that it hands work to."""
        _INTAKE.set(self)

    def taking(self, status: int, headers: Mapping[str, str]) -> Take:
        """For the body after this head. A compressed one was not asked for, and may unpack to any length."""
        codings = {coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")}
        compressed = not codings <= {"", "identity"}
        if not 200 <= status < 300:
            return _Refusal(0 if compressed else LONGEST_REFUSAL).take
        if compressed:
            raise self.exceeded("a compressed answer, which was not asked for")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return _Events(self).take if self._stream and kind == "text/event-stream" else _Whole(self).take

    def exceeded(self, how: str) -> Excess:
        self.excess = how
        return Excess(how)


_INTAKE: ContextVar[Intake] = ContextVar("intake")


def intake() -> Intake:
    """That of the call which this task is at work for; the narrowest where it is for none."""
    return _INTAKE.get(None) or Intake(stream=False)


class _Refusal:
    """The reason of an error: read so far and no farther, since the status tells what is done next."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, chunk: bytes) -> bytes | None:
        taken = chunk[: self._left]
        self._left -= len(taken)
        return taken or None


class _Whole:
    """An answer in one piece, or a stream of another kind than server-sent events."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._size = 0

    def take(self, chunk: bytes) -> bytes:
        self._size += len(chunk)
        if self._size > MAX_ANSWER:
            raise self._intake.exceeded("an answer longer than it may be")
        return chunk


class _Events:
    """Server-sent events, any number of them."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._size = 0
        self._end = b""

    def take(self, chunk: bytes) -> bytes:
        seam = self._end + chunk  # a blank line may come in two pieces
        blank = max(seam.rfind(blank) for blank in _BLANKS)
        self._size = self._size + len(chunk) if blank < 0 else len(seam) - blank
        self._end = seam[-2:]
        if self._size > MAX_EVENT:
            raise self._intake.exceeded(f"a broken event stream (an event is longer than {MAX_EVENT} bytes)")
        return chunk


C = TypeVar("C", httpx.AsyncClient, httpx.Client)


def bound_clients() -> None:
    """Bounds every client that litellm makes from now on, forgets those of before, and lends one to OpenAI's library,
    which would make its own."""
    AsyncHTTPHandler.create_client = _bounding(AsyncHTTPHandler.create_client, _bound)  # type: ignore[method-assign]
    HTTPHandler.create_client = _bounding(HTTPHandler.create_client, _bound_sync)  # type: ignore[method-assign]
    litellm.in_memory_llm_clients_cache.flush_cache()  # type: ignore[no-untyped-call]
    litellm.aclient_session = AsyncHTTPHandler().create_client(timeout=None, event_hooks=None)


def _bounding(create: Callable[..., C], bound: Callable[[httpx.Response], Any]) -> Callable[..., C]:
    def create_client(*arguments: Any, **named: Any) -> C:
        client: C = create(*arguments, **named)
        client.headers["accept-encoding"] = "identity"
        client.follow_redirects = False  # an address that nobody declared would get the prompt
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], bound]}
        return client

    return create_client


async def _bound(response: httpx.Response) -> None:
    take = intake().taking(response.status_code, response.headers)
    response.stream = _Bounded(cast("httpx.AsyncByteStream", response.stream), take)


def _bound_sync(response: httpx.Response) -> None:
    take = intake().taking(response.status_code, response.headers)
    response.stream = _BoundedSync(cast("httpx.SyncByteStream", response.stream), take)


class _Bounded(httpx.AsyncByteStream):
    """A body as far as it may be taken; then its connection is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, take: Take) -> None:
        self._stream = stream
        self._take = take

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                if (taken := self._take(chunk)) is None:
                    break
                yield taken
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _BoundedSync(httpx.SyncByteStream):
    """The same, for those who wait for it in a thread."""

    def __init__(self, stream: httpx.SyncByteStream, take: Take) -> None:
        self._stream = stream
        self._take = take

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._stream:
                if (taken := self._take(chunk)) is None:
                    break
                yield taken
        finally:
            self.close()

    def close(self) -> None:
        self._stream.close()
