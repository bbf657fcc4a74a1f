"""The store under test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from coe.retrieval.insertion import EncoderId
from coe.retrieval.store import DocumentStore, open_store
from tests.retrieval.samples import DIMENSIONS

WORDS = EncoderId("words", DIMENSIONS)
Opened = Callable[..., DocumentStore]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    """Opens a new store any number of times."""
    stores: list[DocumentStore] = []

    def build(encoder: EncoderId = WORDS) -> DocumentStore:
        stores.append(open_store("lancedb:///documents", base=tmp_path, encoder=encoder))
        return stores[-1]

    yield build
    for store in stores:
        await store.aclose()


@pytest.fixture
def store(opened: Opened) -> DocumentStore:
    return opened()
