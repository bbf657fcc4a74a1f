"""The document store for benchmarks/retrieval.py: recall, latency, size and indexing time."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from coe.retrieval.ingest.chunking import normalize_text
from coe.retrieval.ingest.indexing import Indexer, SourceText, TokenizingEncoder, encoder_id
from coe.retrieval.passages import Chunk, Document, DocumentKey, Passage
from coe.retrieval.store import DocumentStore, open_store

SOURCES = ("pubmedqa", "xquad_en")
BATCH = 1_000
ASKED = 500
"""Questions that are timed, after some that warm up."""


def measure(data: Path, encoder: TokenizingEncoder, *, chunks: int) -> dict[str, Any]:
    """Figures of stores in folders of their own."""
    return asyncio.run(_measure(data, encoder, chunks=chunks))


async def _measure(data: Path, encoder: TokenizingEncoder, *, chunks: int) -> dict[str, Any]:
    texts = pq.read_table(data / "docs.parquet").to_pylist()
    questions = pq.read_table(data / "questions_train.parquet").to_pylist()
    questions = [one for one in questions if one["gold_doc"] and one["source"] in SOURCES]
    caching = _CachingEncoder(encoder)
    vectors = caching.encode([one["question"] for one in questions])
    async with _opened(encoder) as (store, _):
        recall, corpus = await _recall(store, caching, texts, questions, vectors)
    async with _opened(encoder) as (store, folder):
        return {"recall": recall} | await _at_size(store, corpus, folder, chunks, questions, vectors)


class _CachingEncoder:
    """An encoder that embeds each text once."""

    def __init__(self, encoder: TokenizingEncoder) -> None:
        self._encoder = encoder
        self.dimensions, self.digest, self.spans = encoder.dimensions, encoder.digest, encoder.spans
        self.features = encoder.features
        self._known: dict[str, Any] = {}

    def encode(self, texts: Sequence[str]) -> Any:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, self._encoder.encode(new), strict=True)
        return np.array([self._known[text] for text in texts])


@asynccontextmanager
async def _opened(encoder: TokenizingEncoder) -> AsyncIterator[tuple[DocumentStore, Path]]:
    """Open an empty store; yields it with its folder."""
    with TemporaryDirectory() as folder:
        store = open_store("lancedb:///documents", base=Path(folder), encoder=encoder_id(encoder))
        yield store, Path(folder)
        await store.aclose()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def _recall(
    store: DocumentStore, encoder: _CachingEncoder, texts: list[Any], questions: list[Any], vectors: Any
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    async def given() -> AsyncIterator[SourceText]:
        for one in texts:
            yield SourceText(DocumentKey(one["doc_id"], "documents"), normalize_text(one["text"]), one["doc_id"])

    tally = await Indexer(store, encoder).add(given())
    hits: dict[str, list[tuple[bool, bool]]] = {source: [] for source in SOURCES}
    for question, vector in zip(questions, vectors, strict=True):
        order = _documents(await store.search(question["question"], vector, limit=30))
        hits[question["source"]].append((question["gold_doc"] in order[:1], question["gold_doc"] in order[:5]))
    recall = {
        source: {"at_1": float(np.mean([a for a, _ in each])), "at_5": float(np.mean([b for _, b in each]))}
        for source, each in hits.items()
    }
    chunks = [chunk.text async for one in store.documents() for chunk in one.chunks]
    corpus = list(zip(chunks, encoder.encode(chunks), strict=True))
    return {**recall, "documents": len(texts), "chunks": tally.chunks, "questions": len(questions)}, corpus


def _documents(found: Sequence[Passage]) -> list[str]:
    return list(dict.fromkeys(one.source for one in found))


async def _at_size(
    store: DocumentStore, corpus: list[tuple[str, Any]], folder: Path, count: int, questions: list[Any], vectors: Any
) -> dict[str, Any]:
    """Chunks made of the sentences of two real ones each, their vectors between the two, with noise."""
    rng = np.random.default_rng(0)
    before, began = _size(folder), time.perf_counter()
    for start in range(0, count, BATCH):
        made = [_mixed(rng, corpus) for _ in range(min(BATCH, count - start))]
        documents = [_document(start + at, text) for at, (text, _) in enumerate(made)]
        await store.upsert(documents, np.array([vector for _, vector in made], dtype=np.float32))
    await store.aclose()  # as `coe index add` ends; the next verb opens it again
    built = time.perf_counter() - began
    times = []
    for question, vector in list(zip(questions, vectors, strict=True))[: ASKED + 50]:
        began = time.perf_counter()
        await store.search(question["question"], vector, limit=5)
        times.append(1e3 * (time.perf_counter() - began))
    quantiles = statistics.quantiles(times[50:], n=20)
    return {
        "at_size": count,
        "p50_ms": round(statistics.median(times[50:]), 2),
        "p95_ms": round(quantiles[18], 2),
        "chunks_per_second": round(count / built),
        "bytes_per_chunk": round((_size(folder) - before) / count),
    }


def _mixed(rng: Any, corpus: list[tuple[str, Any]]) -> tuple[str, Any]:
    one, other = (corpus[at] for at in rng.integers(len(corpus), size=2))
    sentences = re.split(r"(?<=[.!?]) ", f"{one[0]} {other[0]}")
    text = " ".join(sentences[at] for at in rng.permutation(len(sentences))[: max(1, len(sentences) // 2)])
    share = rng.uniform(0.2, 0.8)
    vector = share * one[1] + (1 - share) * other[1] + rng.normal(scale=0.02, size=len(one[1]))
    return text, vector / np.linalg.norm(vector)


def _document(number: int, text: str) -> Document:
    chunk = Chunk(f"c{number:023d}", text)
    return Document(DocumentKey(f"d{number}", "documents"), f"d{number}.txt", "", "x", (chunk,))
