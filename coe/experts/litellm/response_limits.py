"""Bounds the responses that litellm reads, and restricts litellm to declared addresses.

The limits are those of HTTP experts. litellm has no setting for this, so hooks are added where it creates its httpx
clients. The hooks check the head of each response before its body is read or decompressed.
`coe.experts.litellm.expert` sets the limits for each call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

import httpx

from coe.errors import AnswerMemoryFull
from coe.experts.held_answer import HeldAnswer
from coe.experts.http.expert import MAX_REFUSAL_BYTES
from coe.experts.http.replies import MAX_ANSWER_BYTES
from coe.experts.http.sse import EVENT_STREAM, MAX_EVENT_BYTES

Reader = Callable[[bytes], bytes | None]
"""Returns the part of a chunk that may be read, None once enough was read. Raises ResponseLimitExceeded."""
_BLANKS = (b"\n\n", b"\n\r\n", b"\r\r")


class ResponseLimitExceeded(Exception):
    """A server sent more than it may."""


class ResponseLimits:
    """The limits for the responses to one call. `exceeded_limit` describes the limit that a response exceeded."""

    def __init__(self, *, stream: bool, held: HeldAnswer | None = None) -> None:
        self._stream = stream
        self._held = held
        self._given_up = False
        self.exceeded_limit = ""
        self.full: AnswerMemoryFull | None = None
        """Set if the memory for answers had no room for a response without a stream."""

    def begin(self) -> None:
        """Applies these limits to all requests that this task, and threads that it starts, send from now on."""
        _LIMITS.set(self)

    def give_up(self) -> None:
        """Frees the memory and ends the reading: litellm may lose a cancellation and read on."""
        self._given_up = True
        if self._held is not None:
            self._held.resize(0)

    def for_response(self, status: int, headers: Mapping[str, str]) -> Reader:
        """The reader for the body after this head. A compressed body was not requested, and may expand to any size."""
        codings = {coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")}
        compressed = not codings <= {"", "identity"}
        size, end = 0, b""

        def read_error(chunk: bytes) -> bytes | None:
            """Cut at a limit without an error, since the status decides what happens next."""
            nonlocal size
            part = chunk[: MAX_REFUSAL_BYTES - size] if not compressed else b""
            size += len(part)
            return part or None

        def read_events(chunk: bytes) -> bytes:
            """Any number of events, each bounded."""
            nonlocal size, end
            joined = end + chunk  # a blank line may be split between chunks
            blank = max(joined.rfind(blank) for blank in _BLANKS)
            size, end = size + len(chunk) if blank < 0 else len(joined) - blank, joined[-2:]
            if size > MAX_EVENT_BYTES:
                self._exceed(f"a broken event stream (an event is longer than {MAX_EVENT_BYTES} bytes)")
            return chunk

        def read_whole(chunk: bytes) -> bytes:
            nonlocal size
            size += len(chunk)
            if size > MAX_ANSWER_BYTES or self._given_up:
                self._exceed("an answer longer than the limit of 64 MiB")
            try:
                if self._held is not None:
                    self._held.resize(size)
            except AnswerMemoryFull as error:
                self.full = error
                raise
            return chunk

        if not 200 <= status < 300:
            return read_error
        if compressed:
            self._exceed("a compressed answer, which was not requested")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return read_events if self._stream and kind == EVENT_STREAM else read_whole

    def _exceed(self, how: str) -> NoReturn:
        self.exceeded_limit = how
        raise ResponseLimitExceeded(how)


_LIMITS: ContextVar[ResponseLimits] = ContextVar("current_limits")


C = TypeVar("C", httpx.AsyncClient, httpx.Client)


def limit_clients() -> None:
    """Bounds every client that litellm creates from now on, drops those it has, and gives one to OpenAI's library,
    which would create its own."""
    import litellm
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

    AsyncHTTPHandler.create_client = _with_limits(AsyncHTTPHandler.create_client, _limit_async)  # type: ignore[method-assign]
    HTTPHandler.create_client = _with_limits(HTTPHandler.create_client, _limit)  # type: ignore[method-assign]
    litellm.in_memory_llm_clients_cache.flush_cache()  # type: ignore[no-untyped-call]
    litellm.aclient_session = AsyncHTTPHandler().create_client(timeout=None, event_hooks=None)


def _with_limits(create: Callable[..., C], bound: Callable[[httpx.Response], Any]) -> Callable[..., C]:
    def create_client(*args: Any, **kwargs: Any) -> C:
        client: C = create(*args, **kwargs)
        client.headers["accept-encoding"] = "identity"
        client.follow_redirects = False  # an undeclared address would receive the prompt
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], bound]}
        return client

    return create_client


def _limit(response: httpx.Response) -> None:
    limits = _LIMITS.get(None) or ResponseLimits(stream=False)  # outside of a call: the strictest
    read = limits.for_response(response.status_code, response.headers)
    response.stream = _LimitedStream(response.stream, read)


async def _limit_async(response: httpx.Response) -> None:
    _limit(response)


class _LimitedStream(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body up to its limit; then its connection is closed."""

    def __init__(self, stream: Any, read: Reader) -> None:
        self._stream = stream
        self._read = read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                if (part := self._read(chunk)) is None:
                    break
                yield part
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._stream:
                if (part := self._read(chunk)) is None:
                    break
                yield part
        finally:
            self.close()

    def close(self) -> None:
        self._stream.close()
