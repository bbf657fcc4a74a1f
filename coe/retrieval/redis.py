"""Documents in Redis 8, shared by every gateway: vector sets, and rows of words beside them. A tenant's collection is a
part of its own, so nobody's search can touch another's."""

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
from coe.retrieval import redis_scripts as scripts
from coe.retrieval import terms
from coe.retrieval.fusion import candidates, check_encoder, fused
from coe.retrieval.passages import Chunk, Collection, Document, EncoderId, Key, Passage, Vector
from coe.retrieval.redis_connection import Connection, Moved, Rebuilding
from coe.retrieval.redis_values import arguments_of, cosine, scored

PREFIX = "coe:{documents}:"
INDEX, REBUILDING = f"{PREFIX}index", f"{PREFIX}rebuilding"
PATIENCE = 30.0
"""Seconds that a writer waits for a rebuilding to end."""
HELD_MS = 60_000
"""How long a rebuilding that died keeps writers out; it renews this three times as often."""
KEPT = 60
"""Seconds that a former version stays for the searches that began with it."""
SPARE = 10
"""Candidates fetched beyond those that are wanted: some may have gone since."""
EFFORT = 200
"""EF of VSIM: candidates that the search through the graph keeps in view."""
_POLL = 0.05


class RedisStore:
    """A DocumentStore. Nothing is connected before the first verb."""

    def __init__(
        self,
        url: str,
        encoder: EncoderId,
        *,
        draft: tuple[str, str] | None = None,
        connection: Connection | None = None,
    ) -> None:
        """`draft` is a version that is not in use, and who holds the index for it. Raises ConfigError when `url` cannot
        be a Redis address."""
        self._url = url
        self._redis = connection or Connection(url)
        self._encoder = encoder
        self._draft = draft
        script = self._redis.client.register_script
        self._upsert, self._delete = script(scripts.UPSERT), script(scripts.DELETE)
        self._words, self._vectors = script(scripts.WORDS), script(scripts.VECTORS)

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
        """As Retriever.search: dense and lexical candidates first, then the vectors and records that are missing."""
        most = candidates(limit)
        version = await self._checked()
        base = f"{PREFIX}{version}:"
        visible = {"", tenant or ""}
        parts = [
            part
            for part in await self._parts(base)
            if part.partition("/")[0] in visible and (not collections or part.partition("/")[2] in collections)
        ]
        if version is None or not parts:
            return ()
        prefixes = [f"{base}{part}:" for part in parts]
        dense, rows, chunks = await self._candidates(prefixes, vector, text, most)
        words = terms.best(rows, chunks=chunks, most=most)
        cosines = dense | await self._cosines(prefixes, [number for number in words if number not in dense], vector)
        order = fused(cosines, {number: score for number, score in words.items() if number in cosines})
        return (await self._passages(prefixes, order[: limit + SPARE], cosines, parts))[:limit]

    async def _candidates(
        self, prefixes: Sequence[str], vector: Vector, text: str, most: int
    ) -> tuple[dict[int, float], dict[str, list[bytes]], int]:
        """Chunk -> cosine of the nearest, packed rows of the question's words, and how many chunks there are."""
        async with self._redis.client.pipeline(transaction=False) as pipe:
            for prefix in prefixes:
                blob = vector.astype("<f4").tobytes()
                pipe.execute_command(
                    *("VSIM", f"{prefix}vectors", "FP32", blob, "WITHSCORES", "COUNT", most, "EF", EFFORT)
                )
                pipe.execute_command("VCARD", f"{prefix}vectors")
            found, words = await asyncio.gather(
                self._redis.answer(pipe.execute()),
                self._redis.answer(self._words(keys=prefixes, args=terms.asked(text))),
            )
        nearest = {number: cosine for near in found[::2] for number, cosine in scored(near)}
        kept = sorted(nearest, key=lambda number: -nearest[number])[:most]
        rows: dict[str, list[bytes]] = {}
        for word, packed in zip(words[::2], words[1::2], strict=True):
            rows.setdefault(word.decode(), []).append(packed)
        return {number: nearest[number] for number in kept}, rows, sum(found[1::2])

    async def _cosines(self, prefixes: Sequence[str], numbers: Sequence[int], vector: Vector) -> dict[int, float]:
        """Those of chunks that only their words found; none of chunks that are gone."""
        if not numbers:
            return {}
        found = await self._redis.answer(self._vectors(keys=prefixes, args=numbers))
        return {number: cosine(raw, vector) for number, raw in zip(numbers, found, strict=True) if raw}

    async def _passages(
        self, prefixes: Sequence[str], order: Sequence[int], cosines: Mapping[int, float], parts: Sequence[str]
    ) -> Sequence[Passage]:
        if not order:
            return ()
        async with self._redis.client.pipeline(transaction=False) as pipe:
            for prefix in prefixes:
                pipe.hmget(f"{prefix}chunks", order)
            found = await self._redis.answer(pipe.execute())
        passages = []
        for at, number in enumerate(order):
            for part, records in zip(parts, found, strict=True):
                if records[at]:
                    name, text, source, title = orjson.loads(records[at])
                    passages.append(Passage(name, text, source, title, part.partition("/")[2], cosines[number]))
        return passages

    async def collections(self) -> Sequence[Collection]:
        base = f"{PREFIX}{await self._version()}:"
        parts = await self._parts(base)
        async with self._redis.client.pipeline(transaction=False) as pipe:
            for part in parts:
                pipe.hlen(f"{base}{part}:docs")
                pipe.hlen(f"{base}{part}:chunks")
            counts = await self._redis.answer(pipe.execute())
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
                records = await self._redis.answer(self._redis.client.hmget(f"{base}{part}:chunks", numbers))
                if all(records):
                    chunks = tuple(Chunk(*orjson.loads(record)[:2]) for record in records)
                    yield Document(Key(name, collection, tenant or None), source, title, digest, chunks)

    async def _heads(self, docs: str) -> AsyncIterator[tuple[str, Any]]:
        cursor, met = 0, set[bytes]()
        while True:
            cursor, found = await self._redis.answer(self._redis.client.hscan(docs, cursor, count=500))
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
        at = 0
        for document in documents:
            rows = vectors[at : at + len(document.chunks)]
            at += len(document.chunks)
            head = orjson.dumps([document.digest, document.source, document.title])
            await self._write(
                self._upsert, document.key, document.key.id, head, *arguments_of(document, rows), new=True
            )

    async def delete(self, keys: Sequence[Key]) -> int:
        if await self._version() is None:
            return 0
        return sum([await self._write(self._delete, key, key.id) for key in dict.fromkeys(keys)])

    async def _write(self, script: Any, key: Key, *arguments: Any, new: bool = False) -> int:
        """Run a script on a document's part, once nobody rebuilds. Raises Rebuilding after PATIENCE."""
        until = asyncio.get_running_loop().time() + PATIENCE
        part = f"{key.tenant or ''}/{key.collection}"
        while True:
            version = await self._checked() if new else await self._version()
            base = f"{PREFIX}{version}:"
            places = (base, part) if new else ()
            holder = self._draft[1] if self._draft else ""
            call = script(keys=[INDEX, REBUILDING], args=[version, holder, f"{base}{part}:", *places, *arguments])
            try:
                return int(await self._redis.answer(call) or 0)
            except (Rebuilding, Moved):
                if self._draft or asyncio.get_running_loop().time() > until:
                    raise
                await asyncio.sleep(_POLL)

    @asynccontextmanager
    async def rebuilding(self) -> AsyncIterator[RedisStore]:
        """Writers wait until the block ends."""
        client, holder = self._redis.client, secrets.token_hex(8)
        until = asyncio.get_running_loop().time() + PATIENCE
        while not await self._redis.answer(client.set(REBUILDING, holder, nx=True, px=HELD_MS)):
            if asyncio.get_running_loop().time() > until:
                raise Rebuilding(f"{self._redis.place}: another rebuilding is under way; try again later")
            await asyncio.sleep(_POLL)
        renewing = asyncio.create_task(self._renewed())
        former, version = await self._version(), secrets.token_hex(4)
        try:
            yield RedisStore(self._url, self._encoder, draft=(version, holder), connection=self._redis)
            new: list[str | int] = [version, self._encoder.digest, self._encoder.dimensions, holder]
            await self._redis.answer(client.eval(scripts.MOVE, 2, INDEX, REBUILDING, *new))
        except BaseException:
            await self._forget(version, after=0)
            raise
        else:
            await self._forget(former, after=KEPT)
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            await self._redis.answer(client.eval(scripts.RELEASE, 1, REBUILDING, holder))

    async def _renewed(self) -> None:
        while True:
            await asyncio.sleep(HELD_MS / 3_000)
            with suppress(RetrievalError):
                await self._redis.answer(self._redis.client.pexpire(REBUILDING, HELD_MS))

    async def _forget(self, version: str | None, *, after: int) -> None:
        """Let a version's keys end in so many seconds."""
        cursor = 0
        while version is not None:
            cursor, keys = await self._redis.answer(
                self._redis.client.scan(cursor, match=f"coe:{{documents}}:{version}:*", count=1_000)
            )
            async with self._redis.client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.expire(key, after)
                await self._redis.answer(pipe.execute())
            if not cursor:
                return

    async def aclose(self) -> None:
        if not self._draft:  # whose connection is its maker's
            await self._redis.aclose()

    # ------------------------------------------------------------------------------------------------------- versions

    async def _create(self) -> None:
        if not self._draft:
            new: list[str | int] = [secrets.token_hex(4), self._encoder.digest, self._encoder.dimensions]
            await self._redis.answer(self._redis.client.eval(scripts.CREATE, 1, INDEX, *new))

    async def _version(self) -> str | None:
        if self._draft:
            return self._draft[0]
        version = await self._redis.answer(self._redis.client.hget(INDEX, "version"))
        return version.decode() if version else None

    async def _checked(self) -> str | None:
        """The version in use, made by this store's encoder; None before the first write."""
        if self._draft:
            return self._draft[0]
        found = await self._redis.answer(self._redis.client.hmget(INDEX, "version", "digest", "dimensions"))
        if found[0] is None:
            return None
        made_by = EncoderId(found[1].decode(), int(found[2]))
        check_encoder(self._redis.place, made_by=made_by, now=self._encoder)
        return str(found[0].decode())

    async def _parts(self, base: str) -> list[str]:
        parts = await self._redis.answer(self._redis.client.smembers(f"{base}parts"))
        return sorted(part.decode() for part in parts)
