"""The document store: a LanceDB folder with one table for each version of the index, with vectors and full text.

A file points to the current version. Any number of processes may search; writers take a lock. New rows are compared one
by one until they are indexed. Writes therefore update the indexes when too many rows are unindexed, and closing a
writer indexes all rows.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from coe.errors import ConfigError, IndexMismatch, RetrievalError, pip_install
from coe.file_lock import file_lock
from coe.retrieval import rows
from coe.retrieval.passages import (
    Collection,
    Document,
    DocumentKey,
    EncoderId,
    Passage,
    Vector,
)
from coe.retrieval.search import search_table

if TYPE_CHECKING:
    from lancedb import AsyncConnection
    from lancedb.table import AsyncTable

READ_CONSISTENCY_INTERVAL = timedelta(seconds=1)
"""Delay after which other processes see a write."""
VERSION_RETENTION = timedelta(minutes=10)
"""Replaced data stay for searches that use them."""
MIN_CHUNKS_FOR_VECTOR_INDEX = 10_000
"""Fewer vectors are compared one by one."""
MAX_UNINDEXED_CHUNKS, MAX_UNINDEXED_SHARE = 1_000, 0.05
"""Chunks, or share of all chunks, that may be outside the full-text index."""
MAX_FRAGMENTS = 50
"""Fragments (one for each write) that are not yet compacted."""
MAX_INDEX_SEGMENTS = 2
"""Segments of the vector index, each of which a search reads; with more, the index is built again."""
REINDEX_SHARE = 0.01
"""Share of all chunks that a store must have written for it to rebuild the vector index when it closes."""
DOCUMENTS_PER_PAGE = 500
LOCK_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.02


def open_store(url: str, *, base: Path, encoder: EncoderId) -> DocumentStore:
    """Open the store at `url` for vectors of `encoder`; relative folders start at `base`.

    Raises ConfigError for an invalid address.
    """
    parts = urlsplit(url)
    folder = unquote(parts.path.removeprefix("/"))
    if parts.scheme != "lancedb" or parts.netloc or parts.query or parts.fragment or not folder.strip("/"):
        raise ConfigError(
            "retrieval.store: the address does not name one folder; write lancedb:///FOLDER (relative to the state "
            "folder) or lancedb:////absolute/folder"
        )
    if find_spec("lancedb") is None:
        raise ConfigError(f"retrieval.store: lancedb is not installed; install it: {pip_install('documents')}")
    return DocumentStore(base / folder, encoder)


class DocumentStore:
    """A writable Retriever in a folder, which the first write creates. One process writes at a time; others wait.

    It is opened for one encoder. Every method raises RetrievalError as `search` does. Methods that read or write
    vectors raise IndexMismatch; `collections`, `digests`, `documents`, `delete` and `rebuilding` work for an index of
    any encoder.
    """

    def __init__(self, folder: Path, encoder: EncoderId, *, version: str | None = None) -> None:
        """`version` names the table of a draft; by default, the folder's pointer does."""
        self._folder = folder
        self._encoder = encoder
        self._version = version
        self._connection: AsyncConnection | None = None
        self._written_chunks = 0
        self._open: tuple[str, AsyncTable, EncoderId] | None = None

    # ------------------------------------------------------------------------------------------------------- reading

    async def search(
        self, text: str, vector: Vector, *, collections: Sequence[str] = (), tenant: str | None = None, limit: int
    ) -> Sequence[Passage]:
        """Search as `Retriever.search` does."""
        with self._mapped_errors():
            table = await self._checked_table()
            if table is None:
                return ()
            return await search_table(table, text, vector, collections=collections, tenant=tenant, limit=limit)

    async def collections(self) -> Sequence[Collection]:
        """Return all collections, ordered by name and tenant."""
        counts: dict[tuple[str, str], list[int]] = {}
        async for batch in self._scan(["collection", "tenant", "position"]):
            for row in batch:
                count = counts.setdefault((row["collection"], row["tenant"]), [0, 0])
                count[0] += row["position"] == 0
                count[1] += 1
        return [Collection(name, tenant or None, *count) for (name, tenant), count in sorted(counts.items())]

    async def digests(self, collection: str, tenant: str | None = None) -> Mapping[str, str]:
        """Return document id -> digest of one tenant's part of a collection."""
        where = f"position = 0 AND {rows.owned(collection, tenant)}"
        return {row["document"]: row["digest"] async for batch in self._scan(rows.DIGESTS, where) for row in batch}

    async def documents(self) -> AsyncIterator[Document]:
        """Iterate over all documents of all tenants."""
        keys = [row async for batch in self._scan(rows.KEYS, "position = 0") for row in batch]
        for start in range(0, len(keys), DOCUMENTS_PER_PAGE):
            page = [rows.key(row) for row in keys[start : start + DOCUMENTS_PER_PAGE]]
            found = [row async for batch in self._scan(rows.STORED, rows.any_of(page)) for row in batch]
            found.sort(key=rows.sort_key)
            for _, chunks in groupby(found, key=rows.key):
                yield rows.document(list(chunks))

    async def _scan(self, columns: list[str], where: str | None = None) -> AsyncIterator[list[dict[str, Any]]]:
        with self._mapped_errors():
            table = await self._table()
            if table is None:
                return
            query = table.query().select(columns)
            async for batch in await (query.where(where) if where else query).to_batches():
                yield batch.to_pylist()

    # ------------------------------------------------------------------------------------------------------- writing

    async def upsert(self, documents: Sequence[Document], vectors: NDArray[np.float32]) -> None:
        """Add documents, replacing those with the same keys. Keys must be unique among `documents`.

        `vectors` (n_chunks, dimensions), float32, holds the rows of all their chunks in order. They are written in one
        commit: a search sees all of them or none.
        """
        with self._mapped_errors():
            async with self._writing():
                table = await self._checked_table() or await self._create()
                await table.checkout_latest()
                replaced = rows.any_of([document.key for document in documents])
                data = rows.table(documents, vectors, await table.schema())
                if await table.count_rows(replaced):
                    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                    await merge.when_not_matched_by_source_delete(replaced).execute(data)
                else:
                    await table.add(data)
                self._written_chunks += len(vectors)
                await self._update_indexes(table)

    async def delete(self, keys: Sequence[DocumentKey]) -> int:
        """Delete documents and return how many existed."""
        with self._mapped_errors():
            async with self._writing():
                table = await self._table()
                if table is None:
                    return 0
                await table.checkout_latest()
                deleted = rows.any_of(keys)
                count: int = await table.count_rows(f"position = 0 AND ({deleted})")
                if count:
                    await table.delete(deleted)
                return count

    @asynccontextmanager
    async def rebuilding(self) -> AsyncIterator[DocumentStore]:
        """Create a new, empty version of the index for this store's encoder.

        It replaces the current version, atomically and for every process, when the block ends without an error. Until
        then searches use the current version, and other writers wait.
        """
        async with self._writing():
            version = _new_version()
            draft = DocumentStore(self._folder, self._encoder, version=version)
            try:
                with self._mapped_errors():
                    await self._drop_other_versions()
                    await draft._create()
                yield draft
                self._use(version)
            finally:
                await draft.aclose()

    async def aclose(self) -> None:
        """Index and compact everything that was written, and close the connection."""
        if self._written_chunks and self._open is not None:
            with suppress(RetrievalError), self._mapped_errors():
                async with self._writing():
                    table = self._open[1]
                    await table.checkout_latest()
                    await self._update_indexes(table, closing=True)
        self._written_chunks = 0
        if self._connection is not None:
            self._connection.close()
            self._connection = self._open = None

    async def _update_indexes(self, table: AsyncTable, *, closing: bool = False) -> None:
        """Bring the indexes up to date if too many rows or fragments are outside them, or `closing`.

        The vector index is built again if it is behind, fragmented, or `closing` after many writes. An incremental
        update would leave it in few large partitions. Rows of different index segments are never compacted together,
        and an index that is remapped to compacted rows is searched in twice the time (four times without
        quantisation). So it is dropped first; searches compare vectors one by one until then.
        """
        from lancedb.index import IvfSq

        count = await table.count_rows()
        text, vectors = await table.index_stats("text_idx"), await table.index_stats("vector_idx")
        fragments = (await table.stats())["fragment_stats"]["num_small_fragments"]
        many_writes = closing and self._written_chunks > REINDEX_SHARE * count
        behind = vectors is None or vectors.num_unindexed_rows > count // 4
        fragmented = vectors is not None and (vectors.num_indices or 1) > MAX_INDEX_SEGMENTS
        if count >= MIN_CHUNKS_FOR_VECTOR_INDEX and (many_writes or behind or fragmented):
            if vectors is not None:
                await table.drop_index("vector_idx")
            for _ in range(2):  # rows are compacted only once the full-text index contains them
                await table.optimize(cleanup_older_than=VERSION_RETENTION)
            partitions = int(count**0.5)
            await table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=partitions))
            return
        limit = max(MAX_UNINDEXED_CHUNKS, MAX_UNINDEXED_SHARE * count)
        if closing or fragments > MAX_FRAGMENTS or (text is not None and text.num_unindexed_rows > limit):
            await table.optimize(cleanup_older_than=VERSION_RETENTION)

    # ------------------------------------------------------------------------------------------------------- opening

    async def _checked_table(self) -> AsyncTable | None:
        """Return the table, made by this store's encoder; None before the first write. Raises IndexMismatch."""
        table = await self._table()
        if self._open is not None and self._open[2] != self._encoder:
            indexed, current = self._open[2], self._encoder
            raise IndexMismatch(
                f"{self._folder}: its vectors are of encoder {indexed.digest} ({indexed.dimensions} dimensions), the "
                f"router in use has {current.digest} ({current.dimensions}); run `coe index rebuild`, which embeds all "
                "documents"
            )
        return table

    async def _table(self) -> AsyncTable | None:
        version = self._version or self._current()
        if version is None:
            self._open = None
            return None
        if self._open is None or self._open[0] != version:
            table = await (await self._connect()).open_table(version)
            self._open = (version, table, rows.table_encoder(await table.schema()))
        return self._open[1]

    def _current(self) -> str | None:
        """Return the version in use, None before the first."""
        try:
            return (self._folder / "current").read_text()
        except FileNotFoundError:
            return None

    def _use(self, version: str) -> None:
        draft = self._folder / "current.draft"
        draft.write_text(version)
        draft.replace(self._folder / "current")

    async def _create(self) -> AsyncTable:
        from lancedb.index import FTS, Bitmap

        version = self._version or _new_version()
        table = await (await self._connect()).create_table(version, schema=rows.schema(self._encoder))
        await table.create_index("text", config=FTS(base_tokenizer="icu/split"))
        for column in ("collection", "tenant"):
            await table.create_index(column, config=Bitmap())
        if self._version is None:
            self._use(version)
        self._open = (version, table, self._encoder)
        return table

    async def _connect(self) -> AsyncConnection:
        if self._connection is None:
            os.environ.setdefault("LANCEDB_LOG", "error")  # or it prints warnings about its own indexes
            lancedb = await asyncio.to_thread(import_module, "lancedb")  # takes a second
            self._connection = await lancedb.connect_async(
                self._folder, read_consistency_interval=READ_CONSISTENCY_INTERVAL
            )
        return self._connection

    async def _drop_other_versions(self) -> None:
        """Drop tables that the pointer does not name: former versions and drafts of failed rebuilds."""
        connection = await self._connect()
        for name in (await connection.list_tables()).tables:
            if name != self._current():
                await connection.drop_table(name)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Hold the lock of the folder's writers. Raises RetrievalError after LOCK_TIMEOUT_SECONDS."""
        if self._version is not None:  # a draft, written under the lock of the store that created it
            yield
            return
        error = RetrievalError(f"{self._folder}: another process is writing there; try again when it is done")
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(file_lock(self._folder / "writing.lock", held=lambda _: error))
                    break
                except RetrievalError:
                    if time.monotonic() > deadline:
                        raise
                await asyncio.sleep(_POLL_SECONDS)
            yield

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        """Raise LanceDB's errors, most of them bare RuntimeError, as RetrievalError."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            what = str(error).partition("\n")[0][:300]
            raise RetrievalError(
                f"{self._folder}: {what}; check the folder and its disk, or delete it and index again"
            ) from error


def _new_version() -> str:
    return f"documents-{secrets.token_hex(4)}"
