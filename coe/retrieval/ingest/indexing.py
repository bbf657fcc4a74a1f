"""Texts into a store: cut, embedded and written, those that changed alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coe.core import Encoder
from coe.retrieval.ingest.chunking import Chunker, Tokenizer
from coe.retrieval.passages import Document, DocumentStore, EncoderId, Key

TOGETHER = 256
"""Chunks that are written at a time, or a little more: a document's are never parted."""
TITLE = 100
"""Characters of a title that each of its chunks is embedded with."""


class DocumentEncoder(Encoder, Tokenizer, Protocol):
    """An encoder that tells where its tokens are; `digest` tells it from others."""

    digest: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document before it is cut."""

    key: Key
    text: str = field(repr=False)
    source: str
    title: str = ""


@dataclass(slots=True)
class Tally:
    """What became of texts. `empty` holds nothing but white space, so it is not kept."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    empty: int = 0
    chunks: int = 0
    """Of those that were added or changed."""


class Indexer:
    """Fills a store that was opened for `encoder`, which works in a thread."""

    def __init__(self, store: DocumentStore, encoder: DocumentEncoder, *, chunker: Chunker | None = None) -> None:
        self._store = store
        self._encoder = encoder
        self._chunker = chunker or Chunker(encoder)

    async def add(self, texts: AsyncIterable[Text], *, progress: Callable[[int], None] | None = None) -> Tally:
        """Write what is new or changed. `progress` hears how many texts are done. Raises RetrievalError."""
        tally = Tally()
        known: dict[tuple[str, str | None], dict[str, str]] = {}
        batch: dict[Key, Document] = {}
        done = 0
        async for text in texts:
            done += 1
            place = (text.key.collection, text.key.tenant)
            if place not in known:
                known[place] = dict(await self._store.digests(*place))
            if document := await self._cut(text, known[place], tally):
                batch[text.key] = document
            if sum(len(one.chunks) for one in batch.values()) >= TOGETHER:
                await self._write(self._store, [*batch.values()])
                batch = {}
            if progress:
                progress(done)
        await self._write(self._store, [*batch.values()])
        return tally

    async def rebuild(self, *, progress: Callable[[int], None] | None = None) -> int:
        """Embed all that is stored anew, in a new version of the index, and put it into use; how many documents."""
        done = 0
        async with self._store.rebuilding() as draft:
            async for batch in _batches(self._store.stored()):
                await self._write(draft, batch)
                done += len(batch)
                if progress:
                    progress(done)
        return done

    async def _cut(self, text: Text, known: dict[str, str], tally: Tally) -> Document | None:
        digest = self._chunker.digest(text.text, source=text.source, title=text.title)
        before = known.get(text.key.id)
        if before == digest:
            tally.unchanged += 1
            return None
        document = await asyncio.to_thread(
            self._chunker.document, text.key, text.text, source=text.source, title=text.title
        )
        if not document.chunks:
            tally.empty += 1
            if before is not None:
                await self._store.delete([text.key])
            return None
        known[text.key.id] = digest
        tally.added += before is None
        tally.changed += before is not None
        tally.chunks += len(document.chunks)
        return document

    async def _write(self, store: DocumentStore, batch: Sequence[Document]) -> None:
        if batch:
            await store.upsert(batch, await asyncio.to_thread(self._embedded, batch))

    def _embedded(self, batch: Sequence[Document]) -> NDArray[np.float32]:
        titled = [(document.title[:TITLE], chunk.text) for document in batch for chunk in document.chunks]
        return self._encoder.encode([f"{title}\n{text}" if title else text for title, text in titled])


def encoder_id(encoder: DocumentEncoder) -> EncoderId:
    """What an index remembers of it."""
    return EncoderId(encoder.digest, encoder.dimensions)


async def _batches(documents: AsyncIterator[Document]) -> AsyncIterator[list[Document]]:
    batch: list[Document] = []
    async for document in documents:
        batch.append(document)
        if sum(len(one.chunks) for one in batch) >= TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch
