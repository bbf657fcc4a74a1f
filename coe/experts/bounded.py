"""litellm's HTTP clients, made to take in no more than they may, and from nowhere else than declared.

Hooks of httpx see the head of each response before its body is read or unpacked. They are set where litellm makes its
clients: it has no setting that reaches all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar, cast

import httpx
import litellm
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

from coe.experts.litellm.response_limits import Take, intake

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
            async for piece in self._stream:
                if (taken := self._take(piece)) is None:
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
            for piece in self._stream:
                if (taken := self._take(piece)) is None:
                    break
                yield taken
        finally:
            self.close()

    def close(self) -> None:
        self._stream.close()
