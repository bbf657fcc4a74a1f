"""Texts as words to look for, and BM25 over packed rows of (chunk, weight): what Redis itself lacks.

What goes to Redis for a document's chunks, and how its answers are read.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import Stemmer
from numpy.typing import NDArray

from coe.retrieval.passages import Document, Vector

LONGEST = 40
"""Characters of a word; longer ones are cut."""
MOST = 64
"""Different words of a question that are looked for."""
USUAL = 100
"""Words of a chunk, about; BM25 holds a longer one's against it."""
SATURATION, LENGTH = 1.2, 0.75
"""The usual k1 and b of BM25."""
UNIT = 1_000
"""What a weight of 1 is stored as."""
ROW = np.dtype([("chunk", "<u4"), ("weight", "<u2")])
"""One chunk that holds a word."""
_STOP = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be but by for from has have if in into is it its no not of on or such that the their then
        there these they this to was were what when where which who will with""",
    )
)
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]+|[^\W_]+")
_STEM = Stemmer.Stemmer("english").stemWord
"""Snowball's, as in LanceDB's index of words."""
_PAIRED = "぀"
"""From this letter on scripts are written without spaces: their words are all pairs of letters."""


def terms(text: str) -> list[str]:
    """The stems of a text's words, folded; words that every text has are left out."""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(letter for letter in plain if not "\u0300" <= letter <= "\u036f")
    return [term for word in _WORD.findall(unicodedata.normalize("NFC", plain)) for term in _of(word[:LONGEST])]


def weights(text: str) -> dict[str, int]:
    """Word -> its part of BM25 in this text, in UNITs: all but how rare the word is."""
    found = Counter(terms(text))
    slope = SATURATION * (1 - LENGTH + LENGTH * sum(found.values()) / USUAL)
    return {term: round(UNIT * count * (SATURATION + 1) / (count + slope)) for term, count in found.items()}


def asked(text: str) -> list[str]:
    """The words of a question to look for, each once."""
    return list(dict.fromkeys(terms(text)))[:MOST]


def best(rows: Mapping[str, Sequence[bytes]], *, chunks: int, most: int) -> dict[int, float]:
    """Chunk -> BM25 of the `most` best, from the packed rows of each word in every part of the index, of `chunks`
    chunks in all."""
    found = {term: np.frombuffer(b"".join(parts), dtype=ROW) for term, parts in rows.items()}
    found = {term: row for term, row in found.items() if len(row)}
    if not found:
        return {}
    scores = np.zeros(1 + max(int(row["chunk"].max()) for row in found.values()), dtype=np.float32)
    for row in found.values():
        rarity = math.log(1 + max(0.0, chunks - len(row) + 0.5) / (len(row) + 0.5))
        scores[row["chunk"]] += row["weight"] * np.float32(rarity / UNIT)
    top = np.flatnonzero(scores)  # ordering all the zeros would take ten times as long
    if len(top) > most:
        top = top[np.argpartition(scores[top], -most)[-most:]]
    return {int(chunk): float(scores[chunk]) for chunk in top}


def _of(word: str) -> Iterable[str]:
    if word >= _PAIRED:
        return [word[at : at + 2] for at in range(max(1, len(word) - 1))]
    return () if word in _STOP else (_STEM(word),)


def arguments_of(document: Document, vectors: NDArray[np.float32]) -> list[bytes | str]:
    """For each chunk its vector, record and words, as the script takes them."""
    arguments: list[bytes | str] = []
    for chunk, vector in zip(document.chunks, vectors, strict=True):
        record = orjson.dumps([chunk.id, chunk.text, document.source, document.title])
        words = " ".join(f"{term} {weight}" for term, weight in weights(chunk.text).items())
        arguments += [vector.astype("<f4").tobytes(), record, words]
    return arguments


def scored(near: Any) -> list[tuple[int, float]]:
    """VSIM's answer, by either protocol, as chunks with cosines; it tells (1 + cosine) / 2."""
    pairs = near.items() if isinstance(near, dict) else zip((near or [])[::2], (near or [])[1::2], strict=True)
    return [(int(number), 2 * float(score) - 1) for number, score in pairs]


def cosine(raw: bytes, vector: Vector) -> float:
    """Between a vector as the set keeps it, one byte a dimension, and a unit vector."""
    kept = np.frombuffer(raw, dtype=np.int8).astype(np.float32)
    return float(kept @ vector) / max(float(np.linalg.norm(kept)), 1e-9)
