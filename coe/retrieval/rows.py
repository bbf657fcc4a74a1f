"""Rows of a LanceDB table, one for each chunk: conversion from and to documents, and filter conditions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.retrieval.passages import Chunk, Document, DocumentKey, EncoderId, Passage

if TYPE_CHECKING:
    import pyarrow as pa


Row = dict[str, Any]

KEYS = ["document", "collection", "tenant"]
DIGESTS = ["document", "digest"]
STORED = [*KEYS, "id", "text", "source", "title", "digest", "position"]
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
