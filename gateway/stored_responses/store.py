"""`ResponseStore`: the stored answers of the Responses API, by owner, over a SharedStore.

An owner is a tenant or an API key; the names of one owner mean nothing to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from coe.errors import ResponsesUnavailable, StoreError
from coe.outage import RETRY_SECONDS, Outage
from coe.registry import StoredResponsesSpec
from gateway.shared_store import RedisStore, SharedStore, SqliteStore

T = TypeVar("T")
TIMEOUT_SECONDS = 2.0
"""Time limit of one call."""
NONE, SQLITE = "none", "sqlite"
"""Values of `stored_responses.store` that are not an address."""
FILE = "stored-responses.sqlite"


class ResponseStore:
    """Stores values for `lifetime` seconds. After a failure, all calls fail at once until the
    pause of `outage` is over. All methods raise ResponsesUnavailable."""

    def __init__(self, store: SharedStore, *, lifetime: float) -> None:
        self.outage = Outage("stored responses", "; answers can neither be stored nor read")
        self._store = store
        self._lifetime = lifetime

    async def get(self, owner: str, names: Sequence[str]) -> list[bytes | None]:
        return await self._run(lambda: self._store.get(names, group=owner))

    async def sizes(self, owner: str, names: Sequence[str]) -> list[int]:
        """Returns the size of each value in bytes, 0 for a missing one."""
        return await self._run(lambda: self._store.sizes(names, group=owner))

    async def put(self, owner: str, entries: Mapping[str, bytes]) -> None:
        await self._run(lambda: self._store.put(entries, ttl=self._lifetime, group=owner))

    async def delete(self, owner: str, names: Sequence[str]) -> int:
        return await self._run(lambda: self._store.delete(names, group=owner))

    async def aclose(self) -> None:
        await self._store.aclose()

    async def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.outage.pausing:
            raise _unavailable(f"it failed less than {RETRY_SECONDS:g} s ago")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                result = await call()
        except (StoreError, TimeoutError) as error:
            problem = str(error) or f"{self._store.place} does not reply"
            self.outage.began(problem)
            raise _unavailable(problem) from None
        self.outage.ended()
        return result


def response_store(spec: StoredResponsesSpec, home: Path) -> ResponseStore | None:
    """Return the declared store, None without one. Raises ConfigError for an invalid address."""
    if spec.store == NONE:
        return None
    store: SharedStore
    if spec.store == SQLITE:
        store = SqliteStore(home / FILE, max_bytes=spec.max_bytes, durable=False)
    else:
        store = RedisStore(spec.store, "responses", setting="stored_responses.store", max_bytes=spec.max_bytes)
    return ResponseStore(store, lifetime=spec.lifetime)


def _unavailable(problem: str) -> ResponsesUnavailable:
    message = f"the store of earlier answers is unavailable ({problem}); try again, or send the conversation in `input`"
    return ResponsesUnavailable(message, retry_after=RETRY_SECONDS)
