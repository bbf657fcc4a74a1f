"""Lexical and dense scores made one order, and the words of errors that all stores share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from coe.errors import IndexMismatch
from coe.retrieval.passages import MOST_PASSAGES, EncoderId

Id = TypeVar("Id", str, int)
CANDIDATES = 50
"""Passages that are looked at of each of the two orders; more where more are wanted."""
WORDS = 0.025
"""What a point of BM25 counts in cosines. From .02 to .05 recall hardly differs, and reciprocal ranks do worse
(docs/experiments/document-store.md)."""


def candidates(limit: int) -> int:
    """How many each rank is asked for. Raises ValueError for a limit that no search may have."""
    if not 1 <= limit <= MOST_PASSAGES:
        raise ValueError(f"a search may ask for 1 to {MOST_PASSAGES} passages, not {limit}")
    return max(CANDIDATES, 2 * limit)


def fused(cosines: Mapping[Id, float], words: Mapping[Id, float]) -> list[Id]:
    """All ids by cosine plus WORDS times BM25, the best first.

    `cosines` holds every candidate, `words` the best by words alone; where as many came as were asked for, the others
    may have as much as the last of them, and are taken to.
    """
    worths = _worths(cosines, words)
    return sorted(cosines, key=lambda one: -worths[one])


def contenders(cosines: Mapping[Id, float], words: Mapping[Id, float], *, wanted: int) -> list[Id]:
    """Those that only their words found and that may still be among the `wanted` best, `cosines` being the nearest by
    vector: what is not among these is no nearer than the furthest of them."""
    alone = [one for one in words if one not in cosines]
    if not alone or len(cosines) < max(CANDIDATES, wanted):
        return alone
    furthest, bar = min(cosines.values()), sorted(_worths(cosines, words).values())[-wanted]
    return [one for one in alone if furthest + WORDS * words[one] >= bar]


def check_encoder(place: str, *, made_by: EncoderId, now: EncoderId) -> None:
    """Raises IndexMismatch unless the encoder is the one that made the vectors."""
    if made_by != now:
        raise IndexMismatch(
            f"{place}: its vectors are of encoder {made_by.digest} ({made_by.dimensions} dimensions), the router in "
            f"use has {now.digest} ({now.dimensions}); run `coe index rebuild`, which embeds anew what is stored"
        )


def _worths(cosines: Mapping[Id, float], words: Mapping[Id, float]) -> dict[Id, float]:
    least = min(words.values()) if len(words) >= CANDIDATES else 0.0
    return {one: cosine + WORDS * words.get(one, least) for one, cosine in cosines.items()}
