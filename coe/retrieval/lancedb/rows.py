"""Documents as rows of a LanceDB table, one a chunk, and back; and the conditions by which rows are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.retrieval.passages import Chunk, Document, EncoderId, Key, Passage

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

KEYS = ["document", "collection", "tenant"]
DIGESTS = ["document", "digest"]
STORED = [*KEYS, "id", "text", "source", "title", "digest", "position"]
FOUND = ["id", "text", "source", "title", "collection"]
SHARED = ""
"""The tenant of documents that are everybody's."""
LONGEST_QUESTION = 2_000
"""Characters of a question that are looked for as words."""


def schema(encoder: EncoderId) -> pa.Schema:
    """Of a table whose vectors are the encoder's, which it names."""
    import pyarrow as pa

    texts = ("id", "text", "document", "collection", "tenant", "source", "title", "digest")
    fields = [pa.field(name, pa.string(), nullable=False) for name in texts]
    fields.append(pa.field("position", pa.int32(), nullable=False))
    fields.append(pa.field("vector", pa.list_(pa.float32(), encoder.dimensions), nullable=False))
    return pa.schema(fields, metadata={"encoder": encoder.digest})


def made_by(table: pa.Schema) -> EncoderId:
    """The encoder that a table names."""
    digest = (table.metadata or {}).get(b"encoder", b"unknown").decode()
    return EncoderId(digest, table.field("vector").type.list_size)


def table(documents: Sequence[Document], vectors: NDArray[np.float32], shape: pa.Schema) -> pa.Table:
    """All chunks of the documents, with their vectors (n_chunks, dimensions)."""
    import pyarrow as pa

    rows = [
        {
            "id": chunk.id,
            "text": chunk.text,
            "document": document.key.id,
            "collection": document.key.collection,
            "tenant": document.key.tenant or SHARED,
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
    """A found row as the passage that it is."""
    return Passage(row["id"], row["text"], row["source"], row["title"], row["collection"], score)


def document(rows: list[Row]) -> Document:
    """A document from all of its rows, in order."""
    first = rows[0]
    chunks = tuple(Chunk(row["id"], row["text"]) for row in rows)
    return Document(key(first), first["source"], first["title"], first["digest"], chunks)


def key(row: Row) -> Key:
    return Key(row["document"], row["collection"], row["tenant"] or None)


def place(row: Row) -> tuple[str, str, str, int]:
    """What rows are sorted by, so that those of a document follow each other."""
    return row["collection"], row["tenant"], row["document"], row["position"]


# ---------------------------------------------------------------------------------------------------------- conditions


def visible(collections: Sequence[str], tenant: str | None) -> str:
    """Rows of these collections (all for none) that a tenant may see."""
    mine = _one_of("tenant", [SHARED] if tenant is None else [SHARED, tenant])
    return f"{mine} AND {_one_of('collection', collections)}" if collections else mine


def owned(collection: str, tenant: str | None) -> str:
    """Rows of one tenant's collection alone."""
    return f"collection = {_quoted(collection)} AND tenant = {_quoted(tenant or SHARED)}"


def any_of(keys: Sequence[Key]) -> str:
    """Rows of these documents."""
    places = sorted((one.collection, one.tenant or SHARED, one.id) for one in keys)
    parts = []
    for (collection, tenant), group in groupby(places, key=lambda place: place[:2]):
        parts.append(f"({owned(collection, tenant)} AND {_one_of('document', [name for *_, name in group])})")
    return " OR ".join(parts) or "false"


def words(text: str) -> str:
    """A question as it is looked for: cut, since every word of it costs time."""
    return text[:LONGEST_QUESTION]


def _one_of(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(map(_quoted, values))})"


def _quoted(value: str) -> str:
    escaped = value.replace("'", "''")
    return f"'{escaped}'"
