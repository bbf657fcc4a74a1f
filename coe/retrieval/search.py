"""Hybrid search in a LanceDB table: one ranking by vector and BM25.

Both searches return row ids and scores only; the candidates are read afterwards. Scores are added (cosine +
BM25_WEIGHT * BM25). Reciprocal rank fusion gave a lower recall
(docs/experiments/retrieval.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.retrieval import rows
from coe.retrieval.passages import Passage, Vector

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import AsyncTable

MIN_CANDIDATES = 50
"""Candidates from each of the two searches; more if more passages are requested."""
BM25_WEIGHT = 0.025
"""Recall is nearly the same for values from .02 to .05."""
NPROBES = 48
"""Partitions of the vector index that a search reads; the index has as many as the square root of its chunks. With
100,000 chunks it finds 99.6 % of the nearest ten."""
MAX_QUERY_CHARACTERS = 2_000
"""Characters of a question for full-text search, where every word costs time."""
_ROW_ID = "_rowid"
_FOUND = ["id", "text", "source", "title", "collection"]


async def search_table(
    table: AsyncTable, text: str, vector: Vector, *, collections: Sequence[str], tenant: str | None, limit: int
) -> Sequence[Passage]:
    """Search a table as `Retriever.search` does.

    Row ids are never reused, so a concurrent delete only removes candidates. The vector index is quantised; the
    returned scores are exact.
    """
    count, where = max(MIN_CANDIDATES, 2 * limit), rows.visible(collections, tenant)
    nearest = table.vector_search(vector).distance_type("cosine").nprobes(NPROBES).where(where)
    matching = table.query().nearest_to_text(text[:MAX_QUERY_CHARACTERS], columns=["text"]).where(where)
    distances, bm25 = await asyncio.gather(_scores(nearest, "_distance", count), _scores(matching, "_score", count))
    candidates = list(distances | bm25)
    if not candidates:
        return ()
    fetched = await table.take_row_ids(candidates).with_row_id().select([*_FOUND, "vector"]).to_arrow()
    vectors: NDArray[np.float32] = fetched["vector"].combine_chunks().flatten().to_numpy().reshape(-1, len(vector))
    lowest = min(bm25.values()) if len(bm25) >= count else 0.0  # of a text that was not among the best, at most this
    found = []
    for row, cosine in zip(fetched.drop_columns("vector").to_pylist(), (vectors @ vector).tolist(), strict=True):
        score = cosine + BM25_WEIGHT * bm25.get(row[_ROW_ID], lowest)
        found.append((score, Passage(row["id"], row["text"], row["source"], row["title"], row["collection"], cosine)))
    found.sort(key=lambda pair: -pair[0])
    return list({passage.id: passage for _, passage in found}.values())[:limit]


async def _scores(query: Any, column: str, limit: int) -> dict[int, float]:
    """Return row id -> score of the first rows of a query."""
    found: pa.Table = await query.with_row_id().select([column]).limit(limit).to_arrow()
    return dict(zip(found[_ROW_ID].to_pylist(), found[column].to_pylist(), strict=True))
