"""Bounds the responses that litellm reads, and restricts litellm to declared addresses.

litellm has no setting for this, so hooks are added where it creates its httpx clients. `coe.experts.litellm.expert`
sets the limit for each call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import httpx

from coe.errors import ExpertError
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer
from coe.experts.http.replies import MAX_ANSWER_BYTES


class ResponseLimit:
    """The limit of each response to one call. Answers without a stream are counted in `held`.

    `error` is that of a response that exceeded the limit or is compressed: it was not requested, and may expand to any
    size. litellm reports the error in many ways.
    """

    def __init__(self, errors: ErrorMapping, held: HeldAnswer | None) -> None:
        self.error: ExpertError | None = None
        self._errors = errors
        self._held = held

    def check(self, size: int, coding: str = "") -> None:
        """Raises an ExpertError if so many bytes of a response, or a coding of it, are refused."""
        try:
            if coding.strip().lower() not in ("", "identity"):
                raise self._errors.invalid_response("a compressed answer, which was not requested")
            if size > MAX_ANSWER_BYTES:
                raise self._errors.invalid_response("an answer longer than the limit of 64 MiB")
            if self._held is not None:
                self._held.resize(size)
        except ExpertError as error:
            self.error = error
            raise


LIMIT: ContextVar[ResponseLimit] = ContextVar("limit")
"""Applies to all requests that a task sends."""
C = TypeVar("C", httpx.AsyncClient, httpx.Client)


def limit_clients() -> None:
    """Restricts every client that litellm creates from now on, drops those it has, and gives one to OpenAI's library,
    which would create its own."""
    import litellm
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

    AsyncHTTPHandler.create_client = _restricted(AsyncHTTPHandler.create_client, _limit)  # type: ignore[method-assign]
    HTTPHandler.create_client = _restricted(HTTPHandler.create_client)  # type: ignore[method-assign]
    litellm.in_memory_llm_clients_cache.flush_cache()  # type: ignore[no-untyped-call]
    litellm.aclient_session = AsyncHTTPHandler().create_client(timeout=None, event_hooks=None)


def _restricted(create: Callable[..., C], *hooks: Callable[[httpx.Response], Any]) -> Callable[..., C]:
    def create_client(*args: Any, **kwargs: Any) -> C:
        client: C = create(*args, **kwargs)
        client.headers["accept-encoding"] = "identity"
        client.follow_redirects = False  # an undeclared address would receive the prompt
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], *hooks]}
        return client

    return create_client


async def _limit(response: httpx.Response) -> None:
    if (limit := LIMIT.get(None)) is not None:
        try:
            limit.check(0, response.headers.get("content-encoding", ""))
        except ExpertError:
            await response.aclose()
            raise
        response.stream = _LimitedStream(response.stream, limit)


class _LimitedStream(httpx.AsyncByteStream):
    """A body up to its limit; then its connection is closed."""

    def __init__(self, stream: Any, limit: ResponseLimit) -> None:
        self._stream = stream
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._stream:
                size += len(chunk)
                self._limit.check(size)
                yield chunk
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()
