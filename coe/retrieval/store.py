"""The document store: a LanceDB folder with one table, with vectors and full text.

Any number of processes may search; writers take a lock. New rows are compared one by one until they are indexed. Writes
therefore update the indexes when too many rows are unindexed, and closing a writer indexes all rows.

Rows of a LanceDB table, one for each chunk: conversion from documents, and filter conditions.

Hybrid search in a LanceDB table: one ranking by vector and BM25.

Both searches return row ids and scores only; the candidates are read afterwards. Scores are added (cosine +
BM25_WEIGHT * BM25). Reciprocal rank fusion gave a lower recall
(docs/experiments/retrieval.md).
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
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from coe.errors import ConfigError, IndexMismatch, RetrievalError, pip_install
from coe.file_lock import file_lock
from coe.retrieval.insertion import Collection, Document, DocumentKey, EncoderId, Passage, Vector

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb import AsyncConnection
    from lancedb.table import AsyncTable


SHARED_TENANT = ""
"""Tenant column of shared documents."""


def schema(encoder: EncoderId) -> pa.Schema:
    """Return the schema for vectors of `encoder`, whose digest is stored in the metadata."""
    import pyarrow as pa

    texts = ("id", "text", "document", "collection", "tenant", "source", "title", "digest")
    fields = [pa.field(name, pa.string(), nullable=False) for name in texts]
    fields.append(pa.field("position", pa.int32(), nullable=False))
    fields.append(pa.field("vector", pa.list_(pa.float32(), encoder.dimensions), nullable=False))
    return pa.schema(fields, metadata={"encoder": encoder.digest})


def table_encoder(table: pa.Schema) -> EncoderId:
    """Return the encoder of a table."""
    digest = (table.metadata or {}).get(b"encoder", b"unknown").decode()
    return EncoderId(digest, table.field("vector").type.list_size)


def arrow_table(documents: Sequence[Document], vectors: NDArray[np.float32], shape: pa.Schema) -> pa.Table:
    """Convert documents, with the vectors (n_chunks, dimensions) of all their chunks."""
    import pyarrow as pa

    chunks = [(document, position, chunk) for document in documents for position, chunk in enumerate(document.chunks)]
    rows = [
        {
            "id": chunk.id,
            "text": chunk.text,
            "document": document.key.id,
            "collection": document.key.collection,
            "tenant": document.key.tenant or SHARED_TENANT,
            "source": document.source,
            "title": document.title,
            "digest": document.digest,
            "position": position,
            "vector": vector,
        }
        for (document, position, chunk), vector in zip(chunks, vectors, strict=True)
    ]
    return pa.Table.from_pylist(rows, shape)


def with_vectors(stored: pa.Table, vectors: NDArray[np.float32], encoder: EncoderId) -> pa.Table:
    """Return stored rows without vectors with these, of another encoder."""
    import pyarrow as pa

    shape = schema(encoder)
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), encoder.dimensions)
    return pa.table([*(stored[name] for name in shape.names[:-1]), column], schema=shape)


# ---------------------------------------------------------------------------------------------------------- conditions


def visible(collections: Sequence[str], tenant: str | None) -> str:
    """SQL condition for the rows of these collections (empty: all) that a tenant may see."""
    own = _one_of("tenant", [SHARED_TENANT] if tenant is None else [SHARED_TENANT, tenant])
    return f"{own} AND {_one_of('collection', collections)}" if collections else own


def owned(collection: str, tenant: str | None) -> str:
    """SQL condition for one tenant's part of a collection."""
    return f"collection = {_quoted(collection)} AND tenant = {_quoted(tenant or SHARED_TENANT)}"


def any_of(keys: Sequence[DocumentKey]) -> str:
    """SQL condition for the rows of these documents."""
    ordered = sorted((one.collection, one.tenant or SHARED_TENANT, one.id) for one in keys)
    parts = []
    for (collection, tenant), group in groupby(ordered, key=lambda one: one[:2]):
        parts.append(f"({owned(collection, tenant)} AND {_one_of('document', [name for *_, name in group])})")
    return " OR ".join(parts) or "false"


def _one_of(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(map(_quoted, values))})"


def _quoted(value: str) -> str:
    escaped = value.replace("'", "''")
    return f"'{escaped}'"


MIN_CANDIDATES = 50
"""Candidates from each of the two searches; more if more passages are requested."""
BM25_WEIGHT = 0.025
"""Recall is nearly the same for values from .02 to .05."""
NPROBES = 48
"""Partitions of the vector index that a search reads; the index has as many as the square root of its chunks. With
100,000 chunks it finds 99.6 % of the nearest ten."""
MAX_QUERY_CHARACTERS = 2_000
"""Characters of a question for full-text search, where every word costs time."""
_ROW_ID = "_rowid"
_FOUND = ["id", "text", "source", "title", "collection"]


async def search_table(
    table: AsyncTable, text: str, vector: Vector, *, collections: Sequence[str], tenant: str | None, limit: int
) -> Sequence[Passage]:
    """Search a table as `Retriever.search` does.

    Row ids are never reused, so a concurrent delete only removes candidates. The vector index is quantised; the
    returned scores are exact.
    """
    count, where = max(MIN_CANDIDATES, 2 * limit), visible(collections, tenant)
    nearest = table.vector_search(vector).distance_type("cosine").nprobes(NPROBES).where(where)
    matching = table.query().nearest_to_text(text[:MAX_QUERY_CHARACTERS], columns=["text"]).where(where)
    distances, bm25 = await asyncio.gather(_scores(nearest, "_distance", count), _scores(matching, "_score", count))
    candidates = list(distances | bm25)
    if not candidates:
        return ()
    fetched = await table.take_row_ids(candidates).with_row_id().select([*_FOUND, "vector"]).to_arrow()
    vectors: NDArray[np.float32] = fetched["vector"].combine_chunks().flatten().to_numpy().reshape(-1, len(vector))
    lowest = min(bm25.values()) if len(bm25) >= count else 0.0  # of a text that was not among the best, at most this
    found = []
    for row, cosine in zip(fetched.drop_columns("vector").to_pylist(), (vectors @ vector).tolist(), strict=True):
        score = cosine + BM25_WEIGHT * bm25.get(row[_ROW_ID], lowest)
        found.append((score, Passage(row["id"], row["text"], row["source"], row["title"], row["collection"], cosine)))
    found.sort(key=lambda pair: -pair[0])
    return list({passage.id: passage for _, passage in found}.values())[:limit]


async def _scores(query: Any, column: str, limit: int) -> dict[int, float]:
    """Return row id -> score of the first rows of a query."""
    found: pa.Table = await query.with_row_id().select([column]).limit(limit).to_arrow()
    return dict(zip(found[_ROW_ID].to_pylist(), found[column].to_pylist(), strict=True))


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
        found = await self._rows(["document", "digest"], f"position = 0 AND {owned(collection, tenant)}")
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
                table = await self._checked_table() or await self._create(schema(self._encoder))
                replaced = any_of([document.key for document in documents])
                data = arrow_table(documents, vectors, await table.schema())
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
                deleted = any_of(keys)
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
                table = await self._create(with_vectors(stored, vectors, self._encoder))
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
        if table is not None and (indexed := table_encoder(await table.schema())) != self._encoder:
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
