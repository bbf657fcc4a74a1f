"""The LanceDB store: indexes are compacted and cover all rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.retrieval.store import MAX_INDEX_SEGMENTS, TABLE, DocumentStore
from tests.retrieval.conftest import WORDS
from tests.retrieval.samples import document
from tests.retrieval.test_store import put, search_text

pytestmark = pytest.mark.anyio


async def index_state(folder: Path) -> tuple[int, int, int]:
    """Fragments, segments of the vectors' index, and rows outside of it."""
    import lancedb

    connection = await lancedb.connect_async(folder)
    table = await connection.open_table(TABLE)
    stats = await table.index_stats("vector_idx")
    assert stats is not None
    count = (await table.stats())["fragment_stats"]["num_fragments"]
    connection.close()
    return count, stats.num_indices or 0, stats.num_unindexed_rows


async def test_many_writes_end_in_one_fragment_and_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.retrieval.store.MIN_CHUNKS_FOR_VECTOR_INDEX", 300)
    store, number = DocumentStore(tmp_path, WORDS), 0
    for _ in range(5):
        await put(store, *(document(f"Word{n} alone.", f"d{n}") for n in range(number, number + 80)))
        number += 80
    await store.aclose()
    seen = []
    for _ in range(5):
        seen.append(await index_state(tmp_path))
        store = DocumentStore(tmp_path, WORDS)
        await put(store, *(document(f"Word{n} alone.", f"d{n}") for n in range(number, number + 5)))
        number += 5
        await store.aclose()
    assert (1, 1, 0) in seen
    assert max(seen) <= (MAX_INDEX_SEGMENTS + 2, MAX_INDEX_SEGMENTS + 1, 0)
    assert {outside for _, _, outside in seen} == {0}
    reader = DocumentStore(tmp_path, WORDS)
    for wanted in (7, number - 1):
        assert (await search_text(reader, f"word{wanted}", limit=1))[0].source == f"d{wanted}.md"
    await reader.aclose()
