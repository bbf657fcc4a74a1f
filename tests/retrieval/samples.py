"""An encoder without a neural network, and documents for it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coe.retrieval.indexing import Chunker
from coe.retrieval.insertion import Document, DocumentKey

DIMENSIONS = 64


class WordEncoder:
    """A bag-of-words encoder: texts that share words are similar. A token is a word."""

    def __init__(self, dimensions: int = DIMENSIONS, digest: str = "words") -> None:
        self.dimensions = dimensions
        self.digest = digest
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.encoded += texts
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row, 0] = 0.01
            for word in re.findall(r"\w+", text.lower()):
                place = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")
                vectors[row, place % self.dimensions] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[found.span() for found in re.finditer(r"\w+|[^\w\s]", text)] for text in texts]


def document(text: str, name: str, *, collection: str = "handbook", tenant: str | None = None) -> Document:
    key = DocumentKey(name, collection, tenant)
    return Chunker(WordEncoder()).document(key, text, source=f"{name}.md", title=name.title())
