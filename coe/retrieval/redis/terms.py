"""Full-text search for Redis: splits texts into terms, and computes BM25 over packed postings of (chunk, weight).

Redis stores the postings of each term as one string. The weight of a term in a chunk is everything of BM25 except the
term's rarity, which depends on the whole index. `store` writes the weights, and `search` ranks chunks by them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import Stemmer

MAX_TERM_CHARACTERS = 40
MAX_QUERY_TERMS = 64
AVERAGE_CHUNK_TERMS = 100
"""Length of an average chunk in terms, with which BM25 compares the length of a chunk."""
K1, B = 1.2, 0.75
"""The usual parameters of BM25: saturation and length normalization."""
WEIGHT_SCALE = 1_000
"""A weight of 1 is stored as this."""
POSTING = np.dtype([("chunk", "<u4"), ("weight", "<u2")])
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be but by for from has have if in into is it its no not of on or such that the their then
        there these they this to was were what when where which who will with""",
    )
)
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]+|[^\W_]+")
_STEM = Stemmer.Stemmer("english").stemWord
"""Snowball's stemmer, as in LanceDB's full-text index."""
_FIRST_UNSPACED = "぀"
"""First character of the scripts that are written without spaces; their terms are bigrams of characters."""


def terms(text: str) -> list[str]:
    """Return the terms of a text: words without accents, stemmed, without stop words."""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(letter for letter in plain if not "\u0300" <= letter <= "\u036f")
    words = _WORD.findall(unicodedata.normalize("NFC", plain))
    return [term for word in words for term in _word_terms(word[:MAX_TERM_CHARACTERS])]


def _word_terms(word: str) -> Iterable[str]:
    if word >= _FIRST_UNSPACED:
        return [word[at : at + 2] for at in range(max(1, len(word) - 1))]
    return () if word in _STOP_WORDS else (_STEM(word),)


def term_weights(text: str) -> dict[str, int]:
    """Return term -> its BM25 weight in this text without rarity, times WEIGHT_SCALE."""
    counts = Counter(terms(text))
    slope = K1 * (1 - B + B * sum(counts.values()) / AVERAGE_CHUNK_TERMS)
    return {term: round(WEIGHT_SCALE * count * (K1 + 1) / (count + slope)) for term, count in counts.items()}


def query_terms(text: str) -> list[str]:
    """Return the distinct terms of a question, at most MAX_QUERY_TERMS."""
    return list(dict.fromkeys(terms(text)))[:MAX_QUERY_TERMS]


def top_chunks(postings: Mapping[str, Sequence[bytes]], *, chunks: int, limit: int) -> dict[int, float]:
    """Return chunk -> BM25 of the `limit` best chunks.

    `postings` are the packed postings of each term in every part of the index, which has `chunks` chunks in all.
    """
    found = {term: np.frombuffer(b"".join(parts), dtype=POSTING) for term, parts in postings.items()}
    found = {term: rows for term, rows in found.items() if len(rows)}
    if not found:
        return {}
    scores = np.zeros(1 + max(int(rows["chunk"].max()) for rows in found.values()), dtype=np.float32)
    for rows in found.values():
        rarity = math.log(1 + max(0.0, chunks - len(rows) + 0.5) / (len(rows) + 0.5))
        scores[rows["chunk"]] += rows["weight"] * np.float32(rarity / WEIGHT_SCALE)
    top = np.flatnonzero(scores)  # sorting the zeros too would take ten times as long
    if len(top) > limit:
        top = top[np.argpartition(scores[top], -limit)[-limit:]]
    return {int(chunk): float(scores[chunk]) for chunk in top}
