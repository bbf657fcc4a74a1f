"""What goes to Redis for a document's chunks, and how its answers are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.retrieval.passages import Document, Vector
from coe.retrieval.redis import terms


def arguments_of(document: Document, vectors: NDArray[np.float32]) -> list[bytes | str]:
    """For each chunk its vector, record and words, as the script takes them."""
    arguments: list[bytes | str] = []
    for chunk, vector in zip(document.chunks, vectors, strict=True):
        record = orjson.dumps([chunk.id, chunk.text, document.source, document.title])
        words = " ".join(f"{term} {weight}" for term, weight in terms.weights(chunk.text).items())
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
