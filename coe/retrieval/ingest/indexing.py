"""Index texts in a document store: split into chunks, embed, write. Unchanged documents are skipped by digest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coe.core import Encoder
from coe.retrieval.ingest.chunking import Chunker, Tokenizer
from coe.retrieval.passages import Document, DocumentKey, EncoderId
from coe.retrieval.store import DocumentStore

WRITE_BATCH_CHUNKS = 256
"""Chunks in one write, or a few more: the chunks of a document are written together."""
EMBEDDED_AT_ONCE = 4096
"""Chunks that the encoder gets at once, which bounds its memory."""
EMBEDDED_TITLE_CHARACTERS = 100
"""Characters of its document's title that each chunk is embedded with."""


class TokenizingEncoder(Encoder, Tokenizer, Protocol):
    """An encoder that also returns token spans. `digest` identifies it."""

    digest: str


@dataclass(frozen=True, slots=True)
class SourceText:
    """A document before chunking."""

    key: DocumentKey
    text: str = field(repr=False)
    source: str
    title: str = ""


@dataclass(slots=True)
class IndexingCounts:
    """Counts of documents by outcome. `empty` ones are blank and not stored; `chunks` are those written."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    empty: int = 0
    chunks: int = 0


class Indexer:
    """Fills a store that was opened for `encoder`, which runs in a thread."""

    def __init__(self, store: DocumentStore, encoder: TokenizingEncoder) -> None:
        self._store, self._encoder, self._chunker = store, encoder, Chunker(encoder)

    async def add(
        self, texts: AsyncIterable[SourceText], *, progress: Callable[[int], None] | None = None
    ) -> IndexingCounts:
        """Write new and changed documents. `progress` is called with the number of texts done. Raises
        RetrievalError."""
        counts = IndexingCounts()
        digests: dict[tuple[str, str | None], dict[str, str]] = {}
        batch: dict[DocumentKey, Document] = {}
        done = 0
        async for text in texts:
            done += 1
            part = (text.key.collection, text.key.tenant)
            if part not in digests:
                digests[part] = dict(await self._store.digests(*part))
            if document := await self._document(text, digests[part], counts):
                batch[text.key] = document
            if sum(len(one.chunks) for one in batch.values()) >= WRITE_BATCH_CHUNKS:
                await self._write([*batch.values()])
                batch = {}
            if progress:
                progress(done)
        await self._write([*batch.values()])
        return counts

    async def rebuild(self) -> int:
        """Embed all stored documents again, and return their number. Raises RetrievalError."""
        return await self._store.rebuild(self._embed)

    async def _document(self, text: SourceText, digests: dict[str, str], counts: IndexingCounts) -> Document | None:
        """Return the document to write, None if it is unchanged or empty. Deletes one that became empty."""
        digest = self._chunker.digest(text.text, source=text.source, title=text.title)
        before = digests.get(text.key.id)
        if before == digest:
            counts.unchanged += 1
            return None
        document = await asyncio.to_thread(
            self._chunker.document, text.key, text.text, source=text.source, title=text.title
        )
        if not document.chunks:
            counts.empty += 1
            if before is not None:
                await self._store.delete([text.key])
            return None
        digests[text.key.id] = digest
        counts.added += before is None
        counts.changed += before is not None
        counts.chunks += len(document.chunks)
        return document

    async def _write(self, batch: Sequence[Document]) -> None:
        if batch:
            chunks = [(document.title, chunk.text) for document in batch for chunk in document.chunks]
            titles, texts = map(list, zip(*chunks, strict=True))
            await self._store.upsert(batch, await asyncio.to_thread(self._embed, titles, texts))

    def _embed(self, titles: list[str], texts: list[str]) -> NDArray[np.float32]:
        titled = [
            f"{title[:EMBEDDED_TITLE_CHARACTERS]}\n{text}" if title else text
            for title, text in zip(titles, texts, strict=True)
        ]
        parts = (titled[start : start + EMBEDDED_AT_ONCE] for start in range(0, len(titled), EMBEDDED_AT_ONCE))
        return np.concatenate([self._encoder.encode(part) for part in parts])


def encoder_id(encoder: TokenizingEncoder) -> EncoderId:
    """Return the id of an encoder that an index stores."""
    return EncoderId(encoder.digest, encoder.dimensions)
