"""Stores issued API keys where `access.counters` keeps their usage: a file of the state folder, or Redis for several
gateways.

The store holds one document, the list of keys. `write` replaces it only if it has not changed since it was read, so
two administrators lose nothing. Only digests of keys are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from coe.errors import KeyRefused, KeysUnavailable, StoreError
from coe.registry.sections import FILE
from gateway.access.issued_keys import IssuedKeys
from gateway.shared_store import RedisStore, SharedStore, SqliteStore

T = TypeVar("T")

KEYS_FILE = "api-keys.sqlite"
"""Name in the state folder of the file with issued API keys and with the usage of all."""
MAX_ISSUED_BYTES = 3 * 2**20
"""Bytes of a list with a new key."""
MAX_CONFLICTS = 10
"""Other changes of the list at the same time, after which a change fails."""
RETRY_AFTER = 1.0
_NAME = "issued"
_KEYS: TypeAdapter[IssuedKeys] = TypeAdapter(IssuedKeys)


class Stored(NamedTuple):
    """The list, and the document that holds it; the document is empty before the first key."""

    document: bytes
    keys: IssuedKeys


class KeyStore:
    """The stored list of issued keys. All methods raise StoreError."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._read = Stored(b"", ())

    async def read(self) -> Stored:
        """Return the list; the same one while it does not change."""
        document = (await self._store.get([_NAME]))[0] or b""
        if document != self._read.document:
            self._read = Stored(document, self._decoded(document))
        return self._read

    async def write(self, known: bytes, document: bytes) -> bool:
        """Replace the document `known`. Return False if there is another one now."""
        try:
            return await self._store.replace(_NAME, known, document)
        except StoreError:  # it may have been replaced, and then the caller must learn so: a new key is shown only once
            return await self._store.replace(_NAME, known, document)

    async def aclose(self) -> None:
        await self._store.aclose()

    def _decoded(self, document: bytes) -> IssuedKeys:
        try:
            return _KEYS.validate_json(document or b"[]")
        except ValidationError:
            raise StoreError(
                f"{self._store.place}: the issued API keys are damaged; restore them, or delete them and issue new ones"
            ) from None


def open_key_store(counters: str, *, home: Path) -> KeyStore:
    """The store that belongs to `access.counters`. Raises ConfigError for an invalid address."""
    if counters == FILE:
        return KeyStore(SqliteStore(home / KEYS_FILE))
    return KeyStore(RedisStore(counters, "keys", setting="access.counters"))


async def change(store: KeyStore, decide: Callable[[IssuedKeys], tuple[T, IssuedKeys]]) -> tuple[T, Stored]:
    """Replace the list with the one that `decide` returns, and return its result and the new list. `decide` runs again
    if another process changed the list in the meantime. Raises KeysUnavailable, KeyRefused for a list that would be too
    large to be read, and whatever `decide` raises."""
    try:
        for _ in range(MAX_CONFLICTS):
            found = await store.read()
            result, keys = decide(found.keys)
            if keys == found.keys:
                return result, found
            document = orjson.dumps([key.model_dump(mode="json") for key in keys])
            is_longer = not {key.name for key in keys} <= {key.name for key in found.keys}
            if is_longer and len(document) > MAX_ISSUED_BYTES:
                raise KeyRefused("the issued keys together are too large; name experts by fewer patterns with `*`")
            if await store.write(found.document, document):
                return result, Stored(document, keys)
    except StoreError as error:
        raise KeysUnavailable(f"issued API keys cannot be changed now: {error}", retry_after=RETRY_AFTER) from error
    raise KeysUnavailable("other changes of API keys are in progress; try again", retry_after=RETRY_AFTER)
