"""What a store of documents takes and gives: frozen values, and the Protocols `Retriever` and `DocumentStore`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""Unit length, shape (dimensions,)."""
MOST_PASSAGES = 100
"""Passages that one search may ask for."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document that a search found.

    `id` is made from the content: the same text at the same place of the same document keeps it. `source` says where
    the document is from (a path or an address), `title` what it is called, empty where it has none. `score` is the
    cosine between the passage's vector and the question's, -1 to 1: comparable between questions and stores, but not
    what passages are ordered by.
    """

    id: str
    text: str = field(repr=False)
    source: str
    title: str
    collection: str
    score: float


@dataclass(frozen=True, slots=True)
class Key:
    """What names a document: its `id` within a collection of one tenant; `tenant` None: shared by all."""

    id: str
    collection: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage's text before it is found, with the id that the passage will have."""

    id: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A document in its chunks. `digest` is of the content and of how it was cut: the same digest, the same chunks."""

    key: Key
    source: str
    title: str
    digest: str
    chunks: tuple[Chunk, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class EncoderId:
    """Which encoder made the vectors of an index; only its own vectors can be compared with them."""

    digest: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Collection:
    """How much one tenant (None: everybody) has in one collection."""

    name: str
    tenant: str | None
    documents: int
    chunks: int


class Retriever(Protocol):
    """Finds passages. Never blocks the event loop; a search may be cancelled at any time."""

    async def search(
        self,
        text: str,
        vector: Vector,
        *,
        collections: Sequence[str] = (),
        tenant: str | None = None,
        limit: int,
    ) -> Sequence[Passage]:
        """At most `limit` (1 to MOST_PASSAGES) passages, the best first by vector and by words together.

        `text` is the question and `vector` the encoder's of it. `collections` are those to look in, all for none; one
        that does not exist is empty. Shared documents are found for everyone, a tenant's for that tenant alone: with
        `tenant` None shared ones only. An empty store finds nothing. Raises RetrievalError, with the remedy, when the
        store is away or damaged, or (IndexMismatch) when another encoder made its vectors.
        """
        ...


class DocumentStore(Retriever, Protocol):
    """A Retriever that is also filled. Every implementation passes one suite (tests/retrieval/test_stores.py).

    Opened for one encoder. Every verb raises RetrievalError as `search` does; those that write and read vectors raise
    IndexMismatch, while `collections`, `digests`, `stored`, `delete` and `rebuilding` work whoever made the index.
    """

    async def upsert(self, documents: Sequence[Document], vectors: NDArray[np.float32]) -> None:
        """Add documents, each in place of the one with its key. `vectors` holds the rows of all their chunks in order,
        float32 (n_chunks, dimensions). A search sees the former document or the new one. Two documents with one key
        are a mistake of the caller."""
        ...

    async def delete(self, keys: Sequence[Key]) -> int:
        """Forget documents; how many there were."""
        ...

    async def collections(self) -> Sequence[Collection]:
        """What is there, in order of name and tenant."""
        ...

    async def digests(self, collection: str, tenant: str | None = None) -> Mapping[str, str]:
        """Document id -> digest, of one tenant's collection."""
        ...

    def stored(self) -> AsyncIterator[Document]:
        """Every document there is, of all tenants."""
        ...

    def rebuilding(self) -> AbstractAsyncContextManager[DocumentStore]:
        """A new, empty version of the index, for the encoder that this store was opened for. It takes the place of the
        present one, at once and for every process, when the block ends without an error; until then searches see the
        present one."""
        ...

    async def aclose(self) -> None: ...
