"""The stores under test: in a folder, and on a real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from coe.retrieval import DocumentStore, EncoderId, open_store
from tests.retrieval.samples import DIMENSIONS

WORDS = EncoderId("words", DIMENSIONS)
Opened = Callable[..., DocumentStore]


@pytest.fixture(params=["lancedb", "redis"])
async def store_url(request: pytest.FixtureRequest) -> str:
    """The address of an empty store of each kind."""
    if request.param == "lancedb":
        return "lancedb:///documents"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture
async def opened(store_url: str, tmp_path: Path) -> AsyncIterator[Opened]:
    """Opens that store any number of times."""
    stores: list[DocumentStore] = []

    def build(encoder: EncoderId = WORDS) -> DocumentStore:
        stores.append(open_store(store_url, base=tmp_path, encoder=encoder))
        return stores[-1]

    yield build
    for store in stores:
        await store.aclose()


@pytest.fixture
def store(opened: Opened) -> DocumentStore:
    return opened()
