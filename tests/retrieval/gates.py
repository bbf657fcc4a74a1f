"""A gate, a retriever and an encoder for tests, over the categories and experts of tests.fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.registry.sections import RetrievalSpec
from coe.retrieval.gate import Gate, LogOddsModel, RetrievalCost
from coe.retrieval.insertion import Passage, Vector
from coe.retrieval.retrieval import Retrieval
from tests.fakes import WordRouter

CATEGORIES, EXPERTS = ("code", "art", "general"), ("coder", "painter", "generalist")
WIDTH = 4


def gate_of(log_odds: dict[tuple[str, str], float] | float, *, tokens: float = 500.0, up: float = 1.0) -> Gate:
    """A gate with these log-odds by category and expert (-9 for others), or the same for all."""
    offset = np.full((3, 3), log_odds if isinstance(log_odds, float) else -9.0)
    for (category, expert), value in ({} if isinstance(log_odds, float) else log_odds).items():
        offset[CATEGORIES.index(category), EXPERTS.index(expert)] = value
    helps, never = (
        LogOddsModel(np.zeros(4), np.zeros(4 + WIDTH), np.stack([own, own]), np.array([1.0, 0.0, 0.0]))
        for own in (offset, np.full((3, 3), -30.0))
    )
    return Gate(CATEGORIES, EXPERTS, helps, never, np.full(3, up), np.zeros(3), RetrievalCost(tokens, 0.01))


def embeddings_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return embeddings that begin with these vectors."""
    return np.hstack((vectors, np.full((len(vectors), 2), 9.0, dtype=np.float32)))


class FlatEncoder:
    """Returns the same vector for every text; counts the texts."""

    dimensions = WIDTH

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.encoded += len(texts)
        return np.full((len(texts), WIDTH), 0.5, dtype=np.float32)

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return embeddings_of(self.encode(texts))


def passage(text: str, *, source: str = "notes.md", title: str = "Notes", score: float = 0.6) -> Passage:
    return Passage(f"id-{text[:8]}", text, source, title, "default", score)


class ListRetriever:
    """Returns the passages visible to the tenant; raises or waits if scripted."""

    def __init__(self, *shared: Passage, own: dict[str, list[Passage]] | None = None) -> None:
        self.shared, self.own = list(shared), own or {}
        self.fails: Exception | None = None
        self.waits: asyncio.Event | None = None
        self.searches = 0

    async def search(
        self,
        text: str,
        vector: Vector,
        *,
        collections: Sequence[str] = (),
        tenant: str | None = None,
        limit: int,
    ) -> Sequence[Passage]:
        self.searches += 1
        if self.waits:
            await self.waits.wait()
        if self.fails:
            raise self.fails
        return [*self.own.get(tenant or "", []), *self.shared][:limit]


class ScriptedRetrieval:
    """A Retrieval whose parts the test controls. Unless declared, its timeout is longer than a busy machine needs."""

    def __init__(self, *passages: Passage, gate: Gate | None, **declared: Any) -> None:
        self.retriever = ListRetriever(*passages)
        self.encoder = FlatEncoder()
        self.now = 0.0
        self.retrieval = Retrieval(
            RetrievalSpec(**{"timeout": 60.0} | declared),
            retriever=self.retriever,
            encoder=self.encoder,
            router=WordRouter(),
            threads=ThreadPoolExecutor(1),
            gate=gate,
            clock=lambda: self.now,
        )
