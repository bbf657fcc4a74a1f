"""Hybrid search: fuse vector and BM25 scores into one ranking. Shared by all document stores.

Scores are added (cosine + BM25_WEIGHT * BM25). Reciprocal rank fusion gave a lower recall
(docs/experiments/document-store.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from coe.retrieval.passages import MAX_PASSAGES

Id = TypeVar("Id", str, int)
MIN_CANDIDATES = 50
"""Candidates from each of the two searches; more if more passages are requested."""
BM25_WEIGHT = 0.025
"""Recall is nearly the same for values from .02 to .05."""


def candidate_count(limit: int) -> int:
    """Return the number of candidates from each search. Raises ValueError for an invalid `limit`."""
    if not 1 <= limit <= MAX_PASSAGES:
        raise ValueError(f"a search returns 1 to {MAX_PASSAGES} passages, not {limit}")
    return max(MIN_CANDIDATES, 2 * limit)


def fuse(cosines: Mapping[Id, float], bm25: Mapping[Id, float]) -> list[Id]:
    """Return all ids of `cosines`, best first.

    `bm25` may be truncated to the best candidates. A missing id then counts as its lowest score, which it may have.
    """
    scores = _scores(cosines, bm25)
    return sorted(cosines, key=lambda one: -scores[one])


def unscored_candidates(cosines: Mapping[Id, float], bm25: Mapping[Id, float], *, wanted: int) -> list[Id]:
    """Return the ids that only BM25 found and that may be among the `wanted` best once their cosine is known.

    `cosines` are the nearest by vector, so no other id has a higher cosine than their lowest.
    """
    lexical_only = [one for one in bm25 if one not in cosines]
    if not lexical_only or len(cosines) < max(MIN_CANDIDATES, wanted):
        return lexical_only
    largest_cosine, threshold = min(cosines.values()), sorted(_scores(cosines, bm25).values())[-wanted]
    return [one for one in lexical_only if largest_cosine + BM25_WEIGHT * bm25[one] >= threshold]


def _scores(cosines: Mapping[Id, float], bm25: Mapping[Id, float]) -> dict[Id, float]:
    lowest = min(bm25.values()) if len(bm25) >= MIN_CANDIDATES else 0.0
    return {one: cosine + BM25_WEIGHT * bm25.get(one, lowest) for one, cosine in cosines.items()}
