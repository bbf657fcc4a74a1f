"""Documents in Redis 8, shared by every gateway: vector sets, and rows of words beside them. A tenant's collection is a
part of its own, so nobody's search can touch another's.

A pool of connections to the Redis that keeps documents: bounded in number and time, every failure an own error.
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
from coe.retrieval.passages import Chunk, Collection, Document, EncoderId, Key, Passage, Vector
from coe.retrieval.redis import scripts
from coe.retrieval.redis.client import Moved, Rebuilding, documents_client
from coe.retrieval.redis.search import INDEX, PREFIX, RedisSearch
from coe.retrieval.redis.terms import arguments_of

REBUILDING = f"{PREFIX}rebuilding"
PATIENCE = 30.0
"""Seconds that a writer waits for a rebuilding to end."""
HELD_MS = 60_000
"""How long a rebuilding that died keeps writers out; it renews this three times as often."""
KEPT = 60
"""Seconds that a former version stays for the searches that began with it."""
BATCH = 32
"""Documents that are written on one way to the server and back."""
_POLL = 0.05

_Write = tuple[Key, tuple[bytes | str, ...]]
"""A document and what the script is told of it."""


class RedisStore:
    """A DocumentStore. Nothing is connected before the first verb."""

    def __init__(
        self,
        url: str,
        encoder: EncoderId,
        *,
        draft: tuple[str, str] | None = None,
        connection: RedisClient | None = None,
    ) -> None:
        """`draft` is a version that is not in use, and who holds the index for it. Raises ConfigError when `url` cannot
        be a Redis address."""
        self._url = url
        self._redis = connection or documents_client(url)
        self._encoder = encoder
        self._draft = draft
        script = self._redis.client.register_script
        self._upsert, self._delete = script(scripts.UPSERT), script(scripts.DELETE)
        self._search = RedisSearch(self._redis, encoder, version=draft[0] if draft else None)

    # ------------------------------------------------------------------------------------------------------- reading

    async def search(
        self,
        text: str,
        vector: Vector,
        *,
        collections: Sequence[str] = (),
        tenant: str | None = None,
        limit: int,
    ) -> Sequence[Passage]:
        """As Retriever.search."""
        return await self._search.passages(text, vector, collections=collections, tenant=tenant, limit=limit)

    async def collections(self) -> Sequence[Collection]:
        base = f"{PREFIX}{await self._version()}:"
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
        docs = f"{PREFIX}{await self._version()}:{tenant or ''}/{collection}:docs"
        return {name: head[0] async for name, head in self._heads(docs)}

    async def stored(self) -> AsyncIterator[Document]:
        base = f"{PREFIX}{await self._version()}:"
        for part in await self._parts(base):
            tenant, _, collection = part.partition("/")
            async for name, (digest, source, title, numbers) in self._heads(f"{base}{part}:docs"):
                records = await self._redis.run(self._redis.client.hmget(f"{base}{part}:chunks", numbers))
                if all(records):
                    chunks = tuple(Chunk(*orjson.loads(record)[:2]) for record in records)
                    yield Document(Key(name, collection, tenant or None), source, title, digest, chunks)

    async def _heads(self, docs: str) -> AsyncIterator[tuple[str, Any]]:
        cursor, met = 0, set[bytes]()
        while True:
            cursor, found = await self._redis.run(self._redis.client.hscan(docs, cursor, count=500))
            for name, head in found.items():
                if name not in met:  # a scan may come by twice
                    met.add(name)
                    yield name.decode(), orjson.loads(head)
            if not cursor:
                return

    # ------------------------------------------------------------------------------------------------------- writing

    async def upsert(self, documents: Sequence[Document], vectors: NDArray[np.float32]) -> None:
        """One step for each document: a search sees the former one or the new one."""
        if not documents:
            return
        await self._create()
        writes, at = list[_Write](), 0
        for document in documents:
            rows = vectors[at : at + len(document.chunks)]
            at += len(document.chunks)
            head = orjson.dumps([document.digest, document.source, document.title])
            writes.append((document.key, (document.key.id, head, *arguments_of(document, rows))))
        for start in range(0, len(writes), BATCH):
            await self._write(self._upsert, writes[start : start + BATCH], new=True)

    async def delete(self, keys: Sequence[Key]) -> int:
        if await self._version() is None:
            return 0
        return sum([await self._write(self._delete, [(key, (key.id,))]) for key in dict.fromkeys(keys)])

    async def _write(self, script: Any, writes: Sequence[_Write], *, new: bool = False) -> int:
        """Run a script on the part of each document, on one way there and back, once nobody rebuilds: all of them again
        where somebody began meanwhile. What they answer in sum. Raises Rebuilding after PATIENCE."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        holder = self._draft[1] if self._draft else ""
        while True:
            version = await self._search.version() if new else await self._version()
            base = f"{PREFIX}{version}:"
            async with self._redis.client.pipeline(transaction=False) as pipe:
                for key, arguments in writes:
                    part = f"{key.tenant or ''}/{key.collection}"
                    places = (base, part) if new else ()
                    args = [version, holder, f"{base}{part}:", *places, *arguments]
                    await script(keys=[INDEX, REBUILDING], args=args, client=pipe)
                try:
                    return sum(int(answer or 0) for answer in await self._redis.run(pipe.execute()))
                except (Rebuilding, Moved):
                    if self._draft or asyncio.get_running_loop().time() > deadline:
                        raise
            await asyncio.sleep(_POLL)

    @asynccontextmanager
    async def rebuilding(self) -> AsyncIterator[RedisStore]:
        """Writers wait until the block ends."""
        client, holder = self._redis.client, secrets.token_hex(8)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not await self._redis.run(client.set(REBUILDING, holder, nx=True, px=HELD_MS)):
            if asyncio.get_running_loop().time() > deadline:
                raise Rebuilding(f"{self._redis.place}: another rebuilding is under way; try again later")
            await asyncio.sleep(_POLL)
        renewing = asyncio.create_task(self._renewed())
        former, version = await self._version(), secrets.token_hex(4)
        try:
            yield RedisStore(self._url, self._encoder, draft=(version, holder), connection=self._redis)
            new: list[str | int] = [version, self._encoder.digest, self._encoder.dimensions, holder]
            await self._redis.run(client.eval(scripts.MOVE, 2, INDEX, REBUILDING, *new))
        except BaseException:
            await self._forget(version, after=0)
            raise
        else:
            await self._forget(former, after=KEPT)
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            await self._redis.run(client.eval(scripts.RELEASE, 1, REBUILDING, holder))

    async def _renewed(self) -> None:
        while True:
            await asyncio.sleep(HELD_MS / 3_000)
            with suppress(RetrievalError):
                await self._redis.run(self._redis.client.pexpire(REBUILDING, HELD_MS))

    async def _forget(self, version: str | None, *, after: int) -> None:
        """Let a version's keys end in so many seconds."""
        cursor = 0
        while version is not None:
            cursor, keys = await self._redis.run(
                self._redis.client.scan(cursor, match=f"coe:{{documents}}:{version}:*", count=1_000)
            )
            async with self._redis.client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.expire(key, after)
                await self._redis.run(pipe.execute())
            if not cursor:
                return

    async def aclose(self) -> None:
        if not self._draft:  # whose connection is its maker's
            await self._redis.aclose()

    # ------------------------------------------------------------------------------------------------------- versions

    async def _create(self) -> None:
        if not self._draft:
            new: list[str | int] = [secrets.token_hex(4), self._encoder.digest, self._encoder.dimensions]
            await self._redis.run(self._redis.client.eval(scripts.CREATE, 1, INDEX, *new))

    async def _version(self) -> str | None:
        if self._draft:
            return self._draft[0]
        version = await self._redis.run(self._redis.client.hget(INDEX, "version"))
        return version.decode() if version else None

    async def _parts(self, base: str) -> list[str]:
        parts = await self._redis.run(self._redis.client.smembers(f"{base}parts"))
        return sorted(part.decode() for part in parts)
