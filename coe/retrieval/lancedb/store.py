"""Documents in one folder, with LanceDB: vectors, full text and filters in one table, one table a version.

Searching a LanceDB table: first for the places of rows alone, then for what the best of them hold, since a row's
vector and texts cost more to fetch than to find.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import RetrievalError
from coe.retrieval.fusion import check_encoder
from coe.retrieval.lancedb import rows
from coe.retrieval.lancedb.pointer import Pointer, writing
from coe.retrieval.passages import Collection, Document, EncoderId, Key, Passage, Vector

if TYPE_CHECKING:
    from lancedb import AsyncConnection
    from lancedb.table import AsyncTable
from coe.retrieval.fusion import candidates, contenders, fused

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import AsyncTable


NPROBES = 48
"""Partitions of the vector index that a search looks into, of as many as the root of the chunks: of 100,000 chunks it
finds 99.6 % of the nearest ten."""
SPARE = 3
"""Candidates fetched beyond those that are wanted: some may have gone since."""


async def passages(
    table: AsyncTable, text: str, vector: Vector, *, collections: Sequence[str], tenant: str | None, limit: int
) -> Sequence[Passage]:
    """As Retriever.search. A row's place is never another row's, so what goes meanwhile is only missing. The index of
    vectors is quantised; what is told of them is not."""
    most, where = candidates(limit), rows.visible(collections, tenant)
    near = table.vector_search(vector).distance_type("cosine").nprobes(NPROBES).where(where)
    said = table.query().nearest_to_text(rows.words(text), columns=["text"]).where(where)
    dense, lexical = await asyncio.gather(_scored(near, "_distance", most), _scored(said, "_score", most))
    cosines = {row: 1.0 - distance for row, distance in dense.items()}
    best = [*fused(cosines, lexical)[: limit + SPARE], *contenders(cosines, lexical, wanted=limit + SPARE)]
    if not best:
        return ()
    held = await table.take_row_ids(best).with_row_id().select([*rows.FOUND, "vector"]).to_arrow()
    exact = dict(zip(held[_PLACE].to_pylist(), _cosines(held, vector), strict=True))
    order = fused(exact, lexical)
    found = {row[_PLACE]: rows.passage(row, exact[row[_PLACE]]) for row in held.drop_columns("vector").to_pylist()}
    return list({found[row].id: found[row] for row in order}.values())[:limit]


_PLACE = "_rowid"


async def _scored(query: Any, column: str, most: int) -> dict[int, float]:
    found: pa.Table = await query.with_row_id().select([column]).limit(most).to_arrow()
    return dict(zip(found[_PLACE].to_pylist(), found[column].to_pylist(), strict=True))


def _cosines(held: pa.Table, vector: Vector) -> list[float]:
    kept: NDArray[np.float32] = held["vector"].combine_chunks().flatten().to_numpy().reshape(-1, len(vector))
    found: list[float] = (kept @ vector).tolist()
    return found


FRESH = timedelta(seconds=1)
"""How late another process may see what was written."""
KEPT = timedelta(minutes=10)
"""How long a searched state outlives its replacement."""
MANY = 10_000
"""Chunks from which on vectors get an index of their own; fewer are compared one by one."""
LAG, LAG_SHARE = 1_000, 0.05
"""Chunks, or the share of all, that may lie outside of the indexes; they are looked through one by one."""
PARTS = 50
"""Fragments (one a write) from which on they are joined."""
SEGMENTS = 2
"""Of the vector index; each is looked through, so where joining made more of them it is made anew."""
FEW_SHARE = 0.01
"""Chunks written by one store, as a share of all, up to which its end leaves the vectors' index as it is."""
PAGE = 500


class LanceStore:
    """A DocumentStore in `folder`, made by the first write. Any number of processes may search it; one writes at a
    time, others wait for it up to `pointer.PATIENCE`."""

    def __init__(self, folder: Path, encoder: EncoderId, *, version: str | None = None) -> None:
        """`version` fixes the table; left out, it is the one that the folder's pointer names."""
        self._folder = folder
        self._encoder = encoder
        self._pointer = Pointer(folder / "current")
        self._version = version
        self._connection: AsyncConnection | None = None
        self._written = 0
        self._open: tuple[str, AsyncTable, EncoderId] | None = None

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
        with self._telling():
            table = await self._checked()
            if table is None:
                return ()
            return await passages(table, text, vector, collections=collections, tenant=tenant, limit=limit)

    async def collections(self) -> Sequence[Collection]:
        counts: dict[tuple[str, str], list[int]] = {}
        async for batch in self._scan(["collection", "tenant", "position"]):
            for row in batch:
                count = counts.setdefault((row["collection"], row["tenant"]), [0, 0])
                count[0] += row["position"] == 0
                count[1] += 1
        return [Collection(name, tenant or None, *count) for (name, tenant), count in sorted(counts.items())]

    async def digests(self, collection: str, tenant: str | None = None) -> Mapping[str, str]:
        where = f"position = 0 AND {rows.owned(collection, tenant)}"
        return {row["document"]: row["digest"] async for batch in self._scan(rows.DIGESTS, where) for row in batch}

    async def stored(self) -> AsyncIterator[Document]:
        """A document's chunks lie together, since they are written together."""
        keys = [row async for batch in self._scan(rows.KEYS, "position = 0") for row in batch]
        for start in range(0, len(keys), PAGE):
            page = [rows.key(row) for row in keys[start : start + PAGE]]
            found = [row async for batch in self._scan(rows.STORED, rows.any_of(page)) for row in batch]
            found.sort(key=rows.place)
            for _, chunks in groupby(found, key=rows.key):
                yield rows.document(list(chunks))

    async def _scan(self, columns: list[str], where: str | None = None) -> AsyncIterator[list[dict[str, Any]]]:
        with self._telling():
            table = await self._table()
            if table is None:
                return
            query = table.query().select(columns)
            async for batch in await (query.where(where) if where else query).to_batches():
                yield batch.to_pylist()

    # ------------------------------------------------------------------------------------------------------- writing

    async def upsert(self, documents: Sequence[Document], vectors: NDArray[np.float32]) -> None:
        """One commit: a search sees all of it or nothing."""
        if not documents:
            return
        with self._telling():
            async with self._writing():
                table = await self._checked() or await self._create()
                await table.checkout_latest()
                known = rows.any_of([document.key for document in documents])
                data = rows.table(documents, vectors, await table.schema())
                if await table.count_rows(known):
                    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                    await merge.when_not_matched_by_source_delete(known).execute(data)
                else:
                    await table.add(data)
                self._written += len(vectors)
                await self._keep_up(table)

    async def delete(self, keys: Sequence[Key]) -> int:
        with self._telling():
            async with self._writing():
                table = await self._table()
                if table is None or not keys:
                    return 0
                await table.checkout_latest()
                known = rows.any_of(keys)
                count: int = await table.count_rows(f"position = 0 AND ({known})")
                if count:
                    await table.delete(known)
                return count

    @asynccontextmanager
    async def rebuilding(self) -> AsyncIterator[LanceStore]:
        """Writers wait until the block ends."""
        async with self._writing():
            version = _new_version()
            draft = LanceStore(self._folder, self._encoder, version=version)
            try:
                with self._telling():
                    await self._forget_others()
                    await draft._create()
                yield draft
                self._pointer.move(version)
            finally:
                await draft.aclose()

    async def aclose(self) -> None:
        """What was written is put into the indexes and joined: a search looks through the rest one by one, words above
        all, and what lies in several segments of an index cannot be joined."""
        if self._written and self._open is not None:
            with suppress(RetrievalError), self._telling():
                async with self._writing():
                    table = self._open[1]
                    await table.checkout_latest()
                    if not await self._indexed(table, await table.count_rows(), settling=True):
                        await table.optimize(cleanup_older_than=KEPT)
        self._written = 0
        if self._connection is not None:
            self._connection.close()
            self._connection = self._open = None

    async def _keep_up(self, table: AsyncTable) -> None:
        """Bring the indexes up to what was written, once that is worth it."""
        count = await table.count_rows()
        text = await table.index_stats("text_idx")
        fragments = (await table.stats())["fragment_stats"]["num_small_fragments"]
        late = text is not None and text.num_unindexed_rows > max(LAG, LAG_SHARE * count)
        if not await self._indexed(table, count) and (fragments > PARTS or late):
            await table.optimize(cleanup_older_than=KEPT)

    async def _indexed(self, table: AsyncTable, count: int, *, settling: bool = False) -> bool:
        """Join all and make the vectors' index anew, where there are enough of them and it is behind or in pieces, or
        in the end of more than a few writes: bringing one up to date leaves it in few large partitions.

        Rows under different pieces of an index are never joined, and one that is carried over to joined rows is looked
        through in twice the time (four times without quantising); so the former is dropped first, and searches compare
        one by one meanwhile.
        """
        from lancedb.index import IvfSq

        stats = await table.index_stats("vector_idx")
        behind, pieces = (count, 0) if stats is None else (stats.num_unindexed_rows, stats.num_indices or 1)
        much = settling and self._written > FEW_SHARE * count
        if count < MANY or not (much or behind > count // 4 or pieces > SEGMENTS):
            return False
        if stats is not None:
            await table.drop_index("vector_idx")
        for _ in range(2):  # rows are joined only where the index of words has them already
            await table.optimize(cleanup_older_than=KEPT)
        partitions = int(count**0.5)
        await table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=partitions))
        return True

    # ------------------------------------------------------------------------------------------------------- opening

    async def _checked(self) -> AsyncTable | None:
        """The table, made by this store's encoder; None before the first write."""
        table = await self._table()
        if self._open is not None:
            check_encoder(str(self._folder), made_by=self._open[2], now=self._encoder)
        return table

    async def _table(self) -> AsyncTable | None:
        version = self._version or self._pointer.read()
        if version is None:
            self._open = None
            return None
        if self._open is None or self._open[0] != version:
            table = await (await self._connected()).open_table(version)
            self._open = (version, table, rows.made_by(await table.schema()))
        return self._open[1]

    async def _create(self) -> AsyncTable:
        from lancedb.index import FTS, Bitmap

        version = self._version or _new_version()
        table = await (await self._connected()).create_table(version, schema=rows.schema(self._encoder))
        await table.create_index("text", config=FTS(base_tokenizer="icu/split"))
        for column in ("collection", "tenant"):
            await table.create_index(column, config=Bitmap())
        if self._version is None:
            self._pointer.move(version)
        self._open = (version, table, self._encoder)
        return table

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = await _connect(self._folder)
        return self._connection

    async def _forget_others(self) -> None:
        """Tables that the pointer does not name: former ones, and those of a rebuilding that failed."""
        connection = await self._connected()
        for name in (await connection.list_tables()).tables:
            if name != self._pointer.read():
                await connection.drop_table(name)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        if self._version is not None:  # of a draft, whose maker is the writer
            yield
            return
        async with writing(self._folder):
            yield

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """LanceDB's errors, most of them bare RuntimeError, as RetrievalError."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            what = str(error).partition("\n")[0][:300]
            raise RetrievalError(
                f"{self._folder}: {what}; check the folder and its disk, or delete it and index again"
            ) from error


def _new_version() -> str:
    return f"documents-{secrets.token_hex(4)}"


async def _connect(folder: Path) -> AsyncConnection:
    lancedb = await asyncio.to_thread(_import)
    connection: AsyncConnection = await lancedb.connect_async(folder, read_consistency_interval=FRESH)
    return connection


def _import() -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # or it warns of its own indexes on standard error
    import lancedb  # takes a second

    return lancedb
