"""Document store in Redis. Each document is written by one atomic script; a rebuild creates a new version of all keys.

While a rebuild holds its lock, other writers wait; searches use the current version. The keys are described in
`coe.retrieval.redis.scripts`.

`documents_client` opens the client, which maps the errors of the scripts to exceptions.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import RetrievalError
from coe.redis import RedisClient
from coe.retrieval.passages import Chunk, Collection, Document, DocumentKey, EncoderId, Passage, Vector
from coe.retrieval.redis import scripts
from coe.retrieval.redis.search import INDEX_KEY, KEY_PREFIX, RedisSearch
from coe.retrieval.redis.terms import term_weights

CONNECT_TIMEOUT_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0
MAX_CONNECTIONS = 16
_TRY_AGAIN = "the index is being rebuilt; try again later"


class IndexRebuilding(RetrievalError):
    """Another process rebuilds the index, so it accepts no writes."""


class VersionChanged(RetrievalError):
    """The version to write to is not, or no longer, the one in use."""


def documents_client(url: str) -> RedisClient:
    """The client for `url`, whose errors are RetrievalErrors. Raises ConfigError when it cannot be a Redis address."""
    return RedisClient(
        url,
        key="retrieval.store",
        error=RetrievalError,
        connections=MAX_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        timeout=TIMEOUT_SECONDS,
        requires="vector sets: Redis 8 or newer",
        script_errors={
            "REBUILDING": lambda place: IndexRebuilding(f"{place}: {_TRY_AGAIN}"),
            "VERSION_CHANGED": lambda place: VersionChanged(f"{place}: {_TRY_AGAIN}"),
        },
    )


REBUILD_LOCK_KEY = f"{KEY_PREFIX}rebuilding"
REBUILD_WAIT_SECONDS = 30.0
"""A writer waits this long for a rebuild to end."""
REBUILD_LOCK_MS = 60_000
"""The lock of a rebuild that died expires after this time. It is renewed three times as often."""
OLD_VERSION_TTL_SECONDS = 60
"""A former version stays for the searches that began with it."""
DOCUMENTS_PER_PIPELINE = 32
_POLL_SECONDS = 0.05

_Write = tuple[DocumentKey, tuple[bytes | str, ...]]
"""A document's key and its arguments for a script."""


class RedisStore:
    """A DocumentStore. Connects with the first command."""

    def __init__(
        self,
        url: str,
        encoder: EncoderId,
        *,
        draft: tuple[str, str] | None = None,
        connection: RedisClient | None = None,
    ) -> None:
        """`draft` is a version that is not current yet, and the holder of the rebuild's lock. Raises ConfigError if
        `url` is not a Redis address."""
        self._url = url
        self._redis = connection or documents_client(url)
        self._encoder = encoder
        self._draft = draft
        script = self._redis.client.register_script
        self._upsert, self._delete = script(scripts.UPSERT), script(scripts.DELETE)
        self._search = RedisSearch(self._redis, encoder, version=draft[0] if draft else None)

    # ------------------------------------------------------------------------------------------------------- reading

    async def search(
        self, text: str, vector: Vector, *, collections: Sequence[str] = (), tenant: str | None = None, limit: int
    ) -> Sequence[Passage]:
        """Search as `Retriever.search` does."""
        return await self._search.passages(text, vector, collections=collections, tenant=tenant, limit=limit)

    async def collections(self) -> Sequence[Collection]:
        base = f"{KEY_PREFIX}{await self._version()}:"
        parts = await self._parts(base)
        async with self._redis.client.pipeline(transaction=False) as pipe:
            for part in parts:
                pipe.hlen(f"{base}{part}:docs")
                pipe.hlen(f"{base}{part}:chunks")
            counts = await self._redis.run(pipe.execute())
        found = [
            Collection(name, tenant or None, documents, chunks)
            for (tenant, _, name), documents, chunks in zip(
                (part.partition("/") for part in parts), counts[::2], counts[1::2], strict=True
            )
            if documents
        ]
        return sorted(found, key=lambda one: (one.name, one.tenant or ""))

    async def digests(self, collection: str, tenant: str | None = None) -> Mapping[str, str]:
        docs = f"{KEY_PREFIX}{await self._version()}:{tenant or ''}/{collection}:docs"
        return {name: head[0] async for name, head in self._heads(docs)}

    async def documents(self) -> AsyncIterator[Document]:
        base = f"{KEY_PREFIX}{await self._version()}:"
        for part in await self._parts(base):
            tenant, _, collection = part.partition("/")
            async for name, (digest, source, title, numbers) in self._heads(f"{base}{part}:docs"):
                records = await self._redis.run(self._redis.client.hmget(f"{base}{part}:chunks", numbers))
                if all(records):
                    chunks = tuple(Chunk(*orjson.loads(record)[:2]) for record in records)
                    yield Document(DocumentKey(name, collection, tenant or None), source, title, digest, chunks)

    async def _heads(self, docs: str) -> AsyncIterator[tuple[str, Any]]:
        """Yield id and [digest, source, title, chunk numbers] of the documents of a part."""
        cursor, seen = 0, set[bytes]()
        while True:
            cursor, found = await self._redis.run(self._redis.client.hscan(docs, cursor, count=500))
            for name, head in found.items():
                if name not in seen:  # HSCAN may return an element twice
                    seen.add(name)
                    yield name.decode(), orjson.loads(head)
            if not cursor:
                return

    # ------------------------------------------------------------------------------------------------------- writing

    async def upsert(self, documents: Sequence[Document], vectors: NDArray[np.float32]) -> None:
        """Write documents as `DocumentStore.upsert` does, each of them atomically."""
        if not documents:
            return
        await self._create()
        writes, start = list[_Write](), 0
        for document in documents:
            rows = vectors[start : start + len(document.chunks)]
            start += len(document.chunks)
            writes.append((document.key, _upsert_arguments(document, rows)))
        for start in range(0, len(writes), DOCUMENTS_PER_PIPELINE):
            await self._write(self._upsert, writes[start : start + DOCUMENTS_PER_PIPELINE], new=True)

    async def delete(self, keys: Sequence[DocumentKey]) -> int:
        if await self._version() is None:
            return 0
        return sum([await self._write(self._delete, [(key, (key.id,))]) for key in dict.fromkeys(keys)])

    async def _write(self, script: Any, writes: Sequence[_Write], *, new: bool = False) -> int:
        """Run a script for each document in one pipeline and return the sum of its results.

        All are repeated if a rebuild began in the meantime. Raises IndexRebuilding after REBUILD_WAIT_SECONDS.
        """
        deadline = asyncio.get_running_loop().time() + REBUILD_WAIT_SECONDS
        holder = self._draft[1] if self._draft else ""
        while True:
            version = await self._search.version() if new else await self._version()
            base = f"{KEY_PREFIX}{version}:"
            async with self._redis.client.pipeline(transaction=False) as pipe:
                for key, arguments in writes:
                    part = f"{key.tenant or ''}/{key.collection}"
                    names = (base, part) if new else ()
                    args = [version, holder, f"{base}{part}:", *names, *arguments]
                    await script(keys=[INDEX_KEY, REBUILD_LOCK_KEY], args=args, client=pipe)
                try:
                    return sum(int(result or 0) for result in await self._redis.run(pipe.execute()))
                except (IndexRebuilding, VersionChanged):
                    if self._draft or asyncio.get_running_loop().time() > deadline:
                        raise
            await asyncio.sleep(_POLL_SECONDS)

    @asynccontextmanager
    async def rebuilding(self) -> AsyncIterator[RedisStore]:
        """Rebuild the index as `DocumentStore.rebuilding` does. Other writers wait until the block ends."""
        client, holder = self._redis.client, secrets.token_hex(8)
        await self._acquire_rebuild_lock(holder)
        renewal = asyncio.create_task(self._renew_rebuild_lock())
        former, version = await self._version(), secrets.token_hex(4)
        try:
            yield RedisStore(self._url, self._encoder, draft=(version, holder), connection=self._redis)
            new: list[str | int] = [version, self._encoder.digest, self._encoder.dimensions, holder]
            await self._redis.run(client.eval(scripts.SET_VERSION, 2, INDEX_KEY, REBUILD_LOCK_KEY, *new))
        except BaseException:
            await self._expire(version, seconds=0)
            raise
        else:
            await self._expire(former, seconds=OLD_VERSION_TTL_SECONDS)
        finally:
            renewal.cancel()
            with suppress(asyncio.CancelledError):
                await renewal
            await self._redis.run(client.eval(scripts.RELEASE_LOCK, 1, REBUILD_LOCK_KEY, holder))

    async def _acquire_rebuild_lock(self, holder: str) -> None:
        client, deadline = self._redis.client, asyncio.get_running_loop().time() + REBUILD_WAIT_SECONDS
        while not await self._redis.run(client.set(REBUILD_LOCK_KEY, holder, nx=True, px=REBUILD_LOCK_MS)):
            if asyncio.get_running_loop().time() > deadline:
                raise IndexRebuilding(f"{self._redis.place}: another rebuilding is under way; try again later")
            await asyncio.sleep(_POLL_SECONDS)

    async def _renew_rebuild_lock(self) -> None:
        while True:
            await asyncio.sleep(REBUILD_LOCK_MS / 3_000)
            with suppress(RetrievalError):
                await self._redis.run(self._redis.client.pexpire(REBUILD_LOCK_KEY, REBUILD_LOCK_MS))

    async def _expire(self, version: str | None, *, seconds: int) -> None:
        """Set the time to live of all keys of a version."""
        cursor = 0
        while version is not None:
            cursor, keys = await self._redis.run(
                self._redis.client.scan(cursor, match=f"{KEY_PREFIX}{version}:*", count=1_000)
            )
            async with self._redis.client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.expire(key, seconds)
                await self._redis.run(pipe.execute())
            if not cursor:
                return

    async def aclose(self) -> None:
        if not self._draft:  # a draft shares the connection of the store that created it
            await self._redis.aclose()

    # ------------------------------------------------------------------------------------------------------- versions

    async def _create(self) -> None:
        if not self._draft:
            new: list[str | int] = [secrets.token_hex(4), self._encoder.digest, self._encoder.dimensions]
            await self._redis.run(self._redis.client.eval(scripts.CREATE, 1, INDEX_KEY, *new))

    async def _version(self) -> str | None:
        if self._draft:
            return self._draft[0]
        version = await self._redis.run(self._redis.client.hget(INDEX_KEY, "version"))
        return version.decode() if version else None

    async def _parts(self, base: str) -> list[str]:
        parts = await self._redis.run(self._redis.client.smembers(f"{base}parts"))
        return sorted(part.decode() for part in parts)


def _upsert_arguments(document: Document, vectors: NDArray[np.float32]) -> tuple[bytes | str, ...]:
    """Return the arguments of the UPSERT script: id and head, then each chunk's vector, record and terms."""
    arguments: list[bytes | str] = [
        document.key.id,
        orjson.dumps([document.digest, document.source, document.title]),
    ]
    for chunk, vector in zip(document.chunks, vectors, strict=True):
        record = orjson.dumps([chunk.id, chunk.text, document.source, document.title])
        terms = " ".join(f"{term} {weight}" for term, weight in term_weights(chunk.text).items())
        arguments += [vector.astype("<f4").tobytes(), record, terms]
    return tuple(arguments)
