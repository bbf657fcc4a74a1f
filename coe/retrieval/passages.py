"""Immutable value types of documents and passages, and the Protocol `Retriever`.

A document is split into chunks; a chunk that a search returns is a passage. Documents belong to one tenant, or are
shared by all (`tenant` None), and to one collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""A vector of unit length, shape (dimensions,)."""
MAX_PASSAGES = 100
"""Largest `limit` of a search."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of a document that a search returned.

    `id` is derived from the content: the same text at the same place of the same document keeps it. `source` is a path
    or an address, `title` is empty if unknown. `score` is the cosine similarity of passage and question (-1 to 1). It
    is comparable between questions, but passages are not ordered by it alone.
    """

    id: str
    text: str = field(repr=False)
    source: str
    title: str
    collection: str
    score: float


@dataclass(frozen=True, slots=True)
class DocumentKey:
    """Identifies a document: its `id` within one collection of one tenant (None: shared)."""

    id: str
    collection: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text of a chunk, and the id that its passage has."""

    id: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as chunks. `digest` covers content and chunking: the same digest means the same chunks."""

    key: DocumentKey
    source: str
    title: str
    digest: str
    chunks: tuple[Chunk, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class EncoderId:
    """Identifies the encoder of an index. Vectors of different encoders cannot be compared."""

    digest: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Collection:
    """Size of one tenant's part (None: the shared part) of a collection."""

    name: str
    tenant: str | None
    documents: int
    chunks: int


class Retriever(Protocol):
    """Finds passages. Never blocks the event loop; a search may be cancelled at any time."""

    async def search(
        self, text: str, vector: Vector, *, collections: Sequence[str] = (), tenant: str | None = None, limit: int
    ) -> Sequence[Passage]:
        """Return at most `limit` (1 to MAX_PASSAGES) passages, best first by vector and words together.

        `text` is the question and `vector` its embedding. `collections` limits the search to these, empty means all; a
        collection that does not exist is empty. Shared documents are always searched, a tenant's own only with
        `tenant`. Raises RetrievalError, with the remedy, if the store is unavailable or damaged, and IndexMismatch if
        another encoder made its vectors.
        """
