"""Stores issued API keys where `access.counters` keeps their usage: a file of the state folder, or Redis for several
gateways.

A store holds one document, the list of keys, with a random version. `write` replaces it only if it has not changed
since it was read, so two administrators lose nothing. Only digests of keys are stored.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from coe.errors import KeyRefused, KeysUnavailable, StoreError
from coe.records.database import Database
from coe.redis import RedisClient
from coe.runtime.issued_keys import IssuedKeys

T = TypeVar("T")

KEYS_FILE = "issued-keys.sqlite"
"""Name in the state folder."""
MAX_DOCUMENT_BYTES = 4 * 2**20
"""Bytes of a list that is read: more than revocations add to MAX_ISSUED_BYTES."""
MAX_ISSUED_BYTES = 3 * 2**20
"""Bytes of a list with a new key."""
MAX_CONFLICTS = 10
"""Other changes of the list at the same time, after which a change fails."""
RETRY_AFTER = 1.0
TIMEOUT_SECONDS = 1.0
_KEYS: TypeAdapter[IssuedKeys] = TypeAdapter(IssuedKeys)


class Stored(NamedTuple):
    """A version of the list; the version is empty before the first key."""

    version: str
    keys: IssuedKeys


NOTHING = Stored("", ())


class KeyStore(Protocol):
    """The stored list of issued keys. All methods raise StoreError."""

    async def read(self, known: str) -> Stored | None:
        """Return the list, None if its version is `known`."""

    async def write(self, known: str, keys: IssuedKeys) -> str | None:
        """Replace the list of version `known`. Return the new version, None if the list has another version now."""

    async def aclose(self) -> None: ...


def open_key_store(counters: str, *, home: Path) -> KeyStore:
    """The store that belongs to `access.counters`. Raises ConfigError for an invalid address."""
    return SqliteKeyStore(home / KEYS_FILE) if counters == "memory" else RedisKeyStore(counters)


async def change(store: KeyStore, decide: Callable[[IssuedKeys], tuple[T, IssuedKeys]]) -> tuple[T, Stored]:
    """Replace the list with the one that `decide` returns, and return its result and the new list. `decide` runs again
    if another process changed the list in the meantime. Raises KeysUnavailable, KeyRefused for a list that would be too
    large to be read, and whatever `decide` raises."""
    try:
        for _ in range(MAX_CONFLICTS):
            found = await store.read("-") or NOTHING
            result, keys = decide(found.keys)
            if keys == found.keys:
                return result, found
            is_longer = not {key.name for key in keys} <= {key.name for key in found.keys}
            if is_longer and len(_encode(keys)) > MAX_ISSUED_BYTES:
                raise KeyRefused("the issued keys together are too large; name experts by fewer patterns with `*`")
            if (version := await store.write(found.version, keys)) is not None:
                return result, Stored(version, keys)
    except StoreError as error:
        raise KeysUnavailable(f"issued API keys cannot be changed now: {error}", retry_after=RETRY_AFTER) from error
    raise KeysUnavailable("other changes of API keys are in progress; try again", retry_after=RETRY_AFTER)


class SqliteKeyStore:
    """A file for all processes of one machine. Without the file there are no keys, and reading creates none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        tables = (
            "CREATE TABLE issued (id INTEGER PRIMARY KEY CHECK (id = 1), version TEXT NOT NULL, keys BLOB NOT NULL)",
        )
        self._database = Database(path, tables=tables, version=1)

    async def read(self, known: str) -> Stored | None:
        if not self._database.exists():
            return NOTHING if known else None

        def work(connection: sqlite3.Connection) -> Stored | None:
            version = _version(connection)
            if version == known:
                return None
            row = connection.execute("SELECT keys FROM issued").fetchone()
            return Stored(version, _decode(row[0], str(self._path)) if row else ())

        return await self._database.read(work)

    async def write(self, known: str, keys: IssuedKeys) -> str | None:
        def work(connection: sqlite3.Connection) -> str | None:
            if _version(connection) != known:
                return None
            version = _new_version()
            connection.execute("INSERT OR REPLACE INTO issued VALUES (1, ?, ?)", (version, _encode(keys)))
            return version

        return await self._database.write(work)

    async def aclose(self) -> None:
        await self._database.aclose()


_HASH = "coe:keys"
_REPLACE = """
local version = redis.call('HGET', KEYS[1], 'version') or ''
if version == ARGV[2] then return 1 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'keys', ARGV[3])
return 1
"""


class RedisKeyStore:
    """The hash `coe:keys`, for all gateways that share the Redis."""

    def __init__(self, url: str) -> None:
        self._redis = RedisClient(
            url,
            key="access.counters",
            error=StoreError,
            connections=2,
            connect_timeout=TIMEOUT_SECONDS,
            timeout=TIMEOUT_SECONDS,
        )
        self._replace = self._redis.client.register_script(_REPLACE)

    async def read(self, known: str) -> Stored | None:
        version = await self._redis.run(self._redis.client.hget(_HASH, "version"))
        if (version or b"").decode("ascii", "replace") == known:
            return None
        if await self._redis.run(self._redis.client.hstrlen(_HASH, "keys")) > MAX_DOCUMENT_BYTES:
            raise StoreError(f"{self._redis.place}: {_HASH} holds more than {MAX_DOCUMENT_BYTES} bytes; delete it")
        version, document = await self._redis.run(self._redis.client.hmget(_HASH, ["version", "keys"]))
        if version is None:
            return NOTHING
        return Stored(version.decode("ascii", "replace"), _decode(document, self._redis.place))

    async def write(self, known: str, keys: IssuedKeys) -> str | None:
        version, document = _new_version(), _encode(keys)

        async def replace() -> str | None:
            replaced = await self._redis.run(self._replace(keys=[_HASH], args=[known, version, document]))
            return version if replaced else None

        try:
            return await replace()
        except StoreError:  # it may have been replaced, and then the caller must learn so: a new key is shown only once
            return await replace()

    async def aclose(self) -> None:
        await self._redis.aclose()


def _version(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT version FROM issued").fetchone()
    return str(row[0]) if row else ""


def _new_version() -> str:
    return secrets.token_hex(8)


def _encode(keys: IssuedKeys) -> bytes:
    return orjson.dumps([key.model_dump(mode="json") for key in keys])


def _decode(document: bytes | None, place: str) -> IssuedKeys:
    try:
        return _KEYS.validate_json(document or b"")
    except ValidationError:
        raise StoreError(
            f"{place}: the issued API keys are damaged; restore them, or delete them and issue new ones"
        ) from None
