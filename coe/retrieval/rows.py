"""Rows of a LanceDB table, one for each chunk: conversion from documents, and filter conditions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coe.retrieval.passages import Document, DocumentKey, EncoderId

if TYPE_CHECKING:
    import pyarrow as pa

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
