"""The document store: a LanceDB folder with one table, with vectors and full text.

Any number of processes may search; writers take a lock. New rows are compared one by one until they are indexed. Writes
therefore update the indexes when too many rows are unindexed, and closing a writer indexes all rows.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from coe.errors import ConfigError, IndexMismatch, RetrievalError, pip_install
from coe.file_lock import file_lock
from coe.retrieval import rows
from coe.retrieval.passages import Collection, Document, DocumentKey, EncoderId, Passage, Vector
from coe.retrieval.search import search_table

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb import AsyncConnection
    from lancedb.table import AsyncTable

TABLE = "documents"
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

    It is opened for one encoder. Every method raises RetrievalError as `search` does. `search` and `upsert` raise
    IndexMismatch; the other methods work for an index of any encoder.
    """

    def __init__(self, folder: Path, encoder: EncoderId) -> None:
        self._folder = folder
        self._encoder = encoder
        self._connection: AsyncConnection | None = None
        self._opened: AsyncTable | None = None
        self._has_written = False

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
        found = await self._rows(["collection", "tenant", "position"])
        chunks = Counter((row["collection"], row["tenant"]) for row in found)
        documents = Counter((row["collection"], row["tenant"]) for row in found if row["position"] == 0)
        return [Collection(key[0], key[1] or None, documents[key], chunks[key]) for key in sorted(chunks)]

    async def digests(self, collection: str, tenant: str | None = None) -> Mapping[str, str]:
        """Return document id -> digest of one tenant's part of a collection."""
        found = await self._rows(["document", "digest"], f"position = 0 AND {rows.owned(collection, tenant)}")
        return {row["document"]: row["digest"] for row in found}

    async def _rows(self, columns: list[str], where: str | None = None) -> list[dict[str, Any]]:
        with self._mapped_errors():
            table = await self._table()
            if table is None:
                return []
            query = table.query().select(columns)
            found: list[dict[str, Any]] = await (query.where(where) if where else query).to_list()
            return found

    # ------------------------------------------------------------------------------------------------------- writing

    async def upsert(self, documents: Sequence[Document], vectors: NDArray[np.float32]) -> None:
        """Add documents, replacing those with the same keys. Keys must be unique among `documents`.

        `vectors` (n_chunks, dimensions), float32, holds the rows of all their chunks in order. They are written in one
        commit: a search sees all of them or none.
        """
        with self._mapped_errors():
            async with self._writing():
                table = await self._checked_table() or await self._create(rows.schema(self._encoder))
                replaced = rows.any_of([document.key for document in documents])
                data = rows.table(documents, vectors, await table.schema())
                if await table.count_rows(replaced):
                    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                    await merge.when_not_matched_by_source_delete(replaced).execute(data)
                else:
                    await table.add(data)
                await self._update_indexes(table)
                self._has_written = True

    async def delete(self, keys: Sequence[DocumentKey]) -> int:
        """Delete documents and return how many existed."""
        with self._mapped_errors():
            async with self._writing():
                table = await self._table()
                if table is None:
                    return 0
                deleted = rows.any_of(keys)
                count: int = await table.count_rows(f"position = 0 AND ({deleted})")
                if count:
                    await table.delete(deleted)
                return count

    async def rebuild(self, embed: Callable[[list[str], list[str]], NDArray[np.float32]]) -> int:
        """Replace all vectors by those of this store's encoder, and return the number of documents.

        `embed` returns the vectors of chunks by titles and texts; it runs in a thread. The new vectors replace the old
        ones in one commit. Until then searches use the old ones, and other writers wait.
        """
        with self._mapped_errors():
            async with self._writing():
                table = await self._table()
                if table is None:
                    return 0
                stored = (await table.query().to_arrow()).drop_columns("vector")
                columns = stored["title"].to_pylist(), stored["text"].to_pylist()
                vectors = await asyncio.to_thread(embed, *columns)
                table = await self._create(rows.with_vectors(stored, vectors, self._encoder))
                await self._update_indexes(table, closing=True)
                return sum(position == 0 for position in stored["position"].to_pylist())

    async def aclose(self) -> None:
        """Index and compact everything that was written, and close the connection."""
        if self._has_written and self._opened is not None:
            with suppress(RetrievalError), self._mapped_errors():
                async with self._writing():
                    await self._update_indexes(self._opened, closing=True)
        self._has_written = False
        if self._connection is not None:
            self._connection.close()
            self._connection = self._opened = None

    async def _update_indexes(self, table: AsyncTable, *, closing: bool = False) -> None:
        """Bring the indexes up to date if too many rows or fragments are outside them, or `closing`.

        The vector index is built again if it has too many segments. An incremental update would leave it in few large
        partitions. Rows of different index segments are never compacted together, and an index that is remapped to
        compacted rows is searched in twice the time (four times without quantisation). So it is dropped first; searches
        compare vectors one by one until then.
        """
        from lancedb.index import IvfSq

        count = await table.count_rows()
        text, vectors = await table.index_stats("text_idx"), await table.index_stats("vector_idx")
        is_outdated = vectors is None or (vectors.num_indices or 1) > MAX_INDEX_SEGMENTS
        if count >= MIN_CHUNKS_FOR_VECTOR_INDEX and is_outdated:
            if vectors is not None:
                await table.drop_index("vector_idx")
            for _ in range(2):  # rows are compacted only once the full-text index contains them
                await table.optimize(cleanup_older_than=VERSION_RETENTION)
            partitions = int(count**0.5)
            await table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=partitions))
            return
        limit = max(MAX_UNINDEXED_CHUNKS, MAX_UNINDEXED_SHARE * count)
        fragments = (await table.stats())["fragment_stats"]["num_small_fragments"]
        if closing or fragments > MAX_FRAGMENTS or (text is not None and text.num_unindexed_rows > limit):
            await table.optimize(cleanup_older_than=VERSION_RETENTION)

    # ------------------------------------------------------------------------------------------------------- opening

    async def _checked_table(self) -> AsyncTable | None:
        """Return the table, made by this store's encoder; None before the first write. Raises IndexMismatch."""
        table = await self._table()
        if table is not None and (indexed := rows.table_encoder(await table.schema())) != self._encoder:
            raise IndexMismatch(
                f"{self._folder}: its vectors are of encoder {indexed.digest} ({indexed.dimensions} dimensions), the "
                f"router in use has {self._encoder.digest} ({self._encoder.dimensions}); run `coe index rebuild`, "
                "which embeds all documents"
            )
        return table

    async def _table(self) -> AsyncTable | None:
        """Return the table, None before the first write."""
        if self._opened is None and (self._folder / f"{TABLE}.lance").exists():
            self._opened = await (await self._connect()).open_table(TABLE)
        return self._opened

    async def _create(self, content: pa.Schema | pa.Table) -> AsyncTable:
        """Create the table, empty or with rows, in place of the former one."""
        import pyarrow as pa
        from lancedb.index import FTS, Bitmap

        mode = "create" if self._opened is None else "overwrite"
        given = {"schema": content} if isinstance(content, pa.Schema) else {"data": content, "schema": content.schema}
        self._opened = table = await (await self._connect()).create_table(TABLE, mode=mode, **given)
        await table.create_index("text", config=FTS(base_tokenizer="icu/split"))
        for column in ("collection", "tenant"):
            await table.create_index(column, config=Bitmap())
        return table

    async def _connect(self) -> AsyncConnection:
        if self._connection is None:
            os.environ.setdefault("LANCEDB_LOG", "error")  # or it prints warnings about its own indexes
            lancedb = await asyncio.to_thread(import_module, "lancedb")  # takes a second
            self._connection = await lancedb.connect_async(
                self._folder, read_consistency_interval=READ_CONSISTENCY_INTERVAL
            )
        return self._connection

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Hold the lock of the folder's writers, with the table at its latest version. Raises RetrievalError after
        LOCK_TIMEOUT_SECONDS."""
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
            if self._opened is not None:
                await self._opened.checkout_latest()
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
