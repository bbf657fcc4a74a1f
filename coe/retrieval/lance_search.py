"""Searching a LanceDB table: first for the places of rows alone, then for what the best of them hold, since a row's
vector and texts cost more to fetch than to find."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.retrieval.fusion import candidates, contenders, fused
from coe.retrieval.lancedb import rows
from coe.retrieval.passages import Passage, Vector

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import AsyncTable

NPROBES = 48
"""Partitions of the vector index that a search looks into, of as many as the root of the chunks: of 100,000 chunks it
finds 99.6 % of the nearest ten."""
SPARE = 3
"""Candidates fetched beyond those that are wanted: some may have gone since."""


async def passages(
    table: AsyncTable, text: str, vector: Vector, *, collections: Sequence[str], tenant: str | None, limit: int
) -> Sequence[Passage]:
    """As Retriever.search. A row's place is never another row's, so what goes meanwhile is only missing. The index of
    vectors is quantised; what is told of them is not."""
    most, where = candidates(limit), rows.visible(collections, tenant)
    near = table.vector_search(vector).distance_type("cosine").nprobes(NPROBES).where(where)
    said = table.query().nearest_to_text(rows.words(text), columns=["text"]).where(where)
    dense, lexical = await asyncio.gather(_scored(near, "_distance", most), _scored(said, "_score", most))
    cosines = {row: 1.0 - distance for row, distance in dense.items()}
    best = [*fused(cosines, lexical)[: limit + SPARE], *contenders(cosines, lexical, wanted=limit + SPARE)]
    if not best:
        return ()
    held = await table.take_row_ids(best).with_row_id().select([*rows.FOUND, "vector"]).to_arrow()
    exact = dict(zip(held[_PLACE].to_pylist(), _cosines(held, vector), strict=True))
    order = fused(exact, lexical)
    found = {row[_PLACE]: rows.passage(row, exact[row[_PLACE]]) for row in held.drop_columns("vector").to_pylist()}
    return list({found[row].id: found[row] for row in order}.values())[:limit]


_PLACE = "_rowid"


async def _scored(query: Any, column: str, most: int) -> dict[int, float]:
    found: pa.Table = await query.with_row_id().select([column]).limit(most).to_arrow()
    return dict(zip(found[_PLACE].to_pylist(), found[column].to_pylist(), strict=True))


def _cosines(held: pa.Table, vector: Vector) -> list[float]:
    kept: NDArray[np.float32] = held["vector"].combine_chunks().flatten().to_numpy().reshape(-1, len(vector))
    found: list[float] = (kept @ vector).tolist()
    return found
