"""Hybrid search in a LanceDB table: one ranking by vector and BM25.

Both searches return row ids and scores only. Vectors and texts, which cost more to fetch, are read afterwards for the
best candidates. Scores are added (cosine + BM25_WEIGHT * BM25). Reciprocal rank fusion gave a lower recall
(docs/experiments/retrieval.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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
SPARE_CANDIDATES = 3
"""Candidates fetched in addition, because some may have been deleted in the meantime."""
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
    cosines = {row: 1.0 - distance for row, distance in distances.items()}
    wanted = limit + SPARE_CANDIDATES
    best = [*fuse(cosines, bm25)[:wanted], *unscored_candidates(cosines, bm25, wanted=wanted)]
    if not best:
        return ()
    fetched = await table.take_row_ids(best).with_row_id().select([*_FOUND, "vector"]).to_arrow()
    vectors: NDArray[np.float32] = fetched["vector"].combine_chunks().flatten().to_numpy().reshape(-1, len(vector))
    exact = dict(zip(fetched[_ROW_ID].to_pylist(), (vectors @ vector).tolist(), strict=True))
    order = fuse(exact, bm25)
    found = {row[_ROW_ID]: rows.passage(row, exact[row[_ROW_ID]]) for row in fetched.drop_columns("vector").to_pylist()}
    return list({found[row].id: found[row] for row in order}.values())[:limit]


async def _scores(query: Any, column: str, limit: int) -> dict[int, float]:
    """Return row id -> score of the first rows of a query."""
    found: pa.Table = await query.with_row_id().select([column]).limit(limit).to_arrow()
    return dict(zip(found[_ROW_ID].to_pylist(), found[column].to_pylist(), strict=True))


def fuse(cosines: Mapping[int, float], bm25: Mapping[int, float]) -> list[int]:
    """Return all ids of `cosines`, best first.

    `bm25` may be truncated to the best candidates. A missing id then counts as its lowest score, which it may have.
    """
    scores = _added(cosines, bm25)
    return sorted(cosines, key=lambda one: -scores[one])


def unscored_candidates(cosines: Mapping[int, float], bm25: Mapping[int, float], *, wanted: int) -> list[int]:
    """Return the ids that only BM25 found and that may be among the `wanted` best once their cosine is known.

    `cosines` are the nearest by vector, so no other id has a higher cosine than their lowest.
    """
    lexical_only = [one for one in bm25 if one not in cosines]
    if not lexical_only or len(cosines) < max(MIN_CANDIDATES, wanted):
        return lexical_only
    largest_cosine, threshold = min(cosines.values()), sorted(_added(cosines, bm25).values())[-wanted]
    return [one for one in lexical_only if largest_cosine + BM25_WEIGHT * bm25[one] >= threshold]


def _added(cosines: Mapping[int, float], bm25: Mapping[int, float]) -> dict[int, float]:
    lowest = min(bm25.values()) if len(bm25) >= MIN_CANDIDATES else 0.0
    return {one: cosine + BM25_WEIGHT * bm25.get(one, lowest) for one, cosine in cosines.items()}
