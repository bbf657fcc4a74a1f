"""Rows of a LanceDB table, one for each chunk: conversion from and to documents, filter conditions, and hybrid search.

Vector search and full-text search return row ids and scores only. Vectors and texts, which cost more to fetch, are
read afterwards for the best candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.retrieval.fusion import candidate_count, fuse, unscored_candidates
from coe.retrieval.passages import Chunk, Document, DocumentKey, EncoderId, Passage, Vector

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import AsyncTable


Row = dict[str, Any]

KEYS = ["document", "collection", "tenant"]
DIGESTS = ["document", "digest"]
STORED = [*KEYS, "id", "text", "source", "title", "digest", "position"]
FOUND = ["id", "text", "source", "title", "collection"]
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


def table(documents: Sequence[Document], vectors: NDArray[np.float32], shape: pa.Schema) -> pa.Table:
    """Convert documents, with the vectors (n_chunks, dimensions) of all their chunks."""
    import pyarrow as pa

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
        }
        for document in documents
        for position, chunk in enumerate(document.chunks)
    ]
    columns = [pa.array([row[name] for row in rows], shape.field(name).type) for name in shape.names[:-1]]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    columns.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
    return pa.Table.from_arrays(columns, schema=shape)


def passage(row: Row, score: float) -> Passage:
    """Convert a row that a search returned."""
    return Passage(row["id"], row["text"], row["source"], row["title"], row["collection"], score)


def document(rows: list[Row]) -> Document:
    """Convert all rows of one document, in order."""
    first = rows[0]
    chunks = tuple(Chunk(row["id"], row["text"]) for row in rows)
    return Document(key(first), first["source"], first["title"], first["digest"], chunks)


def key(row: Row) -> DocumentKey:
    return DocumentKey(row["document"], row["collection"], row["tenant"] or None)


def sort_key(row: Row) -> tuple[str, str, str, int]:
    """Sort rows by document and position."""
    return row["collection"], row["tenant"], row["document"], row["position"]


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


NPROBES = 48
"""Partitions of the vector index that a search reads; the index has as many as the square root of its chunks. With
100,000 chunks it finds 99.6 % of the nearest ten."""
SPARE_CANDIDATES = 3
"""Candidates fetched in addition, because some may have been deleted in the meantime."""
MAX_QUERY_CHARACTERS = 2_000
"""Characters of a question for full-text search, where every word costs time."""
_ROW_ID = "_rowid"


async def search_table(
    table: AsyncTable, text: str, vector: Vector, *, collections: Sequence[str], tenant: str | None, limit: int
) -> Sequence[Passage]:
    """Search a table as `Retriever.search` does.

    Row ids are never reused, so a concurrent delete only removes candidates. The vector index is quantised; the
    returned scores are exact.
    """
    count, where = candidate_count(limit), visible(collections, tenant)
    nearest = table.vector_search(vector).distance_type("cosine").nprobes(NPROBES).where(where)
    matching = table.query().nearest_to_text(text[:MAX_QUERY_CHARACTERS], columns=["text"]).where(where)
    distances, bm25 = await asyncio.gather(_scores(nearest, "_distance", count), _scores(matching, "_score", count))
    cosines = {row: 1.0 - distance for row, distance in distances.items()}
    wanted = limit + SPARE_CANDIDATES
    best = [*fuse(cosines, bm25)[:wanted], *unscored_candidates(cosines, bm25, wanted=wanted)]
    if not best:
        return ()
    fetched = await table.take_row_ids(best).with_row_id().select([*FOUND, "vector"]).to_arrow()
    exact = dict(zip(fetched[_ROW_ID].to_pylist(), _cosines(fetched, vector), strict=True))
    order = fuse(exact, bm25)
    found = {row[_ROW_ID]: passage(row, exact[row[_ROW_ID]]) for row in fetched.drop_columns("vector").to_pylist()}
    return list({found[row].id: found[row] for row in order}.values())[:limit]


async def _scores(query: Any, column: str, limit: int) -> dict[int, float]:
    """Return row id -> score of the first rows of a query."""
    found: pa.Table = await query.with_row_id().select([column]).limit(limit).to_arrow()
    return dict(zip(found[_ROW_ID].to_pylist(), found[column].to_pylist(), strict=True))


def _cosines(fetched: pa.Table, vector: Vector) -> list[float]:
    vectors: NDArray[np.float32] = fetched["vector"].combine_chunks().flatten().to_numpy().reshape(-1, len(vector))
    found: list[float] = (vectors @ vector).tolist()
    return found
